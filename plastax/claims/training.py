"""The runs that claims share: trained once, each a normal run directory, and continued after a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastax import output, report
from plastax.claims.judging import Evidence
from plastax.errors import ConfigError
from plastax.records import lifecycle
from plastax.records.layout import read_config
from plastax.runs.networks import TaskEnd
from plastax.study import settings, sweep
from plastax.study.api import Study

PAUSE = 60.0
"""Seconds between two lines of a run's own progress."""
STREAM = ("stream", "stream_settings", "data", "data_checksum", "steps_per_task", "training", "agent", "ppo", "dqn")
"""Settings that decide what tasks a run has and how long it trains on them."""


@dataclass(frozen=True)
class Planned:
    """A run that claims need.

    Attributes:
      name: what claims call it.
      study: its study.
      natural: see `Evidence`.
      record: the command that trains it.
    """

    name: str
    study: Study
    natural: float
    record: str

    @property
    def segments(self) -> int:
        """Segments of all arms."""
        config = self.study.config
        return len(sweep.arms(config, self.study.experiment.fixed)) * config.tasks * config.segments_per_task

    def finished(self) -> Path | None:
        """The newest finished run of these settings, whatever code it was trained with; None if there is none."""
        folder = self.study.config.runs_dir / self.study.experiment.name
        ended = (path for path in sorted(folder.glob("*"), reverse=True) if lifecycle.status(path).state == "finished")
        return next((path for path in ended if not self._differing(path)), None)

    def _differing(self, run: Path, *names: str) -> dict[str, tuple[Any, Any]]:
        """The settings of a run that differ from the planned ones; of all that are planned, or of some."""
        stored, wanted = read_config(run)["settings"], settings.to_json(self.study.config)
        asked = [name for name in names or wanted if name in wanted]
        then, now = ({name: one.get(name) for name in asked} for one in (stored, wanted))
        return lifecycle.differences(then, now, settings.asides(self.study.config))

    def read(self, run: Path) -> Evidence:
        """A run as evidence."""
        return Evidence(self.name, report.read(run), self.natural, self.record)

    def given(self, run: Path) -> Evidence:
        """A run that a user gives in place of the planned one.

        Raises:
          ConfigError: it is no run, its stream or training is another one, or it is too small for any verdict.
        """
        if not (run / "config.json").exists():
            raise ConfigError(f"{self.name}: {run} is not a run directory; record one with: {self.record}")
        evidence = self.read(run)
        if differing := self._differing(run, *STREAM):
            raise evidence.refuse(f"{run} has another stream or training ({lifecycle.in_words(differing)})")
        evidence.check()
        return evidence


def train(planned: Mapping[str, Planned], console: output.Console) -> dict[str, Path]:
    """Trains what is not trained yet, one run after another, under one bar; a finished run is read again.

    Returns:
      Name -> run directory.

    Raises:
      plastax.errors.Stopped: a signal asked it to stop; the same call continues.
      plastax.errors.RunError: a run cannot continue.
    """
    done, found = 0, {}
    with _bar(console, sum(one.segments for one in planned.values())) as advance:
        for place, (name, one) in enumerate(planned.items(), 1):
            directory = one.finished()
            output.say(console, f"run {place} of {len(planned)}, {name}: {directory or 'is trained now'}")
            advance(done, name)
            if directory is None:
                directory = _trained(one, done, advance)
            found[name] = directory
            done += one.segments
            advance(done, name)
    return found


def _trained(one: Planned, before: int, advance: Callable[[float, str], None]) -> Path:
    # It is printed above the bar, line by line: two bars at once would overwrite each other.
    console = output.Console(stderr=True, force_terminal=False)
    console.pause = PAUSE

    def watch(end: TaskEnd) -> None:
        advance(before + lifecycle.status(end.directory).done, one.name)

    directory = one.study.experiment.run(one.study.config, console, callback=watch, verbose=False)
    assert directory is not None
    return directory


@contextlib.contextmanager
def _bar(console: output.Console, total: int) -> Iterator[Callable[[float, str], None]]:
    """A bar over all runs; gives a function ``(segments done, name of the run)`` that moves it."""
    from rich import progress

    columns = (
        progress.TextColumn("claims: {task.description}", markup=False),
        progress.BarColumn(None),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, expand=True) as shown:
        task = shown.add_task("", total=total)
        yield lambda done, name: shown.update(task, completed=done, description=name)
