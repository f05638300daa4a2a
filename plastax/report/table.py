"""The summary of a study, each number defined here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import rich.table
import xarray as xr

from plastax.report.statistics import over_seeds, paired_difference

RETURN = "train/episode_return"
REFERENCES = ("reset", "backprop")
"""What methods are compared with: the first of these that is in the study."""


def finished(data: xr.Dataset) -> xr.DataArray:
    """Whether a method has finished a task (method, task), bool: a started one has the average of its beginning."""
    last = data.update_task.groupby("update_task").count().values.cumsum()
    if "host/clock" not in data:
        return xr.DataArray(np.zeros((data.sizes["method"], len(last)), bool), dims=("method", "task"))
    done = (data["host/clock"] + data["host/length"]).max("segment")
    return done >= xr.DataArray(last, dims="task", coords={"task": data.task})


def task_means(data: xr.Dataset, name: str = RETURN) -> xr.DataArray | None:
    """Mean over each finished task's updates, those without a value left out.

    Args:
      data: a study, see `plastax.load`.
      name: a training value; for the return, an update in which no episode ended has none.

    Returns:
      (method, seed, task), in the value's unit; None if the study does not have the value.
    """
    if name not in data:
        return None
    means = data[name].groupby("update_task").mean().rename(update_task="task")
    return means.assign_coords(task=data.task).where(finished(data)).transpose("method", "seed", "task")


def thirds(tasks: int) -> tuple[slice, slice]:
    """The first and the last third of a number of tasks, rounded up, at least one task each."""
    size = math.ceil(tasks / 3)
    return slice(0, size), slice(tasks - size, tasks)


def reference(data: xr.Dataset) -> str | None:
    """The method that others are compared with, None if the study has none of `REFERENCES`."""
    return next((name for name in REFERENCES if name in data.method.values), None)


def rank_at(data: xr.Dataset, eps: float | None = None, operator: str = "hessian") -> xr.DataArray | None:
    """eps-rank at the first update of every task (method, seed, task): eigenvalues with absolute value above eps.

    Args:
      data: a study.
      eps: the nearest measured threshold (in ratio) is taken; by default the middle one, of two the larger.
      operator: ``hessian`` or ``ggn``.

    Returns:
      A count, with the scalar coordinate ``eps`` if thresholds are labelled; None if it was not measured.
    """
    name = f"probe/{operator}/rank"
    if name not in data:
        return None
    rank = data[name].sel(mark="init")
    (axis,) = set(rank.dims) - {"method", "seed", "task"} or {None}
    if axis is None:
        return rank
    index = rank.sizes[axis] // 2
    if eps is not None and axis in rank.coords:
        with np.errstate(divide="ignore"):
            index = int(np.argmin(np.abs(np.log(rank[axis].values.astype(float)) - math.log(eps))))
    return rank.isel({axis: index}).transpose("method", "seed", "task")


def layer_mean(data: xr.Dataset, name: str, mark: str) -> xr.DataArray | None:
    """A probe's value at one mark, averaged over layers: (method, seed, task); None if it was not measured."""
    if name not in data:
        return None
    value = data[name].sel(mark=mark)
    return value.mean([dim for dim in value.dims if dim not in ("method", "seed", "task")])


def _add(columns: dict[str, xr.DataArray], name: str, data: xr.DataArray | None) -> None:
    """Adds mean and interval over seeds of (method, seed) as the columns ``name``, ``name_low``, ``name_high``."""
    if data is not None:
        _add_interval(columns, name, over_seeds(data))


def _add_interval(columns: dict[str, xr.DataArray], name: str, interval: xr.Dataset) -> None:
    columns[name] = interval["mean"]
    columns |= {f"{name}_{end}": interval[end] for end in ("low", "high")}


def _add_returns(columns: dict[str, xr.DataArray], data: xr.Dataset, returns: xr.DataArray) -> None:
    """Adds everything about returns (method, seed, task)."""
    _, last = thirds(returns.sizes["task"])
    # The first task is ordinary training for every method. With one task there is nothing else.
    later = returns.isel(task=slice(1, None)) if returns.sizes["task"] > 1 else returns
    _add(columns, "return", later.mean("task"))
    _add(columns, "return_first_task", returns.isel(task=0, drop=True))
    _add(columns, "return_last_third", returns.isel(task=last).mean("task"))
    base = reference(data)
    if base is None:
        return
    other = later.sel({"method": base}, drop=True)
    # Of two methods, one of which was killed, only the tasks that both finished can be compared.
    common = later.notnull() & other.notnull()
    mine, its = later.where(common), other.where(common)
    different = data.method != base
    difference = paired_difference(mine.mean("task"), its.mean("task"))
    _add_interval(columns, f"minus_{base}", difference.where(different))
    mine, its = mine.mean(["seed", "task"]), its.mean(["seed", "task"])
    # A ratio of returns means something only where zero is the worst return.
    columns[f"over_{base}"] = (mine / its).where(different & (mine > 0) & (its > 0))


