"""What a sweep saves: one command for all its runs, against a process for each.

A run is a method under one value of a setting with one seed. The sweep trains them all by one program a method. The
other side is what a shell loop would do, ``--method M --method.X V --seeds 1 --first-seed S``, one process after
another; both have a compilation cache that is empty when the side begins. Of a method's processes the first of a value
compiles, the others of that value find its programs in the cache. As many of each kind run as ``--cold`` and
``--warm`` say; the rest is estimated from their medians. Whole commands are timed, from start to report.

    make bench BENCH=sweep
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments.bench._bars import table
from plastax.records.labelled import read_run

LEAST = 3.0
"""What the time of a run in processes of its own should be, of its time in a sweep."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A sweep against separate processes."""

    methods: tuple[str, ...] = ("l2", "l2_er")
    """Methods."""
    setting: str = "l2"
    """Setting of each of them."""
    values: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Its values."""
    seeds: int = 4
    """Seeds of each."""
    cold: int = 1
    """Processes of a method that compile and are run; all others are estimated."""
    warm: int = 1
    """Processes of a method that find their programs compiled and are run, for each of the cold ones."""
    study: str = (
        "--tasks 5 --stream.examples 100 --training.batch-size 20 --training.epochs 20 --training.updates 2 "
        "--model.hidden 32 32 --wandb disabled"
    )
    """The other settings of random_label."""
    out: Path | None = None
    """A JSON file for the numbers."""


class Cost(NamedTuple):
    """Seconds of a command: by the clock, and of all cores together."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f})"


def command(line: str, cache: Path, runs: Path) -> Cost:
    """Runs random_label and times it; raises a RuntimeError if it fails."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OPENBLAS_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [sys.executable, "-m", "experiments.random_label", *line.split(), "--runs-dir", str(runs)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def furthest(one: Path, many: Path, config: Config) -> float:
    """The largest difference of the last task's loss between the processes' runs and the same arms of the sweep."""
    (path,) = many.glob("*/*")
    whole, apart = read_run(path), 0.0
    for path in one.glob("*/*"):
        alone = read_run(path)
        settings = json.loads((path / "config.json").read_text())["settings"]
        arm = whole.sel(arm=whole.method == alone.method.item())
        arm = arm.sel(arm=arm[f"method.{config.setting}"] == settings[alone.arm.item()][config.setting])
        difference = arm["train/loss"].sel(seed=alone.seed).values[0] - alone["train/loss"].values[0]
        apart = max(apart, float(np.abs(difference[:, -1]).max()))
    return apart


def main(config: Config) -> None:
    """Times both sides, one after the other, and prints the table."""
    console = Console()
    flag = config.setting.replace("_", "-")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        load = os.getloadavg()[0]
        listed = ",".join(map(str, config.values))
        line = f"{config.study} --methods {' '.join(config.methods)} --seeds {config.seeds}"
        together = command(f"{line} --sweep method.{flag}={listed}", place / "a", place / "sweep")
        total = Cost(0.0, 0.0)
        for method in config.methods:
            costs: dict[str, list[Cost]] = {"cold": [], "warm": []}
            for value in config.values[: config.cold]:
                for seed in range(1 + config.warm):
                    line = f"{config.study} --method {method} --method.{flag} {value} --seeds 1 --first-seed {seed}"
                    costs["warm" if seed else "cold"].append(command(line, place / "b", place / "alone"))
            cold, warm = (Cost(*map(statistics.median, zip(*costs[kind]))) for kind in ("cold", "warm"))
            times = len(config.values), len(config.values) * (config.seeds - 1)
            total = Cost(*(t + times[0] * c + times[1] * w for t, c, w in zip(total, cold, warm)))
            rows.append({"method": method, "cold": cold, "warm": warm, "processes": times})
        apart = furthest(place / "alone", place / "sweep", config)
        load = max(load, os.getloadavg()[0])
    runs = len(config.methods) * len(config.values) * config.seeds
    lines: list[tuple[Any, ...]] = [("sweep", 1, 1, together, _each(together, runs))]
    for row in rows:
        for kind, count, here in zip(("cold", "warm"), row["processes"], (config.cold, config.warm)):
            lines.append((f"{row['method']}, {kind}", count, here, row[kind], ""))
    lines.append(("all processes, estimated", runs, "", total, _each(total, runs)))
    heads = ("", "processes", "run here", "s each (CPU-s)", "s a run (CPU-s)")
    texts = [dict(zip(heads, map(str, line))) for line in lines]
    console.print(
        table(f"{runs} runs, load {load:.1f}; losses of the same run {apart:.1e} apart at the end", texts, left=1)
    )
    wall, cpu = total.wall / together.wall, total.cpu / together.cpu
    verdict = "met" if min(wall, cpu) >= LEAST else "missed"
    console.print(
        f"a run costs {wall:.1f}x the time in a process of its own, {cpu:.1f}x the CPU time; {LEAST:g}x: {verdict}"
    )
    if config.out is not None:
        numbers = {"sweep": together, "processes": total, "rows": rows, "runs": runs, "apart": apart, "load": load}
        config.out.write_text(json.dumps(numbers, indent=2))


def _each(cost: Cost, runs: int) -> str:
    return f"{cost.wall / runs:.2f} ({cost.cpu / runs:.2f})"


if __name__ == "__main__":
    main(tyro.cli(Config))
