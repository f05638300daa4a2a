"""The terminal: progress and current score of a run."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plastax import output
from plastax.records.layout import PathLike
from plastax.report.score import notice
from plastax.report.wording import worded
from plastax.tracking.base import Metric, score_values

if TYPE_CHECKING:
    import rich.console
    import rich.live
    import rich.progress


class _ArmSegment(NamedTuple):
    """What the line shows of one arm: the host's numbers, the name of its steps, label -> values of the seeds."""

    numbers: dict[str, float]
    steps: str
    values: dict[str, np.ndarray]


class Lines:
    """The live lines at the end of a terminal: those of the arms that train side by side.

    Args:
      console: standard error by default, which leaves standard output to the program.
    """

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or output.Console(stderr=True)
        self._shown: list[Callable[[], rich.console.RenderableType]] = []
        self._live: rich.live.Live | None = None
        self._lock = threading.Lock()

    def add(self, line: Callable[[], rich.console.RenderableType]) -> None:
        """Shows what ``line`` returns, as it changes."""
        import rich.live

        with self._lock:
            self._shown.append(line)
            if self._live is None:
                self._live = rich.live.Live(get_renderable=self._all, console=self.console)
                self._live.start()

    def remove(self, line: Callable[[], rich.console.RenderableType]) -> None:
        """Leaves a line as it is, above those that still change."""
        with self._lock:
            if self._shown == [line] and self._live is not None:
                self._live.stop()
                self._live = None
            else:
                self.console.print(line())
            self._shown.remove(line)

    def _all(self) -> rich.console.Group:
        import rich.console

        return rich.console.Group(*(line() for line in self._shown))


