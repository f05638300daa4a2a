"""Which arms and tasks of a large study appear in charts. Tables and CSV files have all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plastax.report.arms import methods, names
from plastax.report.score import score_of
from plastax.report.values import REFERENCES, task_values

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

ARMS, HEATS, TASKS = 10, 6, 60
"""The largest numbers of arms in a chart, of arms with heat maps, and of tasks in a chart."""


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` items, spread evenly, with the first and the last."""
    return [items[i] for i in dict.fromkeys(np.linspace(0, len(items) - 1, most).round().astype(int))]


def late_scores(data: xr.Dataset) -> pd.Series | None:
    """Arm -> its mean score in the last window of `plastax.report.score`; None if the study has no score.

    The sign is such that higher is better; an arm without a score has NaN.
    """
    score = score_of(data)
    values = None if score is None else task_values(data, score.main)
    if score is None or values is None:
        return None
    last = values.isel(task=score.windows[-1].tasks(values.sizes["task"])).mean(["seed", "task"])
    return last.to_series() * (1.0 if score.higher_is_better else -1.0)


def arms(data: xr.Dataset, most: int = ARMS, among: Sequence[str] | None = None) -> list[str]:
    """The arms that are drawn, in the order of the study.

    Args:
      data: a study, see `plastax.load`.
      most: the largest number of arms.
      among: of these arms; by default of all.

    Returns:
      All, if they are not too many; otherwise the `REFERENCES`, and others spread evenly from the worst to the best
      score.
    """
    all_arms = [str(arm) for arm in data.arm.values if among is None or arm in among]
    if len(all_arms) <= most:
        return all_arms
    of = methods(data)
    references = [arm for arm in all_arms if of[arm] in REFERENCES][: most // 2]
    others = [arm for arm in all_arms if arm not in references]
    if (scores := late_scores(data)) is not None:
        others = scores[others].sort_values(na_position="first", kind="stable").index.tolist()
    kept = {*references, *evenly(others, most - len(references))}
    return [arm for arm in all_arms if arm in kept]


def fewer_tasks(values: xr.DataArray) -> xr.DataArray:
    """``[..., task]`` with at most `TASKS` of the measured tasks, spread evenly."""
    if values.sizes["task"] <= TASKS:
        return values
    there = values.notnull().any([dim for dim in values.dims if dim != "task"]).values
    return values.sel(task=evenly(values.task.values[there], TASKS)) if there.any() else values.isel(task=slice(TASKS))


def shown(data: xr.Dataset) -> xr.Dataset:
    """The study with the arms that are drawn.

    Where some are left out, a variable is copied when it is read, and the copy is not kept: together the copies would
    be a third of a large study. Whoever reads a variable often should read it once, with ``values`` or ``compute()``.
    """
    if data.sizes["arm"] <= ARMS:
        return data
    from xarray.core.indexing import LazilyIndexedArray

    lazy = {name: (x.dims, LazilyIndexedArray(x.values), x.attrs) for name, x in data.data_vars.items()}
    return data.assign(lazy).sel(arm=arms(data))


def left_out(data: xr.Dataset, most: int = ARMS, tasks: int = TASKS) -> str:
    """A sentence on what charts of at most ``most`` arms and ``tasks`` lack; "" if nothing."""
    some = [
        f"{most} of {size} {name}"
        for name, most, size in (("arms", most, data.sizes["arm"]), ("tasks", tasks, data.sizes["task"]))
        if size > most
    ]
    return f"{' and '.join(some)} are drawn; the tables, the CSV files and the records have all." if some else ""


def warning(data: xr.Dataset) -> list[str]:
    """Sentences that warn of what the charts of a large study lack; empty if they show everything."""
    said, shown = [], arms(data)
    if text := left_out(data):
        said.append(f"A large study: {text}")
    if others := [name for arm, name in names(data).items() if arm not in shown]:
        said.append(
            f"Charts show the references, and arms spread evenly from the worst to the best score; left out of charts: "
            f"{', '.join(others)}."
        )
    return said
