"""What the default probes cost: a task of an experiment with them, against the same task without any.

Both sides are the experiment's own program at its default settings, for one method, and train the same networks to the
last bit. A round is one task of each, in turn, in one process, or as many as lie between two measurements of the rarest
probe; times are means over its tasks. Evaluations stay on both sides: they are the result.
``--each`` adds what every registered probe takes alone, at both ends of a task.

    make bench BENCH=probes ARGS="--rounds 7 --each"
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from experiments import random_label, rl_gymnax
from experiments.bench._measure import Side, Times, as_in_runs, rounds_of
from plastax.errors import ConfigError
from plastax.probes import PROBES
from plastax.runs import compilation
from plastax.study import settings
from plastax.types import Tree

MOST = 0.15
"""Largest share by which the default probes may lengthen a task."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    experiments: tuple[str, ...] = ("random_label", "rl_gymnax")
    """Of these."""
    method: str = "backprop"
    """Whose program."""
    rounds: int = 7
    """Timed rounds of each side."""
    each: bool = False
    """Whether to time every probe alone, too."""
    settings: tuple[str, ...] = ()
    """Further settings of the experiments, as on their command lines."""


def built(experiment: str, args: list[str]) -> tuple[Any, Callable[[Any], Any]]:
    """The experiment's configuration and what builds its programs and plan from one."""
    known = {one.EXPERIMENT.name: one.EXPERIMENT for one in (random_label, rl_gymnax)}
    if experiment not in known:
        raise ConfigError.unknown("experiments", experiment, known)
    config = known[experiment].parse(args)
    value = known[experiment].share(config).value
    return config, lambda config: known[experiment].build(config, value)


def period(config: Any) -> int:
    """Tasks from one measurement of the rarest probe to the next."""
    every = [getattr(getattr(config, name), "every", 1) for name in config.probes]
    return config.probe_every * math.lcm(*every)


class Tasks:
    """Programs that run some tasks a call, or only measure."""

    def __init__(self, config: Any, build: Callable[[Any], Any], tasks: int = 1) -> None:
        self.tasks = tasks
        study = build(config)
        (batch,), self.updates = study.batches, study.plan.updates_per_task
        self.data = batch.place(batch.program.data)
        self.programs = as_in_runs(batch, self.updates)
        self.state: list[Tree] = self.programs.start(self.data)
        self.task = 0

    def next(self) -> None:
        """The next round's tasks."""
        for _ in range(self.tasks):
            self.state = self.programs.run(self.state, self.data, self.task * self.updates).state
            self.task += 1

    def measure(self) -> None:
        """What is due in the first task, twice."""
        measuring, _ = self.programs.measuring.result()
        if measuring is not None:
            views = [*map(self.programs.batch.program.view, self.state)]
            for border in (0, 2 * self.updates + 1):
                now = jnp.int32(border)
                jax.block_until_ready([*self.programs.each(lambda view: measuring(view, self.data, now), views)])  # noqa: B023


def percent(times: Times, base: Times) -> str:
    """How much longer than the base: wall, processor seconds, and the range of the latter over rounds."""
    ratio = times.ratio(base)
    wall, cpu = ratio.median()
    return f"{wall - 1:+.1%} wall, {cpu - 1:+.1%} processor [{min(ratio.cpu) - 1:+.1%}, {max(ratio.cpu) - 1:+.1%}]"


def main(config: Config) -> None:
    """Times all sides and prints the table."""
    warnings.simplefilter("ignore")
    compilation.use_cache()
    console = Console()
    table = Table(title=f"load {os.getloadavg()[0]:.1f}, {config.rounds} rounds, {config.method}")
    for column in ("experiment", "a task without probes", "with", "longer by"):
        table.add_column(column, overflow="fold")
    for experiment in config.experiments:
        base, build = built(experiment, ["--methods", config.method, *config.settings])
        tasks = period(base)
        bare = Tasks(dataclasses.replace(base, probes=()), build, tasks)
        probed = Tasks(base, build, tasks)
        sides = [Side("none", bare.next, units=tasks), Side("default", probed.next, units=tasks)]
        rounds_of(sides, 1)
        none, default = rounds_of(sides, config.rounds)
        times = [f"{t.median()[0]:.2f} s wall, {t.median()[1]:.2f} s processor" for t in (none, default)]
        table.add_row(f"{experiment}: {' '.join(base.probes)}", *times, percent(default, none))
        for name in PROBES if config.each else ():
            alone = Tasks(dataclasses.replace(base, probes=(name,)), build)
            # What is due anyway comes off: evaluations. The rollout that probes of PPO look at stays in.
            pair = [Side(name, alone.measure), Side("none", bare.measure)]
            rounds_of(pair, 1)
            mine, rest = rounds_of(pair, config.rounds)
            cpu = statistics.median(a - b for a, b in zip(mine.cpu, rest.cpu, strict=True))
            table.add_row(f"  {name}", "", f"{cpu:.3f} s processor", f"{cpu / none.median()[1]:+.1%}")
    console.print(table)
    console.print(f"Bar: the default probes lengthen a task by at most {MOST:.0%}.")


if __name__ == "__main__":
    settings.main(lambda: main(tyro.cli(Config)))
