"""Where numbers go while a run goes on: Weights & Biases and the terminal, behind one small protocol.

A sink sees what the record sees, reduced to one value a task and seed (`reduce_segment`). Records are the result;
a sink may fail without consequences (`Guarded`).
"""

from __future__ import annotations

import datetime
import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from plastax.record import MARKS, PathLike, Segment
from plastax.report.score import Quantity, Score, choose, notice

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    import wandb

logger = logging.getLogger(__name__)

MOST_LABELS = 64
"""Probe values with more entries than this (per seed and mark) are left to the records."""

RESAMPLES = 2000
"""Bootstrap resamples of the live intervals; the report takes more."""

EDGES = (1e-8, 1e4)
"""Absolute eigenvalues between which the live spectra have logarithmic bins, the same for every task and run."""

PER_DECADE = 20
"""Bins of a live spectrum per decade: 2 * 12 * 20 + 1 = 481 in all; W&B keeps at most 512."""


class Histogram(NamedTuple):
    """Counts ``[bins]`` (not necessarily whole numbers) between ascending ``edges`` ``[bins + 1]``."""

    counts: np.ndarray
    edges: np.ndarray


Metric = float | np.ndarray | Histogram
"""A number, one number a seed ``[S]``, or a histogram."""


class Sink(Protocol):
    """Where a run's numbers go. One `start`, any number of `log`, one `finish` for every method in turn."""

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Begins a method.

        Args:
          config: the content of ``config.json``.
          directory: the run directory.
          method: its name.
        """

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Takes the metrics of one segment, which belong to task number ``step``."""

    def finish(self) -> None:
        """Ends the method, whether it is complete or was interrupted."""


def reduce_segment(segment: Segment, config: Mapping[str, Any]) -> dict[str, Metric]:
    """What a sink is told about a segment.

    Args:
      segment: from `plastax.record.read_segment`, or the like.
      config: the content of ``config.json``; its ``dims`` and ``coords`` name the entries of vectors.

    Returns:
      ``train/<name>``: mean over updates ``[S]``. ``<probe>/<value>/<mark>[/<label>]``: ``[S]`` for each entry of a
      scalar or vector that was measured. ``<operator>/spectrum/<mark>``: histogram of the eigenvalues, pooled over
      seeds and probes. ``host/<name>``: numbers.
    """
    metrics: dict[str, Metric] = {f"host/{name}": value for name, value in segment.host.items()}
    with warnings.catch_warnings():
        # An update in which no episode ended has no return, and a segment may have no other.
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        metrics |= {f"train/{name}": np.nanmean(value, axis=1) for name, value in segment.train.items()}
    for name, value in segment.probe.items():
        dims = tuple(config.get("dims", {}).get(name, ()))
        for i, mark in enumerate(MARKS):
            entries = np.asarray(value[:, i], np.float64)
            if np.isnan(entries).all():
                continue
            if name.endswith("/nodes"):
                metrics |= _spectrum(name.removesuffix("/nodes"), segment.probe, i)
            elif entries.ndim == 1:
                metrics[f"{name}/{mark}"] = entries
            elif entries.ndim == 2 and entries.shape[1] <= MOST_LABELS:
                labels = config.get("coords", {}).get(dims[0] if dims else "", range(entries.shape[1]))
                metrics |= {f"{name}/{mark}/{label}": column for label, column in zip(labels, entries.T)}
    return metrics


def _spectrum(operator: str, probe: Mapping[str, np.ndarray], mark: int) -> dict[str, Metric]:
    """The spectrum of one operator at one mark; nothing if its weights are not there."""
    from plastax.report.spectra import histogram, symlog_edges

    if f"{operator}/weights" not in probe:
        return {}
    edges = symlog_edges(*EDGES, PER_DECADE)
    shares = histogram(probe[f"{operator}/nodes"][:, mark], probe[f"{operator}/weights"][:, mark], edges)
    return {f"{operator}/spectrum/{MARKS[mark]}": Histogram(shares, edges)} if np.isfinite(shares).all() else {}


def _score(metrics: Mapping[str, Metric]) -> tuple[Score | None, dict[Quantity, np.ndarray]]:
    """The score that a segment's metrics show, and the values ``[S]`` of its curve and its main quantity.

    A segment that does not end its task lacks what is measured at the end, and is judged by its updates.
    """
    values = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in values.items() if np.isfinite(value).any()}
    score = choose(values)
    quantities = dict.fromkeys((score.curve, score.main)) if score else {}
    return score, {quantity: values[quantity.metric] for quantity in quantities if quantity.metric in values}


