"""Values from a study's record: finished tasks, scores of tasks, ranks, means over layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plastax.report.arms import base, described, names
from plastax.report.score import Quantity, measured, score_of

if TYPE_CHECKING:
    import xarray as xr

REFERENCES = ("reset", "backprop")
"""Methods are compared with the first of these that the study has."""


def finished(data: xr.Dataset) -> xr.DataArray:
    """Whether an arm has finished a task (arm, task), bool. Unfinished tasks only have values of their beginning."""
    import xarray as xr

    if "host/clock" not in data:
        return xr.zeros_like(data.arm, bool) & xr.zeros_like(data.task, bool)
    done = (data["host/clock"] + data["host/length"]).max("segment")
    last = (1 + np.arange(data.sizes["task"])) * (data.sizes["update"] // data.sizes["task"])
    return done >= xr.DataArray(last, dims="task", coords={"task": data.task})


def by_task(data: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """A study's values (..., update) as (..., task, within), with the updates of a task along ``within``."""
    count = data.sizes["update"] // data.sizes["task"]
    bare = values.drop_vars([name for name, coord in values.coords.items() if "update" in coord.dims])
    return bare.coarsen(update=count).construct(update=("task", "within")).assign_coords(task=data.task)


def task_values(data: xr.Dataset, quantity: Quantity) -> xr.DataArray | None:
    """`together` of a single study."""
    return together([data], quantity)[0]


def together(studies: Sequence[xr.Dataset], quantity: Quantity) -> list[xr.DataArray | None]:
    """A quantity's value in each finished task, of studies that are compared with one another.

    From the task in which a seed is frozen (see `alive_in`), its score counts as the worst value that any seed of any
    of the studies has in that task: left out, a method that diverges would look better for it. Of other quantities it
    has no value.

    Args:
      studies: see `plastax.load`.
      quantity: a training value (its mean over the task's updates; of the return, over those in which an episode
        ended), or a probe's value at one mark.

    Returns:
      (arm, seed, task) of each study, in the value's unit; NaN where a task is not finished, or has no value; None if
      the study does not have the quantity.
    """
    import xarray as xr

    found = [_of_living(data, quantity) for data in studies]
    there = [values for values in found if values is not None]
    if not there:
        return found
    score = score_of(studies[0])
    if score is None or quantity not in score.quantities:
        return [None if one is None else one.transpose("arm", "seed", "task") for one in found]
    worst = "min" if score.higher_is_better else "max"
    of_tasks = xr.concat([getattr(one, worst)(["arm", "seed"]) for one in there], "study", join="outer")
    of_tasks = getattr(of_tasks, worst)("study")
    # Where nobody has a value, the worst of all tasks.
    of_tasks = of_tasks.fillna(getattr(of_tasks, worst)())
    out: list[xr.DataArray | None] = []
    for data, values in zip(studies, found):
        if values is not None and (alive := alive_in(data)) is not None:
            values = values.where(alive | ~finished(data), of_tasks.sel(task=values.task))
        out.append(None if values is None else values.transpose("arm", "seed", "task"))
    return out


def _of_living(data: xr.Dataset, quantity: Quantity) -> xr.DataArray | None:
    """See `together`; NaN where a seed is frozen."""
    if not measured(data, quantity):
        return None
    if quantity.mark:
        values = layer_mean(data, quantity.variable, quantity.mark)
    else:
        values = by_task(data, data[quantity.variable])
        if quantity.weights:
            weights = by_task(data, data[quantity.weights]).where(values.notnull())
            values = (values * weights).sum("within") / weights.sum("within")
        else:
            values = values.mean("within")
        values = values.where(finished(data))
    # Of the task in which a seed was frozen, only the beginning is recorded.
    alive = alive_in(data)
    return values if values is None or alive is None else values.where(alive)


