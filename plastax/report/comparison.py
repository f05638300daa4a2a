"""The table of `plastax.report.compare.compare` for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import rich.table
import xarray as xr

from plastax.report.arms import shown
from plastax.report.compare import Statistic
from plastax.report.notes import NUMBERED, run_name, task_numbers, unfinished
from plastax.report.statistics import ABOUT_BOOTSTRAP, FEWEST, about_intervals
from plastax.report.table import ERROR, cell, fitted

MISSING = "a seed's value is of its other tasks, a difference of the tasks that both seeds have"


def what(data: xr.Dataset) -> str:
    """A run and the tasks that it lacks, for the captions of `render`."""
    name = f"{run_name(data)} {data.attrs.get('notice', '')}".strip()
    return "; ".join(
        text for text in (name, f"{data.sizes['task']} tasks", unfinished(data), data.attrs.get("tuning", "")) if text
    )


def _compared_with(frame: pd.DataFrame) -> str:
    """What the differences are relative to, in words; "" if there are no differences."""
    names, methods = ((frame["run"] + ":" + frame[name]).str.removeprefix(":") for name in ("arm", "method"))
    against = frame["against"].dropna()
    if against.nunique() > 1:
        against = against.map(dict(zip(names, methods)))
        if against.nunique() == 1:
            return f"difference to {against.iloc[0]}, with the same values"
        first = frame["run"].iloc[0]
        usual = against[frame["run"] == first].unique().tolist()
        to = f", or else to {usual[0]}; in run {first} to {usual[0]}" if usual else ""
        return f"difference to the same arm of run {first}{to}"
    return f"difference to {against.iloc[0]}" if len(against) else ""


def render(
    frame: pd.DataFrame,
    title: str,
    captions: Mapping[str, str],
    statistic: Statistic = "mean",
    width: int = 120,
    better: str = "better",
) -> rich.table.Table:
    """The table of `compare` for a terminal; columns that do not fit are left out, and the caption says so.

    Args:
      frame: from `compare`.
      title: says what the numbers are; their tasks are added to it.
      captions: letter of a run -> its description, see `what`.
      statistic: as of `compare`.
      width: of the terminal, in characters.
      better: what ``improves`` is the probability of.
    """
    row = frame.iloc[0]
    tasks = range(row["first_task"], row["last_task"] + 1)
    some = f"{row['tasks']} of " if row["tasks"] < len(tasks) else ""
    about = frame.loc[:, "method":"seeds"].iloc[:, :-1]
    cells = shown(about)
    if frame["run"].any():
        cells.insert(0, "run", frame["run"])
    keys = cells.shape[1]
    compared = frame["against"].notna()
    if frame["seeds"].nunique() > 1:
        cells["seeds"] = frame["seeds"].astype(str)
    cells["value"] = [cell(row, "value") for _, row in frame.iterrows()]
    lines = [] if frame["seeds"].nunique() > 1 else [f"{row['seeds']} seed{'s' * bool(row['seeds'] > 1)}"]
    lines += [text] if (text := _compared_with(frame)) else []
    unpaired = np.where(frame["paired_seeds"] == 0, " (unpaired)", "")
    for heading, name, marks in (
        ("difference", "difference", unpaired),
        (f"P({better})", "improves", [""] * len(frame)),
    ):
        rows = zip(compared, marks, (row for _, row in frame.iterrows()))
        cells[heading] = [cell(row, name) + mark if there else "" for there, mark, row in rows]
    table = fitted(cells, width, keys)
    left = list(cells)[len(table.columns) :]
    table.title = f"{title}: {some}{task_numbers(tasks)}"
    fewest = int(frame["seeds"].min())
    lines.append(about_intervals(fewest, " over seeds", statistic).removeprefix(";").strip())
    if not left:
        lines.append(
            f"P({better}): in the same task, ties count half{f', {ABOUT_BOOTSTRAP}' if fewest >= FEWEST else ''}"
        )
    lines = ["; ".join(lines)]
    lines += [f"left out of {width} characters: {', '.join(left)}; --csv FILE has all"] if left else []
    lines += [ERROR] if "value_se" in frame else []
    if missing := frame["missing"].sum():
        why = "no episode ended" if better == "better" else "they were not measured"
        lines.append(f"values that are missing, because {why}: {missing}; {MISSING}")
    if frame["frozen_seeds"].any():
        lines.append("a frozen seed counts as the worst of all compared seeds in each task from then on")
    lines.append(f"over the tasks that all arms have finished; {NUMBERED}")
    lines += [f"{letter}: {text}" if letter else text for letter, text in captions.items()]
    table.caption = "\n".join(lines)
    return table
