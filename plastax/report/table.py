"""The summary of a study, with the definition of each number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import rich.box
import rich.table
import xarray as xr
from rich.text import Text

from plastax.report import arms, notes
from plastax.report.score import Quantity, Score, score_of, thirds
from plastax.report.statistics import over_seeds
from plastax.report.values import finished, frozen_seeds, layer_mean, of_reference, rank_at, reference, task_values
from plastax.report.wording import worded


def _add(columns: dict[str, xr.DataArray], name: str, data: xr.DataArray | None) -> None:
    """Adds mean and interval over seeds of (arm, seed) as the columns ``name``, ``name_low``, ``name_high``."""
    if data is not None:
        _add_interval(columns, name, over_seeds(data))


def _add_interval(columns: dict[str, xr.DataArray], name: str, interval: xr.Dataset) -> None:
    columns[name] = interval["mean"]
    columns |= {f"{name}_{end}": interval[end] for end in ("low", "high")}


def _add_difference(columns: dict[str, xr.DataArray], names: tuple[str, str], values: xr.DataArray, base: str) -> None:
    """Adds the paired difference of (arm, seed, task) to the reference, see `of_reference`, and the ratio to it.

    Args:
      columns: to add to.
      names: of the difference and of the ratio; "": none.
      values: of one quantity, in one window of tasks.
      base: the reference.
    """
    other = of_reference(values, base)
    # If one of two arms was killed, only the tasks that both have finished are compared.
    common = values.notnull() & other.notnull()
    mine, its = values.where(common), other.where(common)
    different = values.method != base
    difference = over_seeds(mine.mean("task") - its.mean("task"))
    _add_interval(columns, names[0], difference.where(different))
    if names[1]:
        mine, its = mine.mean(["seed", "task"]), its.mean(["seed", "task"])
        columns[names[1]] = (mine / its).where(different & (mine > 0) & (its > 0))


def _add_score(columns: dict[str, xr.DataArray], data: xr.Dataset, score: Score) -> None:
    """Adds the columns of a score."""
    tasks, base = data.sizes["task"], reference(data)
    for quantity in score.quantities:
        values = task_values(data, quantity)
        if values is None:
            continue
        means = {window: values.isel(task=window.tasks(tasks)).mean("task") for window in score.windows}
        for window, mean in means.items():
            _add(columns, f"{quantity.name}{window.suffix}", mean)
        # In a study of one task, the early and the late tasks are the same.
        for start, stop in score.change if tasks > 1 else ():
            _add_interval(columns, f"{quantity.name}_change", over_seeds(means[stop] - means[start]))
        for window in score.compared if base is not None and (values.method != base).any() else ():
            names = _difference_names(score, quantity, str(base), window.suffix)
            _add_difference(columns, names, values.isel(task=window.tasks(tasks)), str(base))


def _difference_names(score: Score, quantity: Quantity, base: str, suffix: str) -> tuple[str, str]:
    """Columns of the difference and the ratio to the reference; "" without a ratio."""
    prefix = "" if quantity == score.main else f"{quantity.name}_"
    return f"{prefix}minus_{base}{suffix}", f"{prefix}over_{base}{suffix}" if score.ratio else ""


def summary(data: xr.Dataset, eps: float | None = None) -> pd.DataFrame:
    """The summary table; columns that were not measured are missing.

    Every quantity is averaged over tasks for each seed first; ``<name>`` is the mean over seeds, ``<name>_low`` and
    ``<name>_high`` the ends of its 95 % t interval.

    - ``tasks``: finished tasks; ``seeds``: number of seeds.
    - ``frozen_seeds``: number of seeds whose loss was not finite, if any. From then on they count as the worst of all
      seeds in each task, and are left out of probes.
    - Reinforcement learning: ``return``: mean over the finished tasks except the first; ``return_first_task``;
      ``return_last_third``: of the planned tasks. A task's return is the mean over the episodes that ended in it. For
      ``return_per_update`` it is the mean over updates of the mean over the episodes that ended in each.
    - Supervised learning: ``<quantity>_early``, ``<quantity>_late`` and ``<quantity>_change``, late minus early, paired
      by seed. Early are the first three planned tasks, late the last five, both at most a third of the tasks (rounded
      up). Quantities: ``train_accuracy`` and ``test_accuracy`` at the end of a task, and ``online_accuracy``, the
      task's mean of the accuracy before each step; in regression ``online_loss``, ``train_loss`` and ``test_loss``,
      where lower is better.
    - ``minus_<reference>``: difference to the reference (see `REFERENCES`) in the study's main quantity (see
      `plastax.report.score`), paired by seed and task. ``over_<reference>``: ratio of the means over the same tasks,
      for returns, NaN unless both are positive. Supervised: ``minus_<reference>_early`` and ``_late``; for other
      quantities ``<quantity>_minus_<reference>_early`` and ``_late``.
    - ``rank_first_third``, ``rank_last_third``: Hessian eps-rank at the first update of a task, see `rank_at`. Their
      ``_se`` is the standard error of one measurement, median over seeds and tasks (intervals are over seeds).
    - ``feature_rank``, ``dormant_fraction``: mean over layers, at the end of the tasks of the last third.
    - ``compile_s``: seconds of compilation; ``env_steps_per_s`` or ``examples_per_s``: of all seeds together, without
      compilation.
    - ``notice``: only of synthetic data, says so.

    Args:
      data: a study, see `plastax.load`.
      eps: threshold of the eps-rank; by default the middle one measured.

    Returns:
      One row for each arm, index ``arm``; ``method`` and the swept settings say what it is.
    """
    first, last = thirds(data.sizes["task"])
    score = score_of(data)
    columns: dict[str, xr.DataArray] = {"tasks": finished(data).sum("task")}
    columns["seeds"] = xr.full_like(columns["tasks"], data.sizes["seed"])
    if (broken := frozen_seeds(data)).any():
        columns["frozen_seeds"] = broken
    if score is not None:
        _add_score(columns, data, score)
    if (rank := rank_at(data, eps)) is not None:
        rank = rank.reset_coords(drop=True)
        error = rank_at(data, eps, value="rank_se")
        for name, third in {"rank_first_third": first, "rank_last_third": last}.items():
            _add(columns, name, rank.isel(task=third).mean("task"))
            if error is not None:
                columns[f"{name}_se"] = error.isel(task=third).median(["seed", "task"]).reset_coords(drop=True)
    for column, name in {"feature_rank": "effective_rank", "dormant_fraction": "dormant_fraction"}.items():
        if (value := layer_mean(data, f"probe/features/{name}", "end")) is not None:
            _add(columns, column, value.isel(task=last).mean("task"))
    if "host/compile_seconds" in data:
        columns["compile_s"] = data["host/compile_seconds"].sum("segment")
    if {"host/env_steps", "host/train_seconds"} <= set(data):
        steps, seconds = (data[f"host/{name}"].sum("segment") for name in ("env_steps", "train_seconds"))
        columns[_speed_column(score)] = steps / seconds.where(seconds > 0)
    about = {name: column.to_numpy() for name, column in arms.described(data).items()}
    values = about | {name: column.values for name, column in columns.items()}
    values |= {"notice": data.attrs["notice"]} if data.attrs.get("notice") else {}
    return pd.DataFrame(values, pd.Index(data.arm, name="arm"))


def _speed_column(score: Score | None) -> str:
    return f"{score.steps.replace(' ', '_') if score else 'env_steps'}_per_s"


def headings(data: xr.Dataset, eps: float | None = None) -> dict[str, str]:
    """Column of `summary` -> its line in `render`."""
    tasks, base = data.sizes["task"], reference(data)
    found = {"tasks": "finished tasks", "frozen_seeds": "frozen seeds (loss not finite)"}
    for score in filter(None, [score_of(data)]):
        for quantity in score.quantities:
            found[f"{quantity.name}_change"] = f"{quantity.label}, late minus early, paired"
            for window in score.windows:
                where = window.among(tasks)
                found[f"{quantity.name}{window.suffix}"] = f"{quantity.label}, {where}"
                minus, over = _difference_names(score, quantity, str(base), window.suffix)
                found |= {minus: f"{quantity.label}, {where}, minus {base}'s, paired"}
                found |= {over: f"{quantity.label}, {where}, over {base}'s"}
    rank = rank_at(data, eps)
    at = f" ({float(rank.eps):g})" if rank is not None and "eps" in rank.coords else ""
    for third in ("first", "last"):
        found[f"rank_{third}_third"] = f"Hessian ε-rank{at} at task start, {third} third"
    return found | {
        "feature_rank": "feature effective rank",
        "dormant_fraction": "dormant units, share",
        "compile_s": "seconds of compilation",
        "env_steps_per_s": "env steps per second",
        "examples_per_s": "examples per second",
    }


def cell(row: Mapping[str, Any], name: str) -> str:
    """A number in few digits, with its interval and the standard error of one measurement, if the row has them.

    These are ``<name>_low`` and ``<name>_high``, and ``<name>_se``. For a mean over seeds of which some were frozen
    (``frozen_seeds`` of ``seeds``), the cell says so.
    """
    mean = float(row[name])
    if not np.isfinite(mean):
        return "-"
    low, high, error = (float(row.get(f"{name}_{end}", np.nan)) for end in ("low", "high", "se"))
    shown = [value for value in (mean, low, high) if np.isfinite(value)]
    if abs(mean) >= 1000 or all(value.is_integer() for value in shown):
        digits = "{:,.0f}"
    elif len(shown) == 1 or high <= low:
        digits = "{:.3g}"
    else:
        # Three digits of the mean, but at most two of the interval's width.
        places = [2 - math.floor(math.log10(abs(mean)))] if mean else []
        digits = f"{{:z.{max(0, min(*places, 1 - math.floor(math.log10(high - low)), 6))}f}}"
    interval = f" [{digits.format(low)}, {digits.format(high)}]" if len(shown) == 3 else ""
    interval += f" ± {f'{error:,.0f}' if error >= 100 else f'{error:.2g}'}" if np.isfinite(error) else ""
    broken = int(row.get("frozen_seeds", 0)) if f"{name}_low" in row else 0
    return digits.format(mean) + interval + (f" ({broken} of {row['seeds']:.0f} frozen)" if broken else "")


GAP, NAME = 2, 15
"""Characters between two columns of a table, and in a line of a column's name."""


