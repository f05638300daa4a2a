"""One reading of a run in a process of its own: ``python -m experiments.bench._reading report <run> <page>``.

Prints wall and processor seconds without what the imports took, and the peak of the process's resident memory in bytes.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import plastax
from plastax import report

QUIET = Console(quiet=True)


def _report(run: str, page: str) -> Any:
    return report.write_and_print([run], page, QUIET)


READINGS: dict[str, Callable[[str, str], Any]] = {
    "load": lambda run, _: plastax.load(run),
    "compare": lambda run, _: report.print_comparison([run], console=QUIET),
    "report": _report,
}


def read(what: str, run: Path, page: Path) -> dict[str, float]:
    """Does one of `READINGS` in a new process; ``wall_s``, ``cpu_s``, ``peak_bytes`` and ``page_bytes``."""
    command = [sys.executable, "-m", "experiments.bench._reading", what, str(run), str(page)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak() -> int:
    """The kernel's peak of this process. That of `getrusage` begins with the process that started this one."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(what: str, run: str, page: str) -> None:
    """Does it here and prints what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    READINGS[what](run, page)
    peak = _peak()
    written = Path(page).stat().st_size if what == "report" else 0
    taken = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": peak,
        "page_bytes": written,
    }
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
