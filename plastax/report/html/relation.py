"""Curvature at a task's start against the score in that task: scatter plots, and correlations with intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from plastax.report.drawn import evenly
from plastax.report.html.look import figure, small, styles
from plastax.report.html.page import Chart, Section
from plastax.report.score import Quantity, score_of
from plastax.report.statistics import bootstrap
from plastax.report.table import cell
from plastax.report.values import layer_mean, rank_at, task_values

RESAMPLES = 2000

POINTS = 5000
"""The most points in a chart and its correlations; if there are more, it takes evenly spread tasks."""


class Correlation(NamedTuple):
    """Spearman's correlation of ``points`` (seeds times tasks), and the ends of its interval."""

    value: float
    low: float
    high: float
    points: int


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the values of weighted seeds.

    Args:
      x: ``[S, ...]``.
      y: likewise.
      weights: ``[..., S]``, how often each seed counts.

    Returns:
      ``[...]``; NaN where one of the two is constant.
    """
    every = np.repeat(weights, x[0].size, axis=-1)
    a, b = (_ranks(values.ravel(), every) for values in (x, y))
    for rank in (a, b):
        rank -= np.sum(every * rank, axis=-1, keepdims=True) / every.sum(axis=-1, keepdims=True)
    scale = np.sqrt(np.sum(every * a * a, axis=-1) * np.sum(every * b * b, axis=-1))
    return np.divide(np.sum(every * a * b, axis=-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of ``[n]`` values that each count ``[..., n]`` times; equal values have their mean rank."""
    order = np.argsort(values)
    new = np.append(True, np.diff(values[order]) > 0)
    many = np.add.reduceat(weights[..., order], np.flatnonzero(new), axis=-1)
    place = np.empty(len(values), int)
    place[order] = np.cumsum(new) - 1
    return (np.cumsum(many, axis=-1) - (many - 1) / 2)[..., place]


def _correlation(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Of values ``[S, ...]``; the bootstrap resamples whole seeds."""
    ends = bootstrap(lambda weights: spearman(x, y, weights), len(x), resamples=RESAMPLES, size=x.size)
    return Correlation(*ends, x.size)


def correlations(x: xr.DataArray, y: xr.DataArray) -> dict[str, Correlation]:
    """Correlation of two quantities: for each arm, and pooled over all, with and without differences between arms.

    Args:
      x: (arm, seed, task).
      y: likewise. A task that an arm lacks in either is left out for that arm, and from the pooled correlations.

    Returns:
      Arm, ``all methods, pooled`` or ``all methods, within each`` -> its correlation. The last is of each arm's values
      minus their mean, so that differences between arms do not count.
    """
    names = x.arm.values.tolist()
    mine, its = (v.transpose("seed", "arm", "task").values.astype(float) for v in (x, y))
    there = np.isfinite(mine + its).all(axis=0)
    found = {}
    for m in range(len(names)):
        one = mine[:, m : m + 1, there[m]], its[:, m : m + 1, there[m]]
        # Constants have no correlation, and three points no meaningful one.
        if one[0].size > 3 and np.ptp(one[0]) and np.ptp(one[1]):
            found[m] = _correlation(*one)
    out = {names[m]: one for m, one in found.items()}
    some = [m for m in range(len(names)) if m in found]
    common = there[some].all(axis=0) if some else np.zeros(0, bool)
    if len(some) > 1 and common.any():
        both = mine[:, some][..., common], its[:, some][..., common]
        out["all methods, pooled"] = _correlation(*both)
        out["all methods, within each"] = _correlation(*(v - v.mean(axis=(0, 2), keepdims=True) for v in both))
    return out


def pairs(data: xr.Dataset) -> list[tuple[str, str, xr.DataArray, Quantity, xr.DataArray]]:
    """The charts: key, label and values at task start of a measure of curvature; then the score and its values."""
    score = score_of(data)
    values = None if score is None else task_values(data, score.main)
    if score is None or values is None:
        return []
    found: dict[str, tuple[str, xr.DataArray | None]] = {}
    for operator, name in (("hessian", "Hessian"), ("ggn", "Gauss-Newton")):
        found[f"{operator}-rank"] = f"{name} eps-rank", rank_at(data, operator=operator)
        found[f"{operator}-effective"] = (
            f"{name} effective rank",
            layer_mean(data, f"probe/{operator}/effective_rank", "init"),
        )
    found["features"] = "feature effective rank", layer_mean(data, "probe/features/effective_rank", "init")
    there = [(key, label, x) for key, (label, x) in found.items() if x is not None and bool(x.notnull().any())]
    out = []
    for key, label, x in there[:4]:
        tasks = data.task.values[(x.notnull() & values.notnull()).any(["arm", "seed"]).values].tolist()
        tasks = evenly(tasks, max(2, POINTS // (data.sizes["arm"] * data.sizes["seed"]))) if tasks else []
        out.append((key, label, x.reset_coords(drop=True).sel(task=tasks), score.main, values.sel(task=tasks)))
    return out


def section(data: xr.Dataset) -> Section:
    """A scatter plot for each measure of curvature, and a table of all correlations."""
    charts, columns = [], {}
    for key, label, x, quantity, y in pairs(data):
        made = figure(f"{label} at task start", quantity.label)
        for arm, style in styles(data).items():
            mine, its = (v.sel(arm=arm).transpose("seed", "task") for v in (x, y))
            seeds, tasks = np.broadcast_arrays(mine.seed.values[:, None], mine.task.values)
            good = np.isfinite(mine.values) & np.isfinite(its.values)
            made.add_scatter(
                x=small(mine.values[good]),
                y=small(its.values[good]),
                name=style["name"],
                mode="markers",
                marker={"color": style["color"], "size": 6, "opacity": 0.55, "symbol": style["symbol"]},
                customdata=np.stack([seeds[good], tasks[good]], axis=-1),
                hovertemplate=f"{style['name']}, seed %{{customdata[0]}}, task %{{customdata[1]}}<br>"
                "%{x:.4g}, %{y:.4g}<extra></extra>",
            )
        charts.append(Chart(f"relation-{key}", f"{label} and the {quantity.label} of that task", made, height=380))
        columns[label] = {arm: _text(one) for arm, one in correlations(x, y).items()}
    if not charts:
        return Section("relation", "Curvature and performance")
    table = pd.DataFrame(columns)
    text = [
        "A point is a seed in a task: the measure at the task's start, before any training on it, against the score "
        f"in it. Charts of more than {POINTS:,} points show evenly spread tasks. Correlations are Spearman's, with 95 "
        "% bootstrap intervals over whole seeds, which are too short for few seeds. The pooled correlation may come "
        "from differences between methods alone; the one within each method does not. Both may come from a shared "
        "trend over tasks: correlation is not causation."
    ]
    return Section(
        "relation", "Is curvature correlated with performance?", text, charts, [("Spearman's correlation", table)]
    )


def _text(one: Correlation) -> str:
    return cell({"r": one.value, "r_low": one.low, "r_high": one.high}, "r")
