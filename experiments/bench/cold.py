"""What a study takes from an empty compilation cache: wall time, processor time, and time to its first line.

Give several trees of this repository to compare them: every round runs each study once in each tree, in turn, with this
interpreter and an empty cache. Whole commands are timed, from start to report. Run it on a quiet machine.

    make bench BENCH=cold ARGS="--trees ../old . --rounds 3"
    make bench BENCH=cold ARGS="--studies smoke"
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from rich.console import Console

from experiments.bench._bars import table

Study = Literal["default", "methods", "smoke"]
COMMANDS: dict[Study, str] = {
    "default": "experiments.rl_gymnax",
    "methods": "experiments.random_label --methods all --tasks 4",
    "smoke": "experiments.rl_gymnax --preset smoke",
}
"""Name of a study -> its module and settings."""
FIRST = re.compile(r": task 1/\d")
"""What the first line of training has."""


@dataclass(frozen=True)
class Config:
    """Studies from an empty compilation cache."""

    trees: tuple[Path, ...] = (Path("."),)
    """Checkouts to compare; ratios are to the first."""
    studies: tuple[Study, ...] = ("default", "methods", "smoke")
    """Which studies."""
    rounds: int = 3
    """Runs of each study in each tree."""
    settings: str = "--wandb disabled"
    """More settings for all of them."""
    out: Path | None = None
    """A JSON file for the numbers."""


class Took(NamedTuple):
    """Seconds of a command: of wall time, of processor time, and of wall time to its first line of training."""

    wall: float
    processor: float
    first: float


def run(tree: Path, command: str) -> Took:
    """Runs a command in a tree with an empty cache; raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", *command.split(), "--runs-dir", f"{folder}/runs"]
        # Older trees know only one of the two.
        caches = dict.fromkeys(("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"), f"{folder}/cache")
        variables = os.environ | caches | {"PYTHONPATH": "."}
        before, began, first = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), float("nan")
        with subprocess.Popen(
            words, cwd=tree, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if first != first and FIRST.search(line):
                    first = time.perf_counter() - began
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, first)


def main(config: Config) -> None:
    """Runs the studies and prints the medians."""
    found: dict[tuple[Study, Path], list[Took]] = {pair: [] for pair in itertools.product(config.studies, config.trees)}
    for _, (study, tree) in itertools.product(range(config.rounds), found):
        found[study, tree].append(run(tree, f"{COMMANDS[study]} {config.settings}"))
        print(study, tree, *(f"{value:.1f}" for value in found[study, tree][-1]), flush=True)
    medians = {pair: Took(*map(statistics.median, zip(*times, strict=True))) for pair, times in found.items()}
    rows = []
    for (study, tree), took in medians.items():
        base = medians[study, config.trees[0]]
        rows.append({"study": study, "tree": str(tree)})
        for name, value, reference in zip(("wall", "processor", "first line"), took, base, strict=True):
            rows[-1][f"{name} [s]"] = f"{value:.1f}"
            rows[-1][f"of {name}"] = f"{value / reference:.2f}"
    Console().print(table(f"medians of {config.rounds} rounds", rows, left=2))
    if config.out:
        config.out.write_text(json.dumps({f"{study} {tree}": times for (study, tree), times in found.items()}))


if __name__ == "__main__":
    main(tyro.cli(Config))
