"""Weights & Biases: live curves, artifacts, and replayed records."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plastax.errors import ConfigError
from plastax.records.files import PathLike
from plastax.records.layout import MARKS, Segment, arm_labels, read_arm, read_config, read_environment, short
from plastax.report.drawn import evenly
from plastax.report.score import notice
from plastax.report.spectra import signed_log
from plastax.report.statistics import mean_interval
from plastax.tracking import service
from plastax.tracking.base import Histogram, Metric, reduce_segment, score_values

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

Mode = Literal["offline", "online", "disabled"]

MOST_CHARACTERS = 128
"""The longest name that W&B accepts."""

MOST_SEEDS = 16
"""Up to this number of seeds, each seed's value of every single number is logged; beyond it, only that of the score."""

SERIES = 5
"""Number of tasks whose spectra are drawn as lines, spread evenly over the measured ones."""


def open_run(
    config: Mapping[str, Any],
    directory: PathLike,
    arm: str,
    mode: Mode,
    project: str | None = None,
    *,
    seed: int | None = None,
    out: PathLike | None = None,
    **options: Any,
) -> wandb.Run:
    """Opens a W&B run; online, continues one of the same name.

    If W&B cannot be reached, or nobody is logged in, logs a warning and opens an offline run.

    Args:
      config: the content of ``config.json``.
      directory: the run directory.
      arm: its label names the run, its settings are the run's configuration.
      mode: ``offline`` or ``online``.
      project: by default WANDB_PROJECT, or the experiment's name.
      seed: the run is of this seed only; the runs of all seeds are a group.
      out: the folder whose ``wandb`` gets W&B's files; by default the run directory.
      **options: other options of ``wandb.init``.
    """
    # Not imported at the top: it takes most of a second.
    import wandb

    service.end_in_time()
    run_id = str(config["run_id"])
    environment: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        environment = read_environment(directory)
    told = {name: environment.get(name) for name in ("git_revision", "git_dirty", "versions", "devices", "command")}
    name = arm if seed is None else f"{arm}-seed{seed}"

    def opened(mode: Mode) -> wandb.Run:
        if mode == "online" and not wandb.login(prompt=False):
            raise ConfigError("nobody is logged in (wandb login)")
        return wandb.init(
            project=project or os.environ.get("WANDB_PROJECT") or str(config.get("experiment", "plastax")),
            dir=str(out or directory),
            mode=mode,
            group=short(run_id if seed is None else f"{run_id}-{arm}", MOST_CHARACTERS),
            name=short(name, MOST_CHARACTERS),
            # The id becomes a file name, in which only letters, digits, - and _ are safe.
            id=short("".join(c if c.isalnum() or c in "-_" else "-" for c in f"{run_id}-{name}"), MOST_CHARACTERS),
            # The offline mode knows no earlier run, and warns if it is to resume one.
            resume="allow" if mode == "online" else None,
            # The next arm of the study is another W&B run in the same process.
            reinit="create_new",
            config={
                **settings_of(config, arm),
                **({} if seed is None else {"seed": seed}),
                "hash": config.get("hash"),
                "environment": told,
            },
            tags=["synthetic"] if notice(config.get("settings", {})) else None,
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, login_timeout=10),
            **options,
        )

    try:
        run = opened(mode)
    except Exception as error:
        if mode != "online":
            raise
        _warn(run_id, str(error))
        run = opened("offline")
    run.define_metric("task")
    run.define_metric("*", step_metric="task")
    return run


@functools.cache
def _warn(run_id: str, why: str) -> None:
    """Warns once for all arms of a run."""
    logger.warning("W&B cannot be used online (%s): %s is in offline files, which `wandb sync` uploads", why, run_id)


