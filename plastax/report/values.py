"""What is taken out of a study's record: finished tasks, scores task by task, ranks, means over layers."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from plastax.report.score import Quantity, measured, score_of

REFERENCES = ("reset", "backprop")
"""What methods are compared with: the first of these that is in the study."""


def finished(data: xr.Dataset) -> xr.DataArray:
    """Whether an arm has finished a task (arm, task), bool: a started one has the average of its beginning."""
    last = data.update_task.groupby("update_task").count().values.cumsum()
    if "host/clock" not in data:
        return xr.DataArray(np.zeros((data.sizes["arm"], len(last)), bool), dims=("arm", "task"))
    done = (data["host/clock"] + data["host/length"]).max("segment")
    return done >= xr.DataArray(last, dims="task", coords={"task": data.task})


def task_values(data: xr.Dataset, quantity: Quantity) -> xr.DataArray | None:
    """A quantity's value in each finished task.

    Args:
      data: a study, see `plastax.load`.
      quantity: a training value (its mean over the task's updates, those without a value left out: of the return, those
        in which no episode ended), or a probe's value at one mark.

    From the task in which a seed is frozen (see `alive_in`) it counts as the worst value that any seed of the study has
    in a task: left out, a method that diverges would look better for it.

    Returns:
      (arm, seed, task), in the value's unit; None if the study does not have it.
    """
    if not measured(data, quantity):
        return None
    if quantity.mark:
        values = layer_mean(data, quantity.variable, quantity.mark)
    else:
        values = data[quantity.variable]
        if quantity.weights:
            weights = data[quantity.weights].where(values.notnull())
            values = (values * weights).groupby("update_task").sum() / weights.groupby("update_task").sum()
        else:
            values = values.groupby("update_task").mean()
        values = values.rename(update_task="task").assign_coords(task=data.task).where(finished(data))
    if values is None or (alive := alive_in(data)) is None:
        return None if values is None else values.transpose("arm", "seed", "task")
    # Of the task in which a seed was frozen there is only the beginning, as of one that is not finished.
    values, score = values.where(alive), score_of(data)
    worst = values.min if score is None or score.higher_is_better else values.max
    # Where every seed is frozen, the worst of all tasks.
    fill = worst(["arm", "seed"]).where(alive.any(["arm", "seed"]), worst())
    return values.where(alive | ~finished(data), fill).transpose("arm", "seed", "task")


def alive_in(data: xr.Dataset) -> xr.DataArray | None:
    """Whether a seed's training did not break down up to the end of a task (arm, seed, task), bool; None: not known.

    See `plastax.program.segments`: a seed whose loss is not finite is frozen, and the record has NaN from then on.
    """
    if "train/alive" not in data:
        return None
    dead = (data["train/alive"] == 0).groupby("update_task").any().rename(update_task="task")
    return ~dead.assign_coords(task=data.task)


def frozen_seeds(data: xr.Dataset) -> xr.DataArray:
    """How many seeds of each arm were frozen (arm)."""
    alive = alive_in(data)
    return xr.zeros_like(data.arm, int) if alive is None else (~alive).any("task").sum("seed")


def frozen(data: xr.Dataset) -> list[str]:
    """The seeds that were frozen, in words: ``<arm>: seed <k> since task <t>``."""
    if (alive := alive_in(data)) is None:
        return []
    since = alive.sum("task").where(~alive.all("task"))
    table = since.to_series().dropna()
    return [f"{arm}: seed {k} since task {int(task)}" for (arm, k), task in table.items()]


def reference(data: xr.Dataset) -> str | None:
    """The arm that others are compared with, None if the study has none of `REFERENCES`."""
    return next((name for name in REFERENCES if name in data.arm.values), None)


def rank_at(
    data: xr.Dataset, eps: float | None = None, operator: str = "hessian", value: str = "rank"
) -> xr.DataArray | None:
    """eps-rank at the first update of every task (arm, seed, task): eigenvalues with absolute value above eps.

    Args:
      data: a study.
      eps: the nearest measured threshold (in ratio) is taken; by default the middle one, of two the larger.
      operator: ``hessian`` or ``ggn``.
      value: ``rank``, or ``rank_se``: the standard error of one measurement of it.

    Returns:
      A count, with the scalar coordinate ``eps`` if thresholds are labelled; None if it was not measured.
    """
    name = f"probe/{operator}/{value}"
    if name not in data:
        return None
    rank = data[name].sel(mark="init")
    (axis,) = set(rank.dims) - {"arm", "seed", "task"} or {None}
    if axis is None:
        return rank
    index = rank.sizes[axis] // 2
    if eps is not None and axis in rank.coords:
        with np.errstate(divide="ignore"):
            index = int(np.argmin(np.abs(np.log(rank[axis].values.astype(float)) - math.log(eps))))
    return rank.isel({axis: index}).transpose("arm", "seed", "task")


def layer_mean(data: xr.Dataset, name: str, mark: str) -> xr.DataArray | None:
    """A probe's value at one mark, averaged over layers: (arm, seed, task); None if it was not measured."""
    if name not in data:
        return None
    value = data[name].sel(mark=mark)
    return value.mean([dim for dim in value.dims if dim not in ("arm", "seed", "task")])
