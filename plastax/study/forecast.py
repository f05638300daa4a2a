"""What a study will do, in lines for the console, before anything compiles."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from plastax.probes import PROBES
from plastax.records import lifecycle
from plastax.study import settings
from plastax.study.settings import Config
from plastax.study.sweep import Arm
from plastax.types import Model


def lines(config: Config, arms: Sequence[Arm], own: int, programs: int) -> list[str]:
    """How many networks are trained on what, and what is measured.

    Args:
      config: from `configuration.configure`.
      arms: all arms of the study.
      own: how many of them this shard trains.
      programs: compiled programs that train them.
    """
    several = f" of {_count(len(config.methods), 'method')}" if len(arms) > len(config.methods) else ""
    kind = "arm" if several else "method"
    shard = f", {own} of them in shard {config.shard}" if own < len(arms) else ""
    trained = (
        f"{_count(len(arms), kind)}{several}{shard}, {_count(config.seeds, 'seed')} each: "
        f"{_count(own * config.seeds, 'network')} in {_count(programs, 'program')}, {_count(config.tasks, 'task')}"
    )
    return [trained, *measurements(config)]


def measurements(config: Config) -> list[str]:
    """What is measured in how many tasks: a line for all, and one for each probe that is due in fewer than three."""
    due = {name: len(range(0, config.tasks, _every(config, name))) for name in map(settings.label, config.probes)}
    if not due:
        return ["no probe measures anything"]
    by_count = itertools.groupby(sorted(due, key=due.__getitem__, reverse=True), due.__getitem__)
    said = "; ".join(f"{', '.join(names)} in {_count(count, 'task')}" for count, names in by_count)
    return [f"measured at the start and the end of tasks: {said}", *rare(config)]


def rare(config: Config) -> list[str]:
    """A line for every chosen probe that is due in fewer than three tasks."""
    lines = []
    for name in map(settings.label, config.probes):
        every = _every(config, name)
        count = len(range(0, config.tasks, every))
        if count < min(3, config.tasks):
            said = "--probe-every" if every == config.probe_every else f"--{name.replace('_', '-')}.every"
            lines.append(f"{name} will be measured in {count} of {config.tasks} tasks, every {every} ({said})")
    return lines


def lacking(models: Iterable[Model]) -> tuple[str, ...]:
    """A line for each network of one's own in which something was not found, without repetitions."""
    found = ("; ".join(f"model: {name} has no units: {why}" for name, why in one.lacking.items()) for one in models)
    return tuple(dict.fromkeys(filter(None, found)))


def duration(folder: Path, identity: str) -> str:
    """How long a study takes, as far as that is known.

    Args:
      folder: of the runs of its experiment.
      identity: see `settings.identity`.
    """
    seconds = lifecycle.lasted(folder, identity)
    if seconds is None:
        return "the time left is shown once a first part is trained"
    return f"an earlier run of these settings took {datetime.timedelta(seconds=round(seconds))}"


def _every(config: Config, probe: str) -> int:
    return math.lcm(config.probe_every, settings.entry(config, PROBES, probe).every)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
