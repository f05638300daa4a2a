"""Learning curves: the score by update, and all of its quantities by task."""

from __future__ import annotations

import numpy as np
import xarray as xr

from plastax.report.html.look import band, figure, over_tasks, styles
from plastax.report.html.page import Chart, Section
from plastax.report.score import measured, score_of
from plastax.report.statistics import over_seeds
from plastax.report.values import task_values

POINTS = 480
"""The most points of a curve over updates; each is a mean over updates of one task."""


def curve(data: xr.Dataset) -> Chart | None:
    """The score over updates, with bands."""
    score = score_of(data)
    if score is None or not measured(data, score.curve):
        return None
    tasks = data.sizes["task"]
    per_task = data.sizes["update"] // tasks
    # A window ends at a switch, which it would blur.
    parts = max(1, min(per_task, POINTS // tasks))
    window = -(-per_task // parts)
    inside = np.arange(data.sizes["update"]) % per_task // window
    place = data.update_task.values + (inside * window + np.minimum(window, per_task - inside * window) / 2) / per_task
    values = data[score.curve.variable].assign_coords(place=("update", np.round(place, 4)))
    means = values.groupby("place").mean().transpose("arm", "seed", "place")
    interval = over_seeds(means)
    made = figure("task (a curve starts at its switch)", score.curve.label)
    for arm, style in styles(data).items():
        one = interval.sel(arm=arm).dropna("place", subset=["mean"])
        if one.sizes["place"]:
            band(made, one.place.values, one, style["name"], style, markers=False, width=1.6)
    if tasks <= 60:
        for border in range(1, tasks):
            made.add_vline(border, line={"width": 1, "color": "rgba(128,128,128,0.3)"})
    made.update_xaxes(range=[0, tasks])
    note = f"Mean over seeds with its 95 % t interval; a point is the mean of {window} updates." if window > 1 else ""
    return Chart("curve", f"{score.curve.label} by update", made, note, 380, wide=True)


def section(data: xr.Dataset) -> Section:
    """The curve, and each of the score's quantities."""
    charts = [curve(data)]
    score = score_of(data)
    for quantity in score.quantities if score else ():
        made = over_tasks(task_values(data, quantity), quantity.label)
        charts.append(None if made is None else Chart(f"task-{quantity.name}", f"{quantity.label} in each task", made))
    return Section("learning", "Learning curves", charts=[chart for chart in charts if chart is not None])