def alive_in(data: xr.Dataset) -> xr.DataArray | None:
    """Whether a seed is not frozen by the end of a task (arm, seed, task), bool; None: unknown.

    A seed whose loss is not finite is frozen, and the record has NaN from then on, see `plastax.program.segments`.
    """
    if "train/alive" not in data:
        return None
    return ~(by_task(data, data["train/alive"]) == 0).any("within")


def frozen_seeds(data: xr.Dataset) -> xr.DataArray:
    """Number of frozen seeds of each arm (arm)."""
    import xarray as xr

    alive = alive_in(data)
    return xr.zeros_like(data.arm, int) if alive is None else (~alive).any("task").sum("seed")


def frozen(data: xr.Dataset) -> list[str]:
    """The frozen seeds in words: ``<arm>: seed <k> since task <t>``."""
    if (alive := alive_in(data)) is None:
        return []
    since = alive.sum("task").where(~alive.all("task"))
    table = since.to_series().dropna()
    return [f"{names(data)[arm]}: seed {k} since task {int(task)}" for (arm, k), task in table.items()]


def without_scalars(values: xr.DataArray) -> xr.DataArray:
    """Values without their coordinates of a single number, which combine badly."""
    return values.drop_vars([name for name, coord in values.coords.items() if not coord.dims])


def reference(data: xr.Dataset) -> str | None:
    """The method that others are compared with: the first of `REFERENCES` that the (first) run has, or None."""
    return next((one for name in REFERENCES for one in data.method.values.tolist() if base(one) == name), None)


def of_reference(values: xr.DataArray, method: str) -> xr.DataArray:
    """For each arm, the values of the reference's arm; in a sweep, of the one whose settings agree most.

    Args:
      values: along ``arm``, with the coordinates of `plastax.load`.
      method: the reference.
    """
    about = described(values)
    theirs = about[about["method"] == method].drop(columns="method")
    alike = [(theirs == row).sum(axis=1).idxmax() for _, row in about.drop(columns="method").iterrows()]
    own = {name: coord for name, coord in values.coords.items() if coord.dims == ("arm",)}
    return values.sel(arm=alike).assign_coords(own)


def rank_at(
    data: xr.Dataset, eps: float | None = None, operator: str = "hessian", value: str = "rank"
) -> xr.DataArray | None:
    """eps-rank at the first update of every task (arm, seed, task): eigenvalues with absolute value above eps.

    Args:
      data: a study.
      eps: the measured threshold of the nearest ratio is taken; by default the middle one, or the larger of two.
      operator: ``hessian`` or ``ggn``.
      value: ``rank``, or ``rank_se``, the standard error of one measurement of it.

    Returns:
      A number, with the scalar coordinate ``eps`` if thresholds are labelled; None if it was not measured.
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
    """A probe's value at one mark (arm, seed, task), at the middle eps, mean over layers; None if not measured."""
    if name not in data:
        return None
    value = middle_eps(data[name].sel(mark=mark))
    return value.mean([dim for dim in value.dims if dim not in ("arm", "seed", "task")])


def weight_norm(data: xr.Dataset) -> xr.DataArray | None:
    """The norm of all kernels together at the end of every task (arm, seed, task); None if it was not measured."""
    norm = data.get("probe/weights/norm")
    if norm is None:
        return None
    layers = [dim for dim in norm.dims if dim not in ("arm", "seed", "task", "mark")]
    # Arms and runs may lack layers that others have.
    there = norm.sel(mark="end").notnull().any(layers)
    return ((norm.sel(mark="end") ** 2).sum(layers) ** 0.5).where(there)


def middle_eps(value: xr.DataArray) -> xr.DataArray:
    """A value at the middle one of its thresholds, if it has several."""
    axes = [dim for dim in value.dims if str(dim).endswith("eps")]  # ``ggn_eps`` beside one of another size
    return value.isel({dim: value.sizes[dim] // 2 for dim in axes})


def threshold(data: xr.Dataset, operator: str = "hessian") -> float | None:
    """The eps of `rank_at`; None if unknown."""
    rank = rank_at(data, operator=operator)
    return float(rank.eps) if rank is not None and "eps" in rank.coords else None
