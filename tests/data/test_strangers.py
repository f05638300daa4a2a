"""Files from strangers are read, or refused in one line, in little memory: whatever is in them.

They are read in a process of its own, because what they are made for is to end it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plastax.output import plain

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits a process's memory as Linux does")


def read(*arguments: str) -> list[dict[str, Any]]:
    """What became of each file that `tests.data.strangers` read."""
    command = [sys.executable, "-m", "tests.data.strangers", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    *lines, end = done.stdout.splitlines() or [""]
    last = lines[-1] if lines else "nothing"
    assert (done.returncode, end) == (0, "done"), f"{done.stderr[-2000:]}\nended with {done.returncode} after {last}"
    return [json.loads(line) for line in lines]


def check(found: list[dict[str, Any]], most: int) -> None:
    for line in found:
        said = line["said"]
        assert plain(said) == " ".join(said.splitlines()) == said, line
        assert len(said) < 600, line
        # The limit of the process is there to catch what nobody counted; no file may need it.
        assert "does not fit into the memory" not in said, line
        assert line["bytes"] < most, line


def test_what_was_made_to_do_harm_is_refused():
    found = read("crafted")
    check(found, 100 << 20)
    assert [line for line in found if line["said"] == "read"] == []
    assert len(found) > 130


def test_damaged_files_are_refused_or_read():
    found = read("damaged", "500", "0")
    check(found, 50 << 20)
    whole = [line["said"] for line in found if line["what"].startswith("whole")]
    assert whole == ["read"] * 18
    refused = [line for line in found if line["said"] != "read"]
    assert len(refused) > 330


@pytest.mark.slow
def test_small_files_that_unpack_to_gigabytes_are_refused():
    found = read("bombs")
    check(found, 600 << 20)
    assert [line for line in found if line["said"] == "read"] == []


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_read(capsys):
    found = read("damaged", "10000", "1")
    check(found, 100 << 20)
    refused = [line for line in found if line["said"] != "read"]
    with capsys.disabled():
        print(
            f"\n{len(found)} damaged image files: {len(refused)} refused, {len(found) - len(refused)} read, 0 crashes"
        )
    assert len(refused) > 7_000
