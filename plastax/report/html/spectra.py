"""Spectral density over tasks: a slider, a ridgeline, heat maps; number of eigenvalues above eps, against eps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from plastax.report import drawn
from plastax.report.arms import names
from plastax.report.drawn import TASKS, evenly, fewer_tasks
from plastax.report.html.look import band, clear, figure, logarithmic, over_tasks, small, styles, symlog_axis
from plastax.report.html.page import Chart, Section
from plastax.report.notes import task_numbers
from plastax.report.score import thirds
from plastax.report.spectra import counts, signed_log
from plastax.report.statistics import over_seeds
from plastax.report.values import layer_mean, middle_eps, rank_at, threshold

ROWS, RIDGES = 8, 4
"""The most tasks and arms in the ridgeline; more would be a tangle."""

NAMES = {"hessian": "Hessian", "ggn": "Gauss-Newton"}


class Density(NamedTuple):
    """Spectral densities for charts.

    Attributes:
      counts: (arm, task, bin), see `plastax.report.spectra.counts`.
      unit: of the counts, in words.
      middle: ``[bin]``, of the bins, on the symmetric-log axis.
      edges: ``[bin + 1]``, of the bins, likewise.
      axis: settings of that axis.
      least: smaller counts are rounding errors of the quadrature.
    """

    counts: xr.DataArray
    unit: str
    middle: np.ndarray
    edges: np.ndarray
    axis: dict[str, Any]
    least: float


def densities(data: xr.Dataset, operator: str, per_decade: int) -> Density | None:
    """The densities of one operator; None without spectra."""
    shares, unit = counts(data, operator, per_decade)
    if shares is None:
        return None
    edges = np.append(shares.low.values, shares.high.values[-1])
    smallest = float(np.abs(edges).min())
    least = float(shares.max()) * 1e-6
    occupied = np.flatnonzero((shares > least).any(["arm", "task"]).values)
    axis = symlog_axis(smallest, float(edges[occupied[0]]), float(edges[occupied[-1] + 1]))
    places = signed_log(edges, smallest)
    return Density(shares, unit, (places[1:] + places[:-1]) / 2, places, axis, least)


def _measured(shown: Density) -> list[int]:
    there = shown.counts.notnull().any(["arm", "bin"])
    return shown.counts.task.values[there.values].tolist()


def slider(shown: Density, name: str) -> go.Figure:
    """The densities of all arms in the task that the slider chooses."""
    of = styles(shown.counts)
    tasks = evenly(_measured(shown), TASKS)
    top = np.log10(float(shown.counts.max()))
    floor = 10.0 ** (top - 5)

    def lines(task: int) -> list[dict[str, Any]]:
        drawn = []
        for arm, style in of.items():
            counts = shown.counts.sel({"arm": arm, "task": task}).values
            text = f"{style['name']}, task {task}<br>%{{customdata:.3g}} {shown.unit}<extra></extra>"
            # Empty bins are drawn below the axis, so that lines do not break.
            y = small(np.fmax(counts, floor))
            drawn.append({"type": "scatter", "y": y, "customdata": small(counts), "hovertemplate": text})
        return drawn

    made = figure(f"{name} eigenvalue (symmetric-log)", f"{shown.unit} (log)")
    for line, style in zip(lines(tasks[-1]), of.values()):
        look = {"color": style["color"], "dash": style["dash"], "width": 2, "shape": "hvh"}
        made.add_trace({**line, "x": small(shown.middle), "name": style["name"], "mode": "lines", "line": look})
    # A frame has what differs; everything else stays as it is.
    made.frames = [go.Frame(name=str(task), data=lines(task)) for task in tasks]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    steps = [{"label": str(task), "method": "animate", "args": [[str(task)], now]} for task in tasks]
    places = {"currentvalue": {"prefix": "task ", "xanchor": "left"}, "pad": {"t": 46, "b": 4}, "len": 0.98, "x": 0.01}
    made.update_layout(sliders=[{"steps": steps, "active": len(steps) - 1, "tickcolor": "rgba(0,0,0,0)", **places}])
    made.update_xaxes(**shown.axis)
    made.update_yaxes(range=[top - 4.5, top + 0.3], **logarithmic())
    made.update_layout(margin={"b": 96})
    return made


def ridgeline(shown: Density, name: str, tasks: Sequence[int]) -> go.Figure:
    """One row for each of some tasks, the first at the bottom, with the densities of all arms."""
    of = styles(shown.counts)
    counts = shown.counts.where(shown.counts > shown.least, 0.0)
    height = counts.copy(data=np.log10(1.0 + counts.values))
    height = 1.3 * height / float(height.max())
    made = figure(f"{name} eigenvalue (symmetric-log)", "task")
    x = np.concatenate([shown.middle, shown.middle[::-1]])
    # From the last task to the first: lower rows are drawn over upper ones.
    for row, task in reversed(list(enumerate(tasks))):
        for arm, style in of.items():
            y = height.sel({"arm": arm, "task": task}).values
            if np.isnan(shown.counts.sel({"arm": arm, "task": task})).all():
                continue
            made.add_scatter(
                x=small(x),
                y=small(np.concatenate([row + y, np.full(len(y), row)])),
                name=style["name"],
                legendgroup=style["name"],
                showlegend=row == 0,
                mode="lines",
                fill="toself",
                fillcolor=clear(style["color"], 0.14),
                line={"color": style["color"], "dash": style["dash"], "width": 1.4},
                hoveron="points",
                hovertemplate=f"{style['name']}, task {task}<extra></extra>",
            )
    made.update_yaxes(tickmode="array", tickvals=list(range(len(tasks))), ticktext=[str(task) for task in tasks])
    made.update_xaxes(**shown.axis)
    return made


def heat_map(shown: Density, name: str, arm: str, eps: float | None) -> go.Figure:
    """One arm's density over tasks, with lines at +-eps."""
    one = fewer_tasks(shown.counts.sel(arm=arm).dropna("task", how="all"))
    tasks = one.task.values.astype(float)
    middle = (tasks[1:] + tasks[:-1]) / 2.0
    across = np.concatenate([tasks[:1] - 0.5, middle, tasks[-1:] + 0.5])
    values = one.transpose("bin", "task").values
    top = np.ceil(np.log10(float(shown.counts.max())))
    logs = np.log10(np.maximum(values, 10.0 ** (top - 5)))
    made = figure("task", f"{name} eigenvalue")
    made.add_heatmap(
        x=across,
        y=shown.edges,
        z=small(logs),
        customdata=small(values),
        colorscale="Magma",
        zmin=top - 5,
        zmax=top,
        colorbar={"thickness": 10, "title": {"text": f"log<sub>10</sub> {shown.unit}", "side": "right"}},
        hovertemplate="task %{x}<br>%{customdata:.3g} " + shown.unit + "<extra></extra>",
    )
    made.update_yaxes(**shown.axis, showgrid=False)
    if eps is not None:
        smallest = float(np.abs(np.append(one.low.values, one.high.values[-1])).min())
        for place in signed_log(np.array([-eps, eps]), smallest) if eps > smallest else ():
            made.add_hline(float(place), line={"width": 1, "dash": "dash", "color": "white"})
    return made


