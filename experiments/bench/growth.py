"""How cost grows: time and peak memory of curvature, training, whole tasks and reports against what they depend on.

Each series changes one size and keeps the others. Its growth is the slope of a straight line through the logarithms
(`scipy.stats.linregress`), with a 95 % t interval over the sizes: 1 is proportional. Small sizes cost more than their
share, so that slopes from there are below those of large ones.

- ``spectrum``: stochastic Lanczos quadrature of the Hessian of a ReLU network with two hidden layers.
- ``step``: a step of gradient descent of that network with running Kronecker factors, which are added every step.
- ``task``: a task of `random_label` on digits with the Hessian and Kronecker factors measured at both ends, by the
  programs of the experiment.
- ``load``, ``compare``, ``report``: `plastax.load`, the tables of `plastax compare` and the report of a run of
  `rl_gymnax` whose records have the shapes of its default probes. Each is a process of its own.

Times are processor seconds of all threads on a CPU, wall seconds elsewhere; medians of the rounds after a first one.
Memory of ``spectrum``, ``step`` and ``task`` is XLA's account of the compiled program (`memory_analysis`): results
and temporaries, of ``task`` its state, too. Memory of the readings is the peak of the process' resident memory, with
its imports.

    make bench BENCH=growth ARGS="--out growth.json"
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from scipy import stats

from experiments.bench import _reading, _records
from experiments.bench._bars import Bar, Options, judged, machine, report, table
from experiments.bench._groups import tapped_gradients
from experiments.bench._measure import Side, compiled, rounds_of
from experiments.bench._problem import Batch, Params, Problem, initial, loss, make, no_taps
from experiments.bench.probes import Tasks, built
from plastax import curvature
from plastax.curvature import running
from plastax.runs import compilation
from plastax.runs.compiled import need

Part = Literal["spectrum", "step", "task", "records"]


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """What to measure."""

    parts: tuple[Part, ...] = ("spectrum", "step", "task", "records")
    """Of these."""
    study: tuple[int, int, int] = (34, 20, 200)
    """Methods, seeds and tasks of the largest run that is read."""
    rounds: int = 3
    """Timed rounds of each size."""
    budget: float = 20.0
    """Seconds for the rounds of one size: there are as many as fit, and at least one."""


class Sizes(NamedTuple):
    """What the networks of ``spectrum``, ``step`` and ``task`` are given; one of them changes in a series."""

    parameters: int = 100_000
    examples: int = 256
    order: int = 16
    seeds: int = 1
    tasks: int = 1


class Point(NamedTuple):
    """One measurement: its size, seconds and bytes."""

    size: float
    seconds: float
    bytes: float


class Series(NamedTuple):
    """How one thing grows with one size."""

    what: str
    against: str
    points: tuple[Point, ...]


GROWTH: dict[str, tuple[int, ...]] = {
    "parameters": (10_000, 100_000, 1_000_000, 10_000_000),
    "examples": (64, 128, 256, 512, 1024),
    "order": (8, 16, 32, 64),
    "seeds": (1, 2, 4, 8, 16),
    "tasks": (1, 2, 4, 8),
}
"""Size -> its values in a series."""
OF: dict[str, tuple[str, ...]] = {
    "spectrum": ("parameters", "examples", "order", "seeds"),
    "step": ("parameters", "examples", "seeds"),
    "task": ("parameters", "examples", "seeds", "tasks"),
}
"""Part -> the sizes it is measured against; a toy size of the benchmark takes the first."""
INPUTS, CLASSES = 64, 10
LIMITS = {"load": 20.0, "compare": 30.0, "report": 60.0}
"""Reading -> the most processor seconds that it may take of the largest run."""
MOST_MEMORY = 3.5e9
"""Most bytes of a process that reads the largest run; its data set has 2.1e9."""


def width(parameters: int) -> int:
    """Of two hidden layers of a network with `INPUTS` inputs, `CLASSES` outputs and about this number of parameters."""
    linear = INPUTS + CLASSES + 2
    return max(1, round((math.sqrt(linear**2 + 4.0 * (parameters - CLASSES)) - linear) / 2))


def problem_of(sizes: Sizes) -> Problem:
    """The network and batch."""
    hidden = width(sizes.parameters)
    return make("", (INPUTS, hidden, hidden, CLASSES), sizes.examples, sizes.order, 1)


def spectrum(sizes: Sizes) -> Side:
    """One Lanczos run a seed; all seeds have the same network, and start vectors of their own."""
    problem = problem_of(sizes)

    def one(params: Any, batch: Any, key: Any) -> Any:
        op = curvature.hessian(loss, params, data=batch)
        return curvature.spectrum(op, key, order=problem.order, probes=1).nodes

    keys = jax.random.split(problem.key, sizes.seeds)
    return compiled("", jax.vmap(one, (None, None, 0)), problem.params, problem.batch, keys)


def step(sizes: Sizes) -> Side:
    """A step of every seed's network on one batch, and its Kronecker factors into their running averages."""
    problem = problem_of(sizes)
    taps = no_taps(problem)
    params = jax.vmap(lambda key: initial(key, problem.widths))(jax.random.split(problem.key, sizes.seeds))
    like = jax.eval_shape(tapped_gradients, problem.params, taps, problem.batch)[1]
    averages = jax.vmap(lambda _: running.start(like))(jnp.arange(sizes.seeds))

    def one(params: Params, average: running.Running, taps: Any, batch: Batch) -> tuple[Params, running.Running]:
        grads, found = tapped_gradients(params, taps, batch)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), running.update(average, found, 0.95)

    return compiled("", jax.vmap(one, (0, 0, None, None)), params, averages, taps, problem.batch)