def summary(data: xr.Dataset, eps: float | None = None) -> pd.DataFrame:
    """The summary table; columns that were not measured are missing.

    Every quantity is averaged over tasks for each seed first; ``<name>`` is the mean over seeds, ``<name>_low`` and
    ``<name>_high`` the ends of its 95 % bootstrap interval.

    - ``tasks``: finished tasks; ``seeds``: seeds.
    - ``return``: mean over all finished tasks but the first; ``return_first_task``; ``return_last_third``: of the
      planned tasks. A task's return is the mean over its updates.
    - ``minus_<reference>``: difference to the reference (see `REFERENCES`), paired by seed and task;
      ``over_<reference>``: ratio of the means over the same tasks, NaN unless both are positive.
    - ``rank_first_third``, ``rank_last_third``: Hessian eps-rank at the first update of a task, see `rank_at`.
    - ``feature_rank``, ``dormant_fraction``: mean over layers, at the end of the tasks of the last third.
    - ``compile_s``: seconds of compilation; ``env_steps_per_s``: of all seeds together, without compilation.

    Args:
      data: a study, see `plastax.load`.
      eps: threshold of the eps-rank; by default the middle one measured.

    Returns:
      One row a method, index ``method``.
    """
    first, last = thirds(data.sizes["task"])
    columns: dict[str, xr.DataArray] = {"tasks": finished(data).sum("task")}
    columns["seeds"] = xr.full_like(columns["tasks"], data.sizes["seed"])
    if (returns := task_means(data)) is not None:
        _add_returns(columns, data, returns)
    if (rank := rank_at(data, eps)) is not None:
        rank = rank.reset_coords(drop=True)
        _add(columns, "rank_first_third", rank.isel(task=first).mean("task"))
        _add(columns, "rank_last_third", rank.isel(task=last).mean("task"))
    for column, name in {"feature_rank": "effective_rank", "dormant_fraction": "dormant_fraction"}.items():
        if (value := layer_mean(data, f"probe/features/{name}", "end")) is not None:
            _add(columns, column, value.isel(task=last).mean("task"))
    if "host/compile_seconds" in data:
        columns["compile_s"] = data["host/compile_seconds"].sum("segment")
    if {"host/env_steps", "host/train_seconds"} <= set(data):
        steps, seconds = (data[f"host/{name}"].sum("segment") for name in ("env_steps", "train_seconds"))
        columns["env_steps_per_s"] = steps / seconds.where(seconds > 0)
    return pd.DataFrame({name: column.values for name, column in columns.items()}, pd.Index(data.method, name="method"))


HEADINGS = {
    "tasks": "finished tasks",
    "return": "return, all tasks but the first",
    "return_first_task": "return, first task",
    "return_last_third": "return, last third of tasks",
    "rank_first_third": "Hessian ε-rank at task start, first third",
    "rank_last_third": "Hessian ε-rank at task start, last third",
    "feature_rank": "feature effective rank",
    "dormant_fraction": "dormant units, share",
    "compile_s": "seconds of compilation",
    "env_steps_per_s": "env steps per second",
}
"""Column of `summary` -> its line in `render`; columns without one keep their name."""


def _cell(row: Mapping[str, Any], name: str) -> str:
    if not np.isfinite(row[name]):
        return "-"
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    digits = "{:,.0f}" if abs(row[name]) >= 1000 or float(row[name]).is_integer() else "{:.3g}"
    interval = f" [{digits.format(low)}, {digits.format(high)}]" if np.isfinite(low) else ""
    return digits.format(row[name]) + interval


def render(frame: pd.DataFrame, attributes: Mapping[str, Any] | None = None) -> rich.table.Table:
    """The summary as a table for a terminal.

    Args:
      frame: from `summary`.
      attributes: ``experiment`` and ``run_id`` for the title.

    Returns:
      A table, one column a method, ``mean [low, high]`` in its cells.
    """
    attributes = attributes or {}
    title = " ".join(str(attributes[name]) for name in ("experiment", "run_id") if name in attributes)
    seeds = int(frame["seeds"].max()) if len(frame) else 0
    table = rich.table.Table(title=title or None, caption=f"mean over {seeds} seeds [95 % bootstrap interval]")
    table.add_column("")
    for method in frame.index:
        table.add_column(str(method), justify="right")
    for name in frame.columns:
        if name == "seeds" or name.endswith(("_low", "_high")):
            continue
        kind, _, base = name.partition("_")
        heading = {"minus": f"return minus {base}'s, paired", "over": f"return over {base}'s"}.get(kind, name)
        table.add_row(HEADINGS.get(name, heading), *(_cell(row, name) for _, row in frame.iterrows()))
    return table
