"""The terminal: how far a run is, and how it does."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plastax import output
from plastax.record import PathLike
from plastax.report.score import notice
from plastax.tracking.base import Metric, score_values

if TYPE_CHECKING:
    import rich.console
    import rich.progress


class ConsoleSink:
    """The terminal: a progress bar with task, speed, time left and current score; plain lines if it is not a terminal.

    Speed (environment steps or examples of all seeds together) and time left are without compilation, which is printed
    apart. The score (see `plastax.report.score`) is the mean over the segment's updates and the seeds; what is measured
    at the end of a task follows where one ends.

    Args:
      console: where to; standard error by default, so that standard output stays a program's own.
    """

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or output.Console(stderr=True)
        self._bar: rich.progress.Progress | None = None

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Shows an empty bar. See `Sink.start`."""
        settings = config["settings"]
        self._method = method
        self._tasks = int(settings["tasks"])
        self._updates = self._tasks * int(settings["updates_per_task"])
        self._seconds = 0.0
        self._seen = 0.0
        self._first_seed = int(settings.get("first_seed", 0))
        self._frozen: set[int] = set()
        if text := notice(settings):
            output.say(self.console, f"{method}: {text}", "bold red")
        if self.console.is_terminal:
            import rich.progress as progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.fields[method]}", markup=False),
                progress.BarColumn(),
                progress.TextColumn("{task.description}", markup=False),
                console=self.console,
            )
            self._task = self._bar.add_task("starting", total=self._updates, method=method)
            self._bar.start()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Moves the bar on, or prints a line. See `Sink.log`."""
        numbers = {
            name.removeprefix("host/"): float(value)
            for name, value in metrics.items()
            if name.startswith("host/") and isinstance(value, int | float)
        }
        if numbers.get("compile_seconds", 0.0) > 0.0:
            output.say(self.console, f"{self._method}: compiled in {numbers['compile_seconds']:.1f} s")
        length = numbers.get("length", self._updates / self._tasks)
        self._tell_frozen(metrics, numbers.get("clock", self._seen), length, step)
        done = numbers.get("clock", self._seen) + length
        train = numbers.get("train_seconds", 0.0)
        self._seen += length
        self._seconds += train + numbers.get("probe_seconds", 0.0)
        score, values = score_values(metrics)
        parts = [f"task {step + 1}/{self._tasks}"]
        if train > 0.0 and "env_steps" in numbers:
            unit = "steps" if score is None else score.steps.split()[-1]
            parts.append(f"{numbers['env_steps'] / train:,.0f} {unit}/s")
        if self._seconds > 0.0:
            left = self._seconds / self._seen * max(self._updates - done, 0)
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        parts += [f"{quantity.label} {np.nanmean(value):.4g}" for quantity, value in values.items()]
        line = "  ".join(parts)
        if self._bar is None:
            output.say(self.console, f"{self._method}: {line}")
        else:
            self._bar.update(self._task, completed=done, description=line)

    def _tell_frozen(self, metrics: Mapping[str, Metric], clock: float, length: float, step: int) -> None:
        """Says once of every seed when it was frozen, see `plastax.segments`."""
        shares = np.atleast_1d(np.asarray(metrics.get("train/alive", 1.0), np.float64))
        for k in np.flatnonzero(shares < 1.0):
            if k not in self._frozen:
                self._frozen.add(int(k))
                update = round(clock + shares[k] * length)
                output.say(
                    self.console,
                    f"{self._method}: seed {self._first_seed + k} is frozen: its loss was not finite in update "
                    f"{update}, in task {step + 1}",
                    "bold red",
                )

    def finish(self) -> None:
        """Leaves the bar as it is. See `Sink.finish`."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()

    def fork(self) -> None:
        """A terminal has one bar. See `Sink.fork`."""
