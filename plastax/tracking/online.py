"""Weights & Biases during a run: live curves and spectra."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plastax.errors import ConfigError
from plastax.records.files import PathLike
from plastax.records.layout import read_environment, short
from plastax.report.drawn import evenly
from plastax.report.score import notice
from plastax.report.spectra import signed_log
from plastax.report.statistics import mean_interval
from plastax.tracking import dashboard, service
from plastax.tracking.base import Histogram, Metric, Row, rows, score_values
from plastax.tracking.options import Mode

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

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
    """Opens a W&B run, or the next part of one with the same id.

    If W&B cannot be reached, or nobody is logged in, logs a warning and opens an offline run.

    Args:
      config: the content of ``config.json``; its ``wandb_settings`` are those of `options.Wandb`.
      directory: the run directory.
      arm: its label names the run, its settings are the run's configuration.
      mode: ``offline``, ``online`` or ``online-or-offline``.
      project: instead of the one in the settings.
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
    arm_name = arm if seed is None else f"{arm}-seed{seed}"
    settings = config.get("settings", {})
    asked = settings.get("wandb_settings", {})

    def chosen(setting: str, variable: str, otherwise: str | None) -> str | None:
        return asked.get(setting) or os.environ.get(variable) or otherwise

    group, study = chosen("group", "WANDB_RUN_GROUP", run_id), chosen("name", "WANDB_NAME", None)
    tags = [*asked.get("tags", ()), *filter(None, os.environ.get("WANDB_TAGS", "").split(","))]

    def opened(online: bool) -> wandb.Run:
        if online and not wandb.login(prompt=False):
            raise ConfigError("nobody is logged in (wandb login)")
        return wandb.init(
            project=project or chosen("project", "WANDB_PROJECT", str(config.get("experiment", "plastax"))),
            entity=chosen("entity", "WANDB_ENTITY", None),
            dir=str(out or directory),
            mode="online" if online else "offline",
            group=short(f"{group}" if seed is None else f"{group}-{arm}", MOST_CHARACTERS),
            name=short(f"{study}-{arm_name}" if study else arm_name, MOST_CHARACTERS),
            # The id becomes a file name, in which only letters, digits, - and _ are safe.
            id=short("".join(c if c.isalnum() or c in "-_" else "-" for c in f"{run_id}-{arm_name}"), MOST_CHARACTERS),
            # `wandb sync` reads this too: the files of a resumed run become one run.
            resume="allow",
            # The next arm of the study is another W&B run in the same process.
            reinit="create_new",
            config={
                **settings_of(config, arm),
                **({} if seed is None else {"seed": seed}),
                "hash": config.get("hash"),
                **({"own": config["own"]} if "own" in config else {}),
                "environment": told,
            },
            tags=tags + ["synthetic"] * bool(notice(settings)),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, login_timeout=10),
            **options,
        )

    try:
        return opened(mode.startswith("online"))
    except Exception as error:
        if mode == "offline":
            raise
        _warn(run_id, str(error))
        return opened(False)


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
    chosen.pop("wandb_settings", None)  # W&B shows them itself.
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

    ``train/<name>`` are curves over ``global_step``: the environment steps or examples that each network has seen. All
    else is over ``task``: the means of those curves, ``task/<name>``, and what probes measured. A value per seed is
    logged as its mean under its name and its 95 % t interval under ``<name>/ci_low`` and ``<name>/ci_high``, of the
    seeds that have a value: a frozen seed has none (tables count it as the worst of the study). Single numbers (not
    those of layers or thresholds) of a task are logged as ``<name>/seed_<k>`` too, see `MOST_SEEDS`. The score (see
    `plastax.report.score`) also has its interquartile mean ``<name>/iqm`` and ``<name>/seeds``, the number of seeds
    that have a value, and is summarised by its last, mean and best value.

    A workspace shows means of what the dashboard shows (see `dashboard.shown`) and of probes that it does not know.
    Everything else is logged, and hidden until a panel asks for it.

    Spectra are histograms over symmetric-log bins, and at the end of the run lines of some tasks:
    ``<operator>/density/<mark>``. A run on synthetic data has the tag ``synthetic``.

    Offline runs need neither network nor account. They are in ``<run dir>/wandb``; ``wandb sync`` uploads them later,
    see `upload_command`. W&B's own step is the update. So an interrupted run is several files of one W&B run, each of
    which begins where the one before ended, and ``wandb sync`` makes one curve of them. After a kill the segments since
    the last checkpoint are in two files, with the same numbers.

    Args:
      mode: see `options.Mode`.
      project: see `open_run`.
      **options: other options of `open_run`.
    """

    def __init__(self, mode: Mode = "offline", project: str | None = None, **options: Any):
        self.mode = mode
        self.project = project
        self._options = options
        self._run: wandb.Run | None = None
        self._config: Mapping[str, Any] = {}
        self._defined: set[str] = set()
        self._spectra: dict[str, dict[int, Histogram]] = {}

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Opens the W&B run of a method; continues it if the run was resumed. See `Sink.start`."""
        if self.mode == "disabled":
            return
        self._config, self._defined, self._spectra = config, set(), {}
        self._run = open_run(config, directory, method, self.mode, self.project, **self._options)
        for name in ("global_step", "task"):
            self._run.define_metric(name, hidden=True)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Logs everything that has a value in some seed. See `Sink.log`."""
        if self._run is None:
            return
        points = [(row.update, _curve(row, step)) for row in rows(metrics, self._config)]
        of_task = self._of_task(metrics, step)
        self._define({name: None for _, point in points for name in point}, "global_step")
        self._define(of_task, "task")
        clock = metrics.get("host/clock")
        last, point = points.pop() if points else (None if clock is None else int(clock), {})  # type: ignore[arg-type]
        for update, values in points:
            self._run.log(values, step=update, commit=True)
        self._run.log(point | of_task, step=last, commit=True)

    def _of_task(self, metrics: Mapping[str, Metric], step: int) -> dict[str, Any]:
        """What is shown over tasks."""
        import wandb

        first = int(self._config.get("settings", {}).get("first_seed", 0))
        seeds = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray) and value.ndim == 1}
        score, judged = score_values(metrics)
        chosen = {quantity.metric for quantity in judged}
        best = "max" if score is not None and score.higher_is_better else "min"
        for name in chosen - self._defined:
            assert self._run is not None
            self._defined.add(name)
            self._run.define_metric(name, step_metric="task", summary=f"last,mean,{best}")
        out: dict[str, Any] = _over_seeds(seeds)
        for name, value in seeds.items():
            if name in chosen:
                out[f"{name}/seeds"] = np.isfinite(value).sum()
                out[f"{name}/iqm"] = _interquartile_mean(value)
            if name in chosen or (dashboard.single(name) and len(value) <= MOST_SEEDS):
                out |= {f"{name}/seed_{first + k}": number for k, number in enumerate(value)}
        out |= {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        out = {name: float(value) for name, value in out.items() if np.isfinite(value)}
        for name, histogram in metrics.items():
            if isinstance(histogram, Histogram):
                out[name] = wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
                self._spectra.setdefault(name, {})[step] = histogram
        settings = self._config.get("settings", {})
        if metrics.get("host/clock", -1) + metrics.get("host/length", 0) == _updates(settings):  # type: ignore[operator]
            out |= _densities(self._spectra)
        return out | {"task": step}

    def _define(self, names: Mapping[str, Any], axis: str) -> None:
        """Tells W&B the horizontal axis of each metric, and hides what a workspace does not show."""
        assert self._run is not None
        for name in names.keys() - self._defined - {"global_step", "task"}:
            self._defined.add(name)
            self._run.define_metric(name, step_metric=axis, hidden=not dashboard.shown(name))

    def finish(self) -> None:
        """Closes the W&B run. See `Sink.finish`."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()

    def fork(self) -> WandbSink:
        """See `Sink.fork`."""
        return WandbSink(self.mode, self.project, **self._options)


def _updates(settings: Mapping[str, Any]) -> int:
    return int(settings.get("tasks", 0)) * int(settings.get("updates_per_task", 0))


def _curve(row: Row, task: int) -> dict[str, float]:
    """One point of the curves by update."""
    out = {name: value for name, value in _over_seeds(row.values).items() if np.isfinite(value)}
    return out | {"global_step": row.global_step, "task": task}


def _over_seeds(seeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over the seeds that have a value and, of single numbers of several seeds, its interval."""
    if not seeds:
        return {}
    values = np.stack(list(seeds.values()), axis=1)
    interval = mean_interval(values)
    out: dict[str, float] = {}
    for i, name in enumerate(seeds):
        out[name] = interval.mean[i]
        if len(values) > 1 and dashboard.single(name):
            out |= {f"{name}/ci_low": interval.low[i], f"{name}/ci_high": interval.high[i]}
    return out


def _interquartile_mean(values: np.ndarray) -> float:
    from scipy import stats  # Half a second, which every start of a run would pay.

    there = values[np.isfinite(values)]
    return stats.trim_mean(there, 0.25) if len(there) else np.nan


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