class ConsoleSink:
    """The terminal: a bar with task, speed and time left, and the current score below it; plain lines elsewhere.

    Speed (environment steps or examples of all seeds together) and time left are without compilation, which has a line
    of its own. The score (see `plastax.report.score`) is the mean over the segment's updates and the seeds that have a
    value; the line says how many do where others are frozen or no episode ended. What is measured at the end of a task
    follows where one ends. Arms that are trained at the same time share a line, with the lowest and the highest score.

    Args:
      console: where; `Lines` of a console for sinks of arms that train side by side.
    """

    def __init__(self, console: rich.console.Console | Lines | None = None):
        self._lines = console if isinstance(console, Lines) else Lines(console)
        self.console = self._lines.console
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._frozen: dict[str, set[int]] = {}
        """Arms of the line -> their seeds that were reported as frozen."""
        self._parts: list[_ArmSegment] = []
        self._told = -math.inf

    @property
    def _name(self) -> str:
        first, *more = self._frozen
        return f"{first} and {len(more)} more" if more else first

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Shows an empty bar. See `Sink.start`."""
        self._frozen[method] = set()
        if len(self._frozen) > 1:
            self._below = self._name
            return
        settings, self._axis = config["settings"], str(config.get("axis", "task"))
        self._tasks = int(settings["tasks"])
        self._updates = self._tasks * int(settings["updates_per_task"])
        self._seconds = 0.0
        self._seen = 0.0
        self._first_seed = int(settings.get("first_seed", 0))
        if text := notice(settings):
            output.say(self.console, f"{method}: {text}", "bold red")
        self._below = self._name
        if self.console.is_terminal:
            import rich.progress as progress

            # The scores have a line of their own: beside the bar they would be cut on a narrow terminal.
            self._bar = progress.Progress(
                progress.BarColumn(None), progress.TextColumn("{task.description}", markup=False), expand=True
            )
            self._task = self._bar.add_task(f"{self._axis} 1/{self._tasks}", total=self._updates)
            self._lines.add(self._line)

    def _line(self) -> rich.console.Group:
        import rich.console

        return rich.console.Group(self._bar or "", self._below)

    def log(self, metrics: Mapping[str, Metric], step: int, method: str | None = None) -> None:
        """Moves the bar or prints a line, once all arms have logged this segment. See `Sink.log`."""
        numbers = {
            name.removeprefix("host/"): float(value)
            for name, value in metrics.items()
            if name.startswith("host/") and isinstance(value, int | float)
        }
        clock, length = numbers.get("clock", self._seen), numbers.get("length", self._updates / self._tasks)
        self._tell_frozen(method or self._name, metrics, clock, length, step)
        score, values = score_values(metrics)
        of_seeds = {quantity.label: value for quantity, value in values.items()}
        self._parts.append(_ArmSegment(numbers, "steps" if score is None else score.steps.split()[-1], of_seeds))
        if len(self._parts) < len(self._frozen):
            return
        parts, self._parts = self._parts, []
        # Each arm has its part of what the host measured for all; train_seconds include those of probes.
        compiling, seconds, steps = (
            sum(part.numbers.get(name, 0.0) for part in parts)
            for name in ("compile_seconds", "train_seconds", "env_steps")
        )
        if compiling > 0.0:
            output.say(self.console, f"{self._name}: compiled in {compiling:.1f} s")
        self._seen += length
        self._seconds += seconds
        shown = [f"task {step + 1}/{self._tasks}"]
        if seconds > 0.0 and steps > 0.0:
            shown.append(f"{steps / seconds:,.0f} {parts[0].steps}/s")
        if self._seconds > 0.0:
            left = self._seconds / self._seen * max(self._updates - clock - length, 0)
            shown.append(f"{datetime.timedelta(seconds=round(left))} left")
        scores = [self._score(label, parts) for label in parts[0].values]
        if scores and not any(score.endswith(" seeds)") for score in scores):
            seeds = f"{len(next(iter(parts[0].values.values())))} seeds)"
            scores.append(f"(means of {len(parts)} arms x {seeds}" if len(parts) > 1 else f"(mean of {seeds}")
        shown, scores = [worded(one, self._axis) for one in shown], [worded(one, self._axis) for one in scores]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=clock + length, description="  ".join(shown))
            self._below = "  ".join([f"{self._name}:", *scores])
        elif (now := time.monotonic()) - self._told >= getattr(self.console, "pause", 0.0):
            self._told = now
            output.say(self.console, f"{self._name}: {'  '.join(shown + scores)}")

    @staticmethod
    def _score(label: str, parts: Sequence[_ArmSegment]) -> str:
        """A quantity: the mean over seeds, of several arms the lowest and the highest."""
        over_arms = [part.values[label] for part in parts if label in part.values]
        means, seeds = [np.nanmean(value) for value in over_arms], np.concatenate(over_arms)
        there = np.isfinite(seeds).sum()
        return (
            f"{label} {min(means):.4g}"
            + (f" to {max(means):.4g}" if len(parts) > 1 else "")
            + (f" ({there} of {len(seeds)} seeds)" if there < len(seeds) else "")
        )

    def _tell_frozen(self, method: str, metrics: Mapping[str, Metric], clock: float, length: float, step: int) -> None:
        """Reports once for each seed when it was frozen, see `plastax.program.segments`."""
        shares = np.atleast_1d(np.asarray(metrics.get("task/alive", 1.0), np.float64))
        for k in np.flatnonzero(shares < 1.0):
            if k not in self._frozen[method]:
                self._frozen[method].add(int(k))
                update = round(clock + shares[k] * length)
                output.say(
                    self.console,
                    f"{method}: seed {self._first_seed + k} is frozen: its loss was not finite in update "
                    f"{update}, in task {step} (tasks are numbered from 0)",
                    "bold red",
                )

    def finish(self) -> None:
        """Leaves the bar as it is. See `Sink.finish`."""
        self._frozen, self._parts = {}, []
        if self._bar is not None:
            self._lines.remove(self._line)
            self._bar = None

    def fork(self) -> _Arm:
        """A sink for an arm that shares the only line of the terminal. See `Sink.fork`."""
        return _Arm(self)


class _Arm:
    """One of the arms that share a line."""

    def __init__(self, line: ConsoleSink):
        self._line = line

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        self._method = method
        self._line.start(config, directory, method)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self._line.log(metrics, step, self._method)

    def finish(self) -> None:
        self._line.finish()

    def fork(self) -> _Arm:
        return _Arm(self._line)
