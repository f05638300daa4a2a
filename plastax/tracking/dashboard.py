"""A W&B dashboard that puts the spectra over tasks beside what the network achieves."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from plastax.errors import ConfigError
from plastax.records.files import PathLike
from plastax.records.layout import MARKS, arm_labels, read_arm, read_config
from plastax.report.score import SCORES
from plastax.tracking.base import reduce_segment

NAME = "Spectra over tasks"

_EXTRA = re.compile(r"/(ci_low|ci_high|iqm|seeds|seed_\d+)$")
"""What `WandbSink` logs of a metric beside its mean over seeds."""


class Panel(NamedTuple):
    """One panel: lines over tasks (or a histogram's heat map), or, if ``lines``, the spectra of some tasks.

    ``prefix`` stands for all metrics that begin with it, such as one for each layer or threshold. Of layers ``metrics``
    has their mean.
    """

    title: str
    metrics: tuple[str, ...] = ()
    lines: bool = False
    prefix: str = ""


class PanelGroup(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _with_interval(title: str, metric: str) -> Panel:
    return Panel(title, (metric, f"{metric}/ci_low", f"{metric}/ci_high"))


def groups(metrics: Collection[str] | None = None) -> list[PanelGroup]:
    """All panels of the dashboard.

    Args:
      metrics: names from `plastax.tracking.reduce_segment`; panels without any of them are left out. None: all panels.
    """
    judged = {q.metric: q.label for score in SCORES for q in (score.main, score.curve)}
    operators = {"hessian": "Hessian", "ggn": "GGN"}
    marks = {"init": "at task start", "end": "at task end"}
    spectra, lines, numbers = [], [], []
    for operator, name in operators.items():
        for mark, where in marks.items():
            spectra.append(Panel(f"{name} spectrum {where}", (f"{operator}/spectrum/{mark}",)))
            lines.append(Panel(f"{name} spectrum {where}, some tasks", (f"{operator}/density/{mark}",), lines=True))
        for value, label in {"effective_rank": "effective rank", "largest": "largest eigenvalue"}.items():
            numbers.append(_with_interval(f"{name} {label} at task start", f"{operator}/{value}/init"))
        numbers.append(Panel(f"{name} eps-rank at task start", prefix=f"{operator}/rank/init/"))
        for value, label in {"rank": "eps-rank", "effective_rank": "effective rank", "spectrum": "spectrum"}.items():
            title = f"{name} {label} by block at task start"
            numbers.append(Panel(title, prefix=f"{operator}/block_{value}/init/"))
        numbers.append(_with_interval(f"{name} share outside of blocks", f"{operator}/off_diagonal/init"))
    network = [
        Panel(label, (f"{value}/end/mean",), prefix=f"{value}/end/")
        for label, value in {
            "feature effective rank at task end": "features/effective_rank",
            "dormant units at task end, share": "features/dormant_fraction",
            "weight norm at task end": "weights/norm",
            "effective rank of Kronecker factors A at task end": "kronecker/a_effective_rank",
            "effective rank of Kronecker factors G at task end": "kronecker/g_effective_rank",
        }.items()
    ]
    network.append(_with_interval("gradient norm at task start", "gradient/norm/init"))
    found = [
        PanelGroup("Does it still learn?", tuple(_with_interval(label, name) for name, label in judged.items())),
        PanelGroup(NAME, (*spectra, *lines)),
        PanelGroup("Curvature in numbers", tuple(numbers)),
        PanelGroup("The network", tuple(network)),
    ]
    if metrics is None:
        return found
    there = {*metrics, *(name.replace("/spectrum/", "/density/") for name in metrics)}
    kept = []
    for part in found:
        named = [
            panel._replace(metrics=tuple(sorted(n for n in metrics if n.startswith(panel.prefix))), prefix="")
            if panel.prefix
            else panel
            for panel in part.panels
        ]
        kept.append(PanelGroup(part.title, tuple(panel for panel in named if there & set(panel.metrics))))
    return [part for part in kept if part.panels]


def single(metric: str) -> bool:
    """Whether a metric is one number for each seed. Names of values for layers or thresholds do not end in a mark."""
    return metric.startswith(("train/", "task/")) or metric.rpartition("/")[2] in MARKS


@functools.cache
def shown(metric: str) -> bool:
    """Whether a tracker shows a metric by default: the dashboard shows it, or does not know its probe.

    >>> shown("train/loss"), shown("train/loss/ci_low"), shown("host/clock"), shown("mine/norm/end")
    (True, False, False, True)
    """
    kind = metric.partition("/")[0]
    if _EXTRA.search(metric) or kind == "host":
        return False
    panels = [panel for part in groups() for panel in part.panels]
    names = {panel.metrics[0] for panel in panels if panel.metrics}
    prefixes = tuple(panel.prefix for panel in panels if not panel.metrics)
    if kind in {name.partition("/")[0] for name in (*names, *prefixes)} - {"task", "evaluation"}:
        return metric in names or metric.startswith(prefixes)
    return single(metric) or metric.endswith("/mean")


def measured(directory: PathLike) -> set[str]:
    """Names of all metrics of a run, see `plastax.tracking.reduce_segment`."""
    directory = pathlib.Path(directory)
    config = read_config(directory)
    names: set[str] = set()
    for method in arm_labels(config):
        for segment in read_arm(directory, config, method):
            found = reduce_segment(segment, config, method)
            names |= {name for name, value in found.items() if not isinstance(value, float)}
    return names


def workspace(project: str, metrics: Collection[str] | None = None) -> Any:
    """The dashboard as a ``wandb_workspaces`` workspace, not saved yet.

    Args:
      project: ``entity/project``.
      metrics: see `groups`.

    Raises:
      ConfigError: ``project`` has another form, or the package is missing.
    """
    entity, slash, name = project.partition("/")
    if not (entity and slash and name) or "/" in name:
        raise ConfigError(f"project={project!r} is not of the form ENTITY/PROJECT")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            "the W&B dashboard needs a package that is missing: pip install 'wandb-workspaces>=0.4.13'"
        ) from error

    def drawn(panel: Panel) -> Any:
        if panel.lines:
            return wr.CustomChart(
                query={"summaryTable": {"tableKey": f"{panel.metrics[0]}_table"}},
                chart_name="wandb/lineseries/v0",
                chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
                chart_strings={"title": panel.title},
            )
        which = {"metric_regex": f"^{panel.prefix}"} if panel.prefix else {"y": list(panel.metrics)}
        return wr.LinePlot(title=panel.title, x="task", title_x="task", **which)

    sections = [
        ws.Section(part.title, [drawn(panel) for panel in part.panels], is_open=True) for part in groups(metrics)
    ]
    settings = ws.WorkspaceSettings(x_axis="task")
    return ws.Workspace(entity=entity, project=name, name=NAME, sections=sections, settings=settings)


def create(project: str, run: PathLike | None = None) -> str:
    """Creates the dashboard on W&B.

    Args:
      project: ``entity/project``.
      run: a run directory, for panels of what it has measured only. None: all panels.

    Returns:
      Its URL.

    Raises:
      ConfigError: the project has another form, the package is missing, or W&B refuses.
    """
    made = workspace(project, None if run is None else measured(run))
    try:
        made.save()
    except Exception as error:
        raise ConfigError(f"W&B did not take the dashboard for {project}: {error}") from error
    return str(made.url)