def rank_curve(data: xr.Dataset, operator: str) -> go.Figure | None:
    """Number of eigenvalues above eps against eps, in the first and in the last third of the tasks."""
    if f"probe/{operator}/nodes" not in data or f"probe/{operator}/dim" not in data:
        return None
    parts = (data[f"probe/{operator}/{part}"].sel(mark="init") for part in ("nodes", "weights", "dim"))
    nodes, weights, dim = (part.compute() for part in parts)  # Or every eps would read them again, see `drawn.shown`.
    largest = float(np.abs(nodes).max())
    if not 0.0 < largest < np.inf:
        return None
    eps = np.logspace(np.log10(largest) - 6, np.log10(largest), 49)
    # Two operators with spectra of different sizes have axes of different names.
    probe, node = map(str, nodes.dims[-2:])
    # One eps at a time: all at once would take a hundred times the memory of the record.
    above = [(weights.where(np.abs(nodes) > e, 0.0)).sum(node).mean(probe).where(dim.notnull()) for e in eps]
    ranks = (xr.concat(above, xr.DataArray(eps, dims="eps", name="eps")) * dim).transpose("arm", "seed", "task", "eps")
    first, last = thirds(data.sizes["task"])
    made = figure("eps (log)", "eigenvalues with |e| > eps (log)")
    for arm, style in styles(data).items():
        for where, tasks in (("first third", first), ("last third", last)):
            one = ranks.sel(arm=arm).isel(task=tasks).mean("task")
            if not bool(one.notnull().any()):
                continue
            late = where == "last third"
            name = style["name"] if late else f"{style['name']}, {where}"
            interval = over_seeds(one).where(lambda x: x["mean"] > 0)
            look = style if late else style | {"dash": "dot"}
            width = 2.0 if late else 1.3
            band(
                made, eps, interval, name, look, group=style["name"], markers=False, legend=late, log=True, width=width
            )
    made.update_xaxes(**logarithmic())
    made.update_yaxes(**logarithmic())
    return made