def task(sizes: Sizes) -> Side:
    """Tasks of `random_label` with its default probes, the Hessian in every task."""
    hidden = width(sizes.parameters)
    given = {
        "--methods": "backprop", "--model.hidden": f"{hidden} {hidden}", "--stream.examples": sizes.examples,
        "--training.batch-size": 16, "--training.epochs": 4, "--training.updates": 4, "--hessian.every": 1,
        "--hessian.order": sizes.order, "--seeds": sizes.seeds,
    }  # fmt: skip
    tasks = Tasks(
        *built("random_label", " ".join(f"{name} {value}" for name, value in given.items()).split()), sizes.tasks
    )
    needed = need(tasks.programs)
    return Side("", tasks.next, memory=needed and needed.total)


SIDES: dict[str, Callable[[Sizes], Side]] = {"spectrum": spectrum, "step": step, "task": task}


def measured(config: Config, side: Side) -> tuple[float, float]:
    """Seconds, the median of the rounds, and bytes."""
    (first,) = rounds_of([side], 1)
    rounds = min(config.rounds, int(config.budget / max(first.wall[0], 1e-9)))
    (times,) = rounds_of([side], rounds) if rounds else [first]
    return judged(times.median()), float(side.memory or math.nan)


def grown(config: Config, what: str, console: Console) -> Iterator[Series]:
    """The series of a part."""
    base = Sizes(parameters=1000, examples=32, order=4) if config.quick else Sizes()
    found: dict[Sizes, tuple[float, float]] = {}
    for against in OF[what][: 1 if config.quick else None]:
        points = []
        for size in (1000, 4000, 16000) if config.quick else GROWTH[against]:
            sizes = base._replace(**{against: size})
            if sizes not in found:
                found[sizes] = measured(config, SIDES[what](sizes))
                seconds, memory = found[sizes]
                console.print(f"  {what}, {size:,} {against}: {seconds:.3g} s, {memory / 1e6:,.1f} MB")
            points.append(Point(size, *found[sizes]))
        yield Series(what, against, tuple(points))