def _widths(cells: pd.DataFrame) -> list[int]:
    """Characters of each column and its gap: of its longest cell, and of its name at least a word and a line."""
    texts = [(*cells.iloc[:, i], *str(name).split(), str(name)[:NAME]) for i, name in enumerate(cells)]
    return [GAP + max(map(len, column)) for column in texts]


def fitted(cells: pd.DataFrame, width: int, keys: int = 1) -> rich.table.Table:
    """A table of the leading columns that fit into a terminal, with every number in one line.

    Args:
      cells: texts, one row for each row of the table.
      width: of the terminal, in characters.
      keys: number of columns that say what a row is. They, and one more, are always there, folded if need be.

    Returns:
      A table with ``len(table.columns)`` of the columns.
    """
    widths = _widths(cells)
    fits = int((np.cumsum(widths) <= width + GAP).sum())
    # Lines between columns would take half as much again as the gaps.
    table = rich.table.Table(
        caption_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for i, (name, size) in enumerate(zip(cells, widths[: max(fits, keys + 1)])):
        key = i < keys
        table.add_column(
            str(name), justify="left" if key else "right", width=None if key else size - GAP, overflow="fold"
        )
    for row in cells.iloc[:, : len(table.columns)].itertuples(index=False):
        table.add_row(*row)
    return table


def by_weight(names: Sequence[str], data: xr.Dataset) -> list[str]:
    """The columns of the summary: the late score, the late rank and the score's change first, finished tasks last."""
    score = score_of(data)
    first = [f"{score.main.name}{score.windows[-1].suffix}"] if score else []
    first += ["rank_last_third", *([f"{score.main.name}_change"] if score else [])]
    first = [name for name in first if name in names]
    return [*first, *(name for name in names if name not in (*first, "tasks")), *({"tasks"} & {*names})]


def render(data: xr.Dataset, width: int = 120, eps: float | None = None) -> rich.table.Table:
    """The summary as a table for a terminal, with every ``mean [low, high] ± error`` in one line.

    Args:
      data: a study, see `plastax.load`. Its attributes ``experiment``, ``run_id`` and ``notice`` are in the title.
      width: of the terminal, in characters.
      eps: threshold of the eps-rank; by default the middle one measured.

    Returns:
      One column for each arm, if all fit. Otherwise one row for each arm, with the quantities that matter most; the
      caption names the file with the others.
    """
    frame, axis = summary(data, eps), data.attrs.get("axis", "task")
    heading = {name: worded(text, axis) for name, text in headings(data, eps).items()}
    names = [name for name in frame if name in heading]
    about = arms.shown(arms.described(data))
    cells = pd.DataFrame({heading[name]: [cell(row, name) for _, row in frame.iterrows()] for name in names})
    cells.index = frame.index
    lines = notes.below(data)
    across = pd.concat([about.drop(columns="method"), cells], axis=1).T
    across.columns = about["method"].to_list()
    longest, room = max(map(len, across.index)), width - sum(_widths(across))
    if room >= min(longest, max(width // 3, 24)):
        across.insert(0, "", across.index)
        table = fitted(across, 10**6)
        table.columns[0].width = min(longest, room)
    else:
        cells = cells[[heading[name] for name in by_weight(names, data)]]
        table = fitted(pd.concat([about, cells], axis=1), width, about.shape[1])
        cells = cells.iloc[:, : len(table.columns) - about.shape[1]]
        left = len(names) - cells.shape[1]
        lines += [f"{left} more quantities are in summary.csv"] if left else []
    if cells.map(lambda text: "±" in text).any(axis=None):
        lines.append(ERROR)
    if arms.is_sweep(data) and heading["compile_s"] in cells:
        lines.append(TOGETHER)
    notice = (f"{text}\n", "bold red") if (text := data.attrs.get("notice")) else ""
    title = notes.run_name(data)
    table.title = Text.assemble(notice, title) if notice or title else None
    table.caption = Text.assemble(notice, worded("\n".join(lines), axis))
    return table


ERROR = "± standard error of one measurement, median over seeds and tasks"
TOGETHER = "arms that are trained together share the seconds of compilation; the speed is that of all of them"
