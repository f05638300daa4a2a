"""Does curvature at a task's start go with what the network then achieves? Points, correlations, their errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from plastax.report.html.look import figure, small, styles
from plastax.report.html.page import Chart, Section
from plastax.report.score import Quantity, score_of
from plastax.report.statistics import resample
from plastax.report.table import cell, layer_mean, rank_at, task_values

RESAMPLES = 2000


class Correlation(NamedTuple):
    """Spearman's correlation over seeds and tasks, and the ends of its interval; ``points`` of them."""

    value: float
    low: float
    high: float
    points: int


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of all values of ``[..., n]``."""
    with np.errstate(all="ignore"):
        return scipy.stats.pearsonr(
            scipy.stats.rankdata(x, axis=-1), scipy.stats.rankdata(y, axis=-1), axis=-1
        ).statistic


def _correlation(x: np.ndarray, y: np.ndarray, *, centre: bool) -> Correlation:
    """Of ``[S, M, T]``; seeds are resampled whole. ``centre``: each arm's values minus their mean."""

    def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if centre:
            x, y = (v - v.mean(axis=(-3, -1), keepdims=True) for v in (x, y))
        return spearman(*(v.reshape(*v.shape[:-3], -1) for v in (x, y)))

    return Correlation(*resample(of, x, y, resamples=RESAMPLES), x.size)


def correlations(x: xr.DataArray, y: xr.DataArray) -> dict[str, Correlation]:
    """Correlation of two quantities: of each arm, of all methods together, and together but within methods.

    Args:
      x: (arm, seed, task).
      y: likewise. Tasks that an arm lacks in either are left out for it, and for all in what is together.

    Returns:
      Method, ``all methods, pooled`` or ``all methods, within each`` -> its correlation. The last takes each arm's
      values minus their mean, so that differences between methods do not count.
    """
    names = x.arm.values.tolist()
    mine, its = (v.transpose("seed", "arm", "task").values.astype(float) for v in (x, y))
    there = np.isfinite(mine + its).all(axis=0)
    found = {}
    for m in range(len(names)):
        one = mine[:, m : m + 1, there[m]], its[:, m : m + 1, there[m]]
        # Of constants and of three points there is no correlation.
        if one[0].size > 3 and np.ptp(one[0]) and np.ptp(one[1]):
            found[m] = _correlation(*one, centre=False)
    out = {names[m]: one for m, one in found.items()}
    some = [m for m in range(len(names)) if m in found]
    common = there[some].all(axis=0) if some else np.zeros(0, bool)
    if len(some) > 1 and common.any():
        both = mine[:, some][..., common], its[:, some][..., common]
        out["all methods, pooled"] = _correlation(*both, centre=False)
        out["all methods, within each"] = _correlation(*both, centre=True)
    return out


def pairs(data: xr.Dataset) -> list[tuple[str, str, xr.DataArray, Quantity, xr.DataArray]]:
    """What is set against the score: key, label and values at task start; then the score and its values."""
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
    return [(key, label, x.reset_coords(drop=True), score.main, values) for key, label, x in there[:4]]


def section(data: xr.Dataset) -> Section:
    """A scatter plot for each measure of curvature, and a table of all correlations."""
    charts, columns = [], {}
    for key, label, x, quantity, y in pairs(data):
        made = figure(f"{label} at task start", quantity.label)
        for arm, style in styles(data.arm.values.tolist()).items():
            mine, its = (v.sel(arm=arm).transpose("seed", "task") for v in (x, y))
            seeds, tasks = np.broadcast_arrays(mine.seed.values[:, None], mine.task.values)
            good = np.isfinite(mine.values) & np.isfinite(its.values)
            made.add_scatter(
                x=small(mine.values[good]),
                y=small(its.values[good]),
                name=arm,
                mode="markers",
                marker={"color": style["color"], "size": 6, "opacity": 0.55, "symbol": style["symbol"]},
                customdata=np.stack([seeds[good], tasks[good]], axis=-1),
                hovertemplate=f"{arm}, seed %{{customdata[0]}}, task %{{customdata[1]}}<br>%{{x:.4g}}, %{{y:.4g}}"
                "<extra></extra>",
            )
        charts.append(Chart(f"relation-{key}", f"{label} and the {quantity.label} of that task", made, height=380))
        columns[label] = {arm: _text(one) for arm, one in correlations(x, y).items()}
    if not charts:
        return Section("relation", "Curvature and performance")
    table = pd.DataFrame(columns)
    text = [
        "A point is a seed in a task: what was measured at its start, before any training on it, against what was "
        "reached in it. Spearman's correlation with its 95 % interval; seeds are resampled whole. Pooled, methods that "
        "differ in both make a correlation by themselves; within methods that is taken out. Both may still only share "
        "a trend over tasks: correlation is not cause."
    ]
    return Section("relation", "Does curvature go with performance?", text, charts, [("Spearman's correlation", table)])


def _text(one: Correlation) -> str:
    return cell({"r": one.value, "r_low": one.low, "r_high": one.high}, "r")