class WandbSink:
    """Weights & Biases: one W&B run for every method, all seeds in it, grouped by the run id.

    A value per seed is logged as its mean under its name and its 95 % bootstrap interval under ``<name>/ci_low`` and
    ``<name>/ci_high``; the score (see `plastax.report.score`) as ``<name>/seed_<k>`` too, and summarised by its last,
    mean and best value. The horizontal axis is ``task``. A run on synthetic data has the tag ``synthetic``. Offline
    runs need neither network nor account and lie in ``<run dir>/wandb``; ``wandb sync`` uploads them later.

    Args:
      mode: ``offline``, ``online`` or ``disabled``.
      project: W&B project; by default the experiment's name.
    """

    def __init__(self, mode: Literal["offline", "online", "disabled"] = "offline", project: str | None = None):
        self.mode = mode
        self.project = project
        self._run: wandb.Run | None = None
        self._first_seed = 0
        self._defined: set[str] = set()

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Opens the W&B run of a method; goes on with it if the run was resumed. See `Sink.start`."""
        if self.mode == "disabled":
            return
        # Here and not on top: it takes most of a second.
        import wandb

        run_id = str(config["run_id"])
        settings = config.get("settings", {})
        self._first_seed = int(settings.get("first_seed", 0))
        self._defined = set()
        self._run = wandb.init(
            project=self.project or str(config.get("experiment", "plastax")),
            dir=str(directory),
            mode=self.mode,
            group=run_id,
            name=method,
            # Only letters, digits, - and _ are safe in an id, which becomes a file name.
            id="".join(c if c.isalnum() or c in "-_" else "-" for c in f"{run_id}-{method}"),
            # The offline mode knows no earlier run; it warns when told to resume one.
            resume="allow" if self.mode == "online" else None,
            # A later method of the study is another W&B run in the same process.
            reinit="create_new",
            config={"method": method, **settings, "hash": config.get("hash")},
            tags=["synthetic"] if notice(settings) else None,
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, login_timeout=10),
        )
        self._run.define_metric("task")
        self._run.define_metric("*", step_metric="task")

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Logs everything but what has no value in any seed. See `Sink.log`."""
        if self._run is None:
            return
        import wandb

        from plastax.report.statistics import mean_interval

        out: dict[str, Any] = {"task": step}
        seeds = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray)}
        if seeds:
            # All in one call: the bootstrap is vectorised.
            interval = mean_interval(np.stack(list(seeds.values()), axis=1), resamples=RESAMPLES)
            for i, name in enumerate(seeds):
                out |= {name: interval.mean[i], f"{name}/ci_low": interval.low[i], f"{name}/ci_high": interval.high[i]}
        score, values = _score(metrics)
        for quantity, numbers in values.items():
            name = quantity.metric
            out |= {f"{name}/seed_{self._first_seed + k}": number for k, number in enumerate(numbers)}
            if score is not None and name not in self._defined:
                best = "max" if score.higher_is_better else "min"
                self._run.define_metric(name, step_metric="task", summary=f"last,mean,{best}")
                self._defined.add(name)
        out |= {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        out = {name: float(value) for name, value in out.items() if np.isfinite(value)}
        for name, value in metrics.items():
            if isinstance(value, Histogram):
                out[name] = wandb.Histogram(np_histogram=(value.counts, value.edges))
        self._run.log({**out, "task": step})

    def finish(self) -> None:
        """Closes the W&B run. See `Sink.finish`."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


class ConsoleSink:
    """The terminal: a progress bar with task, speed, time left and current score; plain lines if it is not a terminal.

    Speed (environment steps or examples of all seeds together) and time left are without compilation, which is printed
    apart. The score (see `plastax.report.score`) is the mean over the segment's updates and the seeds; what is measured
    at the end of a task follows where one ends.

    Args:
      console: where to; standard error by default, so that standard output stays a program's own.
    """

    def __init__(self, console: rich.console.Console | None = None):
        import rich.console

        self.console = console or rich.console.Console(stderr=True)
        self._bar: rich.progress.Progress | None = None

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Shows an empty bar. See `Sink.start`."""
        settings = config["settings"]
        self._method = method
        self._tasks = int(settings["tasks"])
        self._updates = self._tasks * int(settings["updates_per_task"])
        self._seconds = 0.0
        self._seen = 0.0
        if text := notice(settings):
            self.console.print(f"{method}: {text}", style="bold red", highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            import rich.progress as progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.fields[method]}"),
                progress.BarColumn(),
                progress.TextColumn("{task.description}"),
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
            self.console.print(f"{self._method}: compiled in {numbers['compile_seconds']:.1f} s", highlight=False)
        length = numbers.get("length", self._updates / self._tasks)
        done = numbers.get("clock", self._seen) + length
        train = numbers.get("train_seconds", 0.0)
        self._seen += length
        self._seconds += train + numbers.get("probe_seconds", 0.0)
        score, values = _score(metrics)
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
            self.console.print(f"{self._method}: {line}", highlight=False, soft_wrap=True)
        else:
            self._bar.update(self._task, completed=done, description=line)

    def finish(self) -> None:
        """Leaves the bar as it is. See `Sink.finish`."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()


class Guarded:
    """A sink that cannot stop a run: when it raises, one warning is logged and it is not called again.

    Args:
      sink: any sink.
    """

    def __init__(self, sink: Sink):
        self._sink: Sink | None = sink

    def _call(self, name: str, *args: Any) -> None:
        if self._sink is None:
            return
        try:
            getattr(self._sink, name)(*args)
        # Whatever it is: hours of training are worth more than a curve on a web page.
        except Exception as error:
            logger.warning("%s.%s failed, going on without it: %r", type(self._sink).__name__, name, error)
            self._sink = None

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """See `Sink.start`."""
        self._call("start", config, directory, method)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """See `Sink.log`."""
        self._call("log", metrics, step)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._call("finish")
