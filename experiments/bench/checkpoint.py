"""What it costs that runs survive: checkpoints, and freezing seeds whose loss is not finite.

    make bench BENCH=checkpoint
    make bench BENCH=checkpoint ARGS="--rounds 7 --parts freezing"

Both sides in one process, in turn; wall and processor seconds, medians over rounds of the difference or ratio within
each round. Checkpoints: `random_label` as it is by default but for its length, without any, with those of the default
settings (of a run this short, the last one), and with one after every segment, which gives the price of one. Freezing:
the same and `rl_gymnax`, against programs without the selection.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from experiments import random_label, rl_gymnax
from experiments.bench import _measure
from plastax import tree
from plastax.program import parallel, segments
from plastax.runs import loop
from plastax.runs.plan import Plan, Saving
from plastax.study import settings


@dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 5
    """Of all sides, in turn."""
    parts: tuple[str, ...] = ("checkpoints", "freezing")
    """checkpoints, freezing."""
    tasks: int = 2
    """Of the study with checkpoints."""
    segments: int = 10
    """Of each of these tasks."""


def build_supervised(*line: str) -> tuple[list[parallel.Batch], Plan, dict[str, Any]]:
    """`random_label` under a command line: programs, plan, settings."""
    config = random_label.EXPERIMENT.parse(["--method", "backprop", *line])
    built = random_label.EXPERIMENT.build(config)
    return built.batches, built.plan, settings.to_json(config) | {"updates_per_task": built.plan.updates_per_task}


def build_rl(*line: str) -> tuple[list[parallel.Batch], Plan]:
    """`rl_gymnax` under a command line, without probes."""
    args = ["--method", "backprop", "--probes", "weights", *line]
    built = rl_gymnax.EXPERIMENT.build(rl_gymnax.EXPERIMENT.parse(args))
    return built.batches, built.plan


def checkpoints(options: Options) -> None:
    """Prints the price of a checkpoint, and their share of a run at default settings."""
    batches, plan, chosen = build_supervised(
        "--tasks", f"{options.tasks}", "--segments-per-task", f"{options.segments}"
    )
    config = {"experiment": "random_label", "run_id": "bench", "hash": "bench", "settings": chosen}
    sides = {"none": Saving(0, 0.0), "default": Saving(), "every segment": Saving(1, 0.0)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, options.rounds):  # The first one is for the caches.
            for name, saving in sides.items():
                directory = Path(folder) / f"{name}-{number}"
                wall, cpu = time.perf_counter(), time.process_time()
                (share,) = loop.study(directory, config, batches, plan, saving=saving).values()
                wall, cpu = time.perf_counter() - wall - share.compile, time.process_time() - cpu
                if number >= 0:
                    seconds[name].append((wall, cpu))
        size = sum(path.stat().st_size for path in (directory / "checkpoints").glob("*/*/**/*") if path.is_file()) // 2
    base = seconds.pop("none")
    wall, cpu = (statistics.median(x) for x in zip(*base))
    print(f"random_label, {plan.segments} segments without checkpoints: {wall:.2f} s ({cpu:.2f} CPU-s with tracing)")
    for name, found in seconds.items():
        more = [[a - b for a, b in zip(one, other)] for one, other in zip(found, base)]
        wall_more, cpu_more = (statistics.median(x) for x in zip(*more))
        number = plan.segments if name == "every segment" else 1
        print(
            f"{name}: {number} checkpoints of {size / 2**20:.2f} MiB on disk, {wall_more:+.3f} s "
            f"({cpu_more:+.3f} CPU-s)"
        )
    each = wall_more / plan.segments, cpu_more / plan.segments
    minutes = Saving().minutes
    shares = [100 * x / (60 * minutes) for x in each]
    print(
        f"one checkpoint: {1e3 * each[0]:.0f} ms ({1e3 * each[1]:.0f} CPU-ms); one every {minutes:g} minutes, as by "
        f"default: {shares[0]:.3f} % of the time ({shares[1]:.3f} %)"
    )


@contextmanager
def never_frozen() -> Iterator[None]:
    """Programs traced in here select nothing and look at no parameter."""
    with (
        mock.patch.object(segments, "where", lambda _condition, yes, _no: yes),
        mock.patch.object(tree, "finite", return_value=jnp.bool_(True)),
    ):
        yield


def side(name: str, batch: parallel.Batch, length: int) -> _measure.Side:
    """Segments of a program, each a task, as a side; each round continues from the state of the last."""
    data = batch.place(batch.program.data)
    programs, clocks = _measure.as_in_runs(batch, length), itertools.count(0, length)
    running = _measure.Running(programs.start(data), lambda state: programs.run(state, data, next(clocks))[:2])
    return _measure.Side(name, running)


def freezing(options: Options) -> None:
    """Prints what the selection adds to a segment."""
    # The hardest case: every gradient step is an update, of a network that is large beside its batch.
    steps = ("--training.updates", "600", "--training.epochs", "15", "--training.batch-size", "10")
    wide = ("--model.hidden", "512", "512", *steps)
    cases: dict[str, Callable[[], tuple[Any, ...]]] = {
        "random_label": lambda: build_supervised("--training.updates", "10"),
        "random_label, one update a step": lambda: build_supervised(*wide),
        "rl_gymnax": lambda: build_rl("--steps-per-task", "10240"),
    }
    for name, build in cases.items():
        (batch,), plan = build()[:2]
        selected = side("as it is", batch, plan.updates_per_task)
        with never_frozen():
            bare = side("never frozen", build()[0][0], plan.updates_per_task)
        _measure.rounds_of([selected, bare], 1)
        ours, theirs = _measure.rounds_of([selected, bare], options.rounds)
        ratio, base = ours.ratio(theirs).median(), theirs.median()
        print(
            f"{name}: {base[0]:.2f} s ({base[1]:.2f} CPU-s) a task of {plan.updates_per_task} updates never frozen; "
            f"as it is {100 * (ratio[0] - 1):+.1f} % ({100 * (ratio[1] - 1):+.1f} % CPU)",
            flush=True,
        )


def main() -> None:
    """Measures what is asked for."""
    options = tyro.cli(Options)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}")
    for part in options.parts:
        {"checkpoints": checkpoints, "freezing": freezing}[part](options)


if __name__ == "__main__":
    main()