def scalar_charts(data: xr.Dataset, operator: str) -> list[Chart]:
    """Numbers that describe the spectrum at each task's start, with error bars."""
    name, eps = NAMES[operator], threshold(data, operator)
    eps_text = "" if eps is None else f" (eps = {eps:g})"
    relative = data.get(f"probe/{operator}/relative_rank")
    if relative is not None:
        relative = middle_eps(relative).sel(mark="init")
    shown = {
        f"{operator}-rank": (f"{name} eps-rank{eps_text}", rank_at(data, operator=operator)),
        f"{operator}-relative-rank": (f"{name} rank relative to its largest eigenvalue{eps_text}", relative),
    }
    for value, label in {
        "effective_rank": "effective rank",
        "largest": "largest eigenvalue",
        "trace": "trace",
        "negative_mass": "share of negative curvature",
    }.items():
        shown[f"{operator}-{value}"] = f"{name} {label}", layer_mean(data, f"probe/{operator}/{value}", "init")
    if operator == "ggn":
        # The Gauss-Newton matrix has no negative eigenvalues.
        del shown["ggn-negative_mass"]
    charts = []
    for key, (title, values) in shown.items():
        made = over_tasks(values, title.replace(name, "").split(" (")[0].strip(), bars=True)
        if made is not None:
            charts.append(Chart(key, f"{title} at task start", made, _measurement_error(data, operator, key)))
    return charts


def _measurement_error(data: xr.Dataset, operator: str, key: str) -> str:
    """A note on the error of the Lanczos estimate, of which bars over seeds show only a part."""
    value = key.removeprefix(f"{operator}-").replace("-", "_")
    error = data.get(f"probe/{operator}/{value}_se")
    if error is None:
        return ""
    median = float(middle_eps(error).sel(mark="init").median())
    return f"Median standard error of one measurement: {median:.3g}." if median > 0 else ""


def section(data: xr.Dataset, operator: str) -> Section:
    """The section on one operator's spectrum."""
    name, shown, fine = NAMES[operator], densities(data, operator, 4), densities(data, operator, 8)
    charts, text, named = [], [], names(data)
    if shown is not None and fine is not None and _measured(shown):
        arms = [m for m in data.arm.values.tolist() if bool(shown.counts.sel(arm=m).notnull().any())]
        charts.append(
            Chart(
                f"{operator}-slider", "The spectrum at each task's start: move the slider", slider(shown, name),
                "Pooled over seeds and probe vectors. Click on a name to hide it, double-click to hide the others.",
                460, wide=True,
            )
        )  # fmt: skip
        few = drawn.arms(data, RIDGES, arms)
        tasks = evenly(_measured(shown), ROWS)
        ridge = ridgeline(shown._replace(counts=shown.counts.sel({"arm": few})), name, tasks)
        note = f"Height: log10(1 + {shown.unit}). First task below, last on top; {task_numbers(tasks)}."
        note += (
            f" {len(few)} of {len(arms)} arms: {', '.join(map(named.__getitem__, few))}."
            if len(few) < len(arms)
            else ""
        )
        charts.append(Chart(f"{operator}-ridge", "The same, task above task", ridge, note, 560, wide=True))
        eps = threshold(data, operator)
        if len(heats := drawn.arms(data, drawn.HEATS, arms)) < len(arms):
            text.append(
                f"Heat maps are drawn of {', '.join(map(named.__getitem__, heats))}; figures/*.csv has the others."
            )
        for i, arm in enumerate(heats):
            made = heat_map(fine, name, arm, eps)
            charts.append(Chart(f"{operator}-heat-{i}", named[arm], made, "" if eps is None else f"Dashed: +-{eps:g}"))
    if (made := rank_curve(data, operator)) is not None and made.data:
        note = (
            "Solid: last third of the tasks; dotted: first third. Where solid is below dotted, the spectrum has shrunk."
        )
        charts.append(Chart(f"{operator}-eps", "How many eigenvalues exceed eps", made, note, 400))
    charts += scalar_charts(data, operator)
    return Section(operator, f"{name} spectrum over tasks", text, charts)