def read(config: Config, console: Console) -> Iterator[Series]:
    """Readings of runs with up to `Config.study` methods, seeds and tasks, in the same proportion."""
    shares = (0.5, 1.0) if config.quick else (0.125, 0.25, 0.5, 1.0)
    found: dict[str, list[Point]] = {name: [] for name in _reading.READINGS}
    for share in shares:
        methods, seeds, tasks = (max(1, round(share * count)) for count in config.study)
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            size = _records.write(run, methods, seeds, tasks, preset="smoke" if config.quick else "default")
            console.print(f"  {methods} methods x {seeds} seeds x {tasks} tasks, {size / 1e9:.2g} GB of records")
            for name, points in found.items():
                taken = _reading.read(name, run, Path(scratch) / "page" / "report.html")
                points.append(Point(methods * seeds * tasks, taken["cpu_s"], taken["peak_bytes"]))
                page = f", a page of {taken['page_bytes'] / 1e6:.1f} MB" if taken["page_bytes"] else ""
                console.print(f"    {name}: {taken['cpu_s']:.3g} s, {taken['peak_bytes'] / 1e6:,.0f} MB{page}")
    for name, points in found.items():
        yield Series(name, "methods x seeds x tasks", tuple(points))


class Slope(NamedTuple):
    """Of a line through logarithms, with its 95 % t interval; NaN with fewer than three points."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def slope(sizes: Sequence[float], values: Sequence[float]) -> Slope:
    """How the values grow with the sizes: as their power of this."""
    fit = stats.linregress(np.log(sizes), np.log(values))
    half = stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr if len(sizes) > 2 else math.nan
    return Slope(fit.slope, fit.slope - half, fit.slope + half)


def rows(series: Sequence[Series]) -> list[dict[str, Any]]:
    """The table's numbers: the points and their slopes."""
    out = []
    for one in series:
        sizes, seconds, memory = zip(*one.points)
        out.append(
            {"what": one.what, "against": one.against, "size": sizes, "seconds": seconds, "bytes": memory,
             "seconds_slope": slope(sizes, seconds), "bytes_slope": slope(sizes, memory)}
        )  # fmt: skip
    return out


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    ends = {name: (row[name][0], row[name][-1]) for name in ("size", "seconds", "bytes")}
    return {
        "": row["what"], "against": row["against"], "from, to": " ".join(f"{x:,.0f}" for x in ends["size"]),
        "s": " ".join(f"{x:.3g}" for x in ends["seconds"]), "slope": str(row["seconds_slope"]),
        "MB": " ".join(f"{x / 1e6:,.3g}" for x in ends["bytes"]), "slope ": str(row["bytes_slope"]),
    }  # fmt: skip


def bars(series: Sequence[Series], study: tuple[int, int, int]) -> list[Bar]:
    """What must hold of the readings of the largest run; nothing of one that is smaller than that of `Config`."""
    if study < Config().study:
        return []
    of, held = {one.what: one.points[-1] for one in series}, []
    for what, most in (LIMITS if "load" in of else {}).items():
        held.append(Bar(f"{what} of {study}: processor seconds", of[what].seconds, most, at_most=True))
        held.append(Bar(f"{what} of {study}: GB", of[what].bytes / 1e9, MOST_MEMORY / 1e9, at_most=True))
    return held


def main(config: Config) -> list[Series]:
    """Measures everything, prints the table and writes the numbers."""
    config.pinned()
    if config.quick:
        config = dataclasses.replace(config, rounds=1, study=min(config.study, (2, 3, 4)))
    console = Console(width=130)
    console.print(machine())
    done: list[Series] = []
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.simplefilter("ignore")
        for part in config.parts:
            done += read(config, console) if part == "records" else grown(config, part, console)
    console.print(table("how cost grows: slopes of logarithms [95 % interval]", map(shown, rows(done)), left=2))
    report(console, bars(done, config.study), config.out, rows=rows(done))
    return done


if __name__ == "__main__":
    compilation.use_cache()  # A series over tasks runs one program.
    main(tyro.cli(Config))