def settings_of(config: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The settings of an arm: those of the study, with those of a sweep in their places.

    Args:
      config: the content of ``config.json``.
      arm: its label.

    Returns:
      Settings as in ``config.json``, and ``method``; in a sweep also ``arm``, and the swept settings whose names do not
      say their places (``method.l2``).
    """
    chosen = copy.deepcopy(dict(config.get("settings", {})))
    swept = config.get("arms", {}).get(arm)
    if swept is None:
        return chosen | {"method": arm}
    for name, value in swept["settings"].items():
        group, _, setting = name.partition(".")
        # For the names see `plastax.study.sweep.arms`.
        groups = swept["method"].split("+") if group == "method" else [group, f"{group}_settings"]
        for place in (chosen[one] for one in groups if isinstance(chosen.get(one), dict) and setting in chosen[one]):
            place[setting] = value
        if group not in chosen or setting not in chosen[group]:
            chosen[name] = value
    return chosen | {"arm": arm, "method": swept["method"]}


def upload_command(directory: PathLike) -> str:
    """The command that uploads the offline W&B runs in a run directory; "" without any."""
    place = pathlib.Path(directory) / "wandb"
    return f"wandb sync {shlex.quote(str(place))}/offline-run-*" if any(place.glob("offline-run-*")) else ""


class WandbSink:
    """Weights & Biases: one W&B run for each arm, with all its seeds, grouped by the run id.

    A value per seed is logged as its mean under its name, its interquartile mean under ``<name>/iqm`` and its 95 %
    t interval under ``<name>/ci_low`` and ``<name>/ci_high``, all of the seeds that have a value: a frozen seed has
    none (tables count it as the worst of the study). Single numbers (not those of layers or thresholds) are logged as
    ``<name>/seed_<k>`` too, see `MOST_SEEDS`. The score (see `plastax.report.score`) also has ``<name>/seeds``, the
    number of seeds that have a value, and is summarised by its last, mean and best value.

    Spectra are histograms over symmetric-log bins, and at the end lines of some tasks: ``<operator>/density/<mark>``.
    The horizontal axis is ``task``. A run on synthetic data has the tag ``synthetic``.

    Offline runs need neither network nor account. They are in ``<run dir>/wandb``; ``wandb sync`` uploads them later,
    see `upload_command`. W&B's own step is the update at which a segment began. So an interrupted run is several files
    of one W&B run, each of which begins where the one before ended, and ``wandb sync`` makes one curve of them. After a
    kill the segments since the last checkpoint are in two files, with the same numbers.

    Args:
      mode: ``offline``, ``online`` or ``disabled``.
      project: W&B project; by default WANDB_PROJECT, or the experiment's name.
      **options: other options of `open_run`.
    """

    def __init__(self, mode: Mode = "offline", project: str | None = None, **options: Any):
        self.mode = mode
        self.project = project
        self._options = options
        self._run: wandb.Run | None = None
        self._step: int | None = None
        self._first_seed = 0
        self._defined: set[str] = set()
        self._spectra: dict[str, dict[int, Histogram]] = {}

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Opens the W&B run of a method; continues it if the run was resumed. See `Sink.start`."""
        if self.mode == "disabled":
            return
        self._first_seed = int(config.get("settings", {}).get("first_seed", 0))
        self._defined, self._spectra = set(), {}
        self._step = None
        self._run = open_run(config, directory, method, self.mode, self.project, **self._options)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Logs everything that has a value in some seed. See `Sink.log`."""
        if self._run is None:
            return
        import wandb

        out: dict[str, Any] = dict(_over_seeds(metrics))
        score, values = score_values(metrics)
        chosen = {quantity.metric for quantity in values}
        out |= {f"{quantity.metric}/seeds": np.isfinite(value).sum() for quantity, value in values.items()}
        for name, value in metrics.items():
            # Names of values of a layer or threshold do not end in the mark.
            single = name.startswith("train/") or name.rpartition("/")[2] in MARKS
            if isinstance(value, np.ndarray) and (name in chosen or (single and len(value) <= MOST_SEEDS)):
                out |= {f"{name}/seed_{self._first_seed + k}": number for k, number in enumerate(value)}
                if name not in self._defined:
                    self._define(name, len(value), score is not None and score.higher_is_better, name in chosen)
        out |= {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        out = {name: float(value) for name, value in out.items() if np.isfinite(value)}
        for name, value in metrics.items():
            if isinstance(value, Histogram):
                out[name] = wandb.Histogram(np_histogram=(value.counts, value.edges))
                self._spectra.setdefault(name, {})[step] = value
        clock, length = (out.get(f"host/{name}") for name in ("clock", "length"))
        self._run.log({**out, "task": step}, step=None if clock is None else int(clock), commit=True)
        # The step of what is logged at the end: after this segment, before the next one, where a resumed run continues.
        self._step = None if clock is None or length is None else int(clock) + max(int(length) - 1, 1)

    def _define(self, name: str, seeds: int, higher_is_better: bool, is_score: bool) -> None:
        """Defines summaries of the score; hides the panels of other metrics' single seeds."""
        assert self._run is not None
        self._defined.add(name)
        if is_score:
            best = "max" if higher_is_better else "min"
            self._run.define_metric(name, step_metric="task", summary=f"last,mean,{best}")
        for k in range(seeds if not is_score else 0):
            self._run.define_metric(f"{name}/seed_{self._first_seed + k}", step_metric="task", hidden=True)

    def finish(self) -> None:
        """Draws the spectra of some tasks as lines and closes the W&B run. See `Sink.finish`."""
        if self._run is not None:
            run, self._run = self._run, None
            try:
                if self._spectra:
                    last = max(max(of_tasks) for of_tasks in self._spectra.values())
                    run.log({**_densities(self._spectra), "task": last}, step=self._step, commit=True)
            finally:
                run.finish()

    def fork(self) -> WandbSink:
        """See `Sink.fork`."""
        return WandbSink(self.mode, self.project, **self._options)


def _over_seeds(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Mean, interquartile mean and interval over the seeds that have a value; of a single seed, its value."""
    seeds = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray)}
    if not seeds:
        return {}
    from scipy import stats  # Half a second, which every start of a run would pay.

    values = np.stack(list(seeds.values()), axis=1)
    interval = mean_interval(values)
    out: dict[str, float] = {}
    for i, name in enumerate(seeds):
        out[name] = interval.mean[i]
        if len(values) > 1:
            there = values[np.isfinite(values[:, i]), i]
            out[f"{name}/iqm"] = stats.trim_mean(there, 0.25) if len(there) else np.nan
            out |= {f"{name}/ci_low": interval.low[i], f"{name}/ci_high": interval.high[i]}
    return out


def _densities(spectra: Mapping[str, Mapping[int, Histogram]]) -> dict[str, Any]:
    """Every spectrum in some tasks as lines over a signed logarithm of the eigenvalue."""
    import wandb

    out = {}
    for name, of_tasks in spectra.items():
        chosen = evenly(sorted(of_tasks), SERIES)
        edges = of_tasks[chosen[0]].edges
        places = signed_log((edges[1:] + edges[:-1]) / 2, float(np.abs(edges).min()))
        out[name.replace("/spectrum/", "/density/")] = wandb.plot.line_series(
            xs=places.tolist(),
            ys=[of_tasks[task].counts.tolist() for task in chosen],
            keys=[f"task {task}" for task in chosen],
            title=f"{name}: share of the eigenvalues",
            xname=f"sign(e) (1 + log10(|e| / {float(np.abs(edges).min()):.0e}))",
        )
    return out


def publish(directory: PathLike, mode: Mode = "offline", project: str | None = None) -> None:
    """Logs records, report and figures of a finished study as artifacts of a W&B run ``report`` in the study's group.

    Args:
      directory: the run directory.
      mode: ``offline``, ``online`` or ``disabled``.
      project: see `WandbSink`.
    """
    if mode == "disabled":
        return
    import wandb

    directory = pathlib.Path(directory)
    config = read_config(directory)
    run = open_run(config, directory, "report", mode, project, job_type="report")
    try:
        contents = {
            "record": ("config.json", "environment.json", "records"),
            "report": ("report.html", "summary.csv", "figures"),
        }
        for kind, names in contents.items():
            artifact = wandb.Artifact(f"{kind}-{config['run_id']}", type=kind, metadata={"hash": config.get("hash")})
            for path in (p for name in names for p in [directory / name, *sorted((directory / name).rglob("*"))]):
                if path.is_file():
                    # Immutable: W&B does not copy the file to its cache first.
                    artifact.add_file(str(path), name=str(path.relative_to(directory)), policy="immutable")
            run.log_artifact(artifact)
        if (overview := directory / "figures" / "overview.png").exists():
            run.log({"report/overview": wandb.Image(str(overview)), "task": 0})
    finally:
        run.finish()


def replay(
    directory: PathLike,
    mode: Mode = "offline",
    project: str | None = None,
    *,
    per_seed: bool = False,
    out: PathLike | None = None,
) -> int:
    """Writes W&B runs from the records of a study, as `WandbSink` would have during the run.

    Args:
      directory: the run directory.
      mode: ``offline`` or ``online``.
      project: see `WandbSink`.
      per_seed: one W&B run for each seed, grouped by ``<run id>-<arm>``, with plain names and ``seed`` in its
        configuration, so that W&B can average; otherwise one for each arm, as during the run.
      out: the folder whose ``wandb`` gets W&B's files; by default the run directory.

    Returns:
      The number of W&B runs.

    Raises:
      FileNotFoundError: the run directory does not exist.
      ConfigError: nothing has been recorded.
    """
    directory = pathlib.Path(directory)
    config = read_config(directory)
    first = int(config.get("settings", {}).get("first_seed", 0))
    count = 0
    for method in arm_labels(config):
        segments = read_arm(directory, config, method)
        arrays = [array for segment in segments for array in (*segment.train.values(), *segment.probe.values())]
        seeds = len(arrays[0]) if arrays else 0
        for k in range(seeds) if per_seed else range(min(seeds, 1)):
            sink, rows = WandbSink(mode, project, out=out), slice(None)
            if per_seed:
                sink = WandbSink(mode, project, out=out, seed=first + k, job_type="seed")
                rows = slice(k, k + 1)
            sink.start(config, directory, method)
            for segment in segments:
                sink.log(reduce_segment(_of(segment, rows), config, method), int(segment.host["task"]))
            sink.finish()
            count += 1
    if not count:
        raise ConfigError(f"run={str(directory)!r} has no records yet; there is nothing to export")
    return count


def _of(segment: Segment, rows: slice) -> Segment:
    """Some seeds of a segment."""
    train, probe = ({name: array[rows] for name, array in part.items()} for part in (segment.train, segment.probe))
    return Segment(train, probe, segment.host)
