"""The findings at the top of the page: which method keeps its plasticity, and does its spectrum collapse first?

Every statement depends on an interval: "worse" if the 95 % interval of the paired change lies on the worse side of
zero, "no clear change" if it contains zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from plastax.report import arms
from plastax.report.score import Score, TaskWindow, score_of, thirds
from plastax.report.statistics import FEWEST, over_seeds
from plastax.report.table import cell
from plastax.report.values import frozen_seeds, layer_mean, of_reference, rank_at, reference, task_values

_THIRDS = (
    TaskWindow("_early", "first {n}", lambda tasks: thirds(tasks)[0]),
    TaskWindow("_late", "last {n}", lambda tasks: thirds(tasks)[1]),
)


FEW, MANY = 3, 4
"""Sentences leave the numbers of more arms than ``FEW`` to the table, and the names of more arms than ``MANY``."""


class Measure(NamedTuple):
    """The measure of the spectrum: its label, and values (arm, seed, task) at the start of each task."""

    label: str
    values: xr.DataArray


def spectrum(data: xr.Dataset) -> Measure | None:
    """The eps-rank of the Hessian, or else of the Gauss-Newton matrix, or else the rank of the features."""
    for operator, name in (("hessian", "Hessian"), ("ggn", "Gauss-Newton")):
        rank = rank_at(data, operator=operator)
        if rank is not None and bool(rank.notnull().any()):
            eps = f" at {float(rank.eps):g}" if "eps" in rank.coords else ""
            return Measure(f"{name} eps-rank{eps}", rank.reset_coords(drop=True))
    features = layer_mean(data, "probe/features/effective_rank", "init")
    if features is not None and bool(features.notnull().any()):
        return Measure("feature effective rank", features)
    return None


def windows(score: Score) -> tuple[TaskWindow, TaskWindow]:
    """The early and the late tasks: those of the score, or else the first and the last third."""
    return score.change[0] if score.change else _THIRDS


def first_drop(values: xr.DataArray, higher_is_better: bool = True) -> dict[str, int | None]:
    """The first task of each arm in which a value is clearly below its start.

    Args:
      values: (arm, seed, task).
      higher_is_better: otherwise above its start.

    Returns:
      Arm -> the first of two successive measured tasks in which the 95 % interval of the change since the arm's first
      measured task (paired by seed) lies below zero; None without such a task. Two, because some of many intervals
      miss zero by chance.
    """
    sign = 1.0 if higher_is_better else -1.0
    out: dict[str, int | None] = {}
    for arm in values.arm.values.tolist():
        one = sign * values.sel(arm=arm, drop=True).dropna("task", how="all")
        out[arm] = None
        if one.sizes["task"] < 2:
            continue
        below = (over_seeds((one - one.isel(task=0, drop=True)).isel(task=slice(1, None)))["high"] < 0).values
        lasting = below & np.append(below[1:], True)
        if lasting.any():
            out[arm] = int(one.task.values[1:][lasting.argmax()])
    return out


class Findings(NamedTuple):
    """The findings of a study.

    Attributes:
      frame: one row for each arm, index ``arm``: ``late``, ``change``, ``rank_change``, ``minus`` (late, minus the
        reference's) and ``lead`` (late, the best arm's minus this one's), each with its interval; ``drop`` and
        ``rank_drop``, the first task below the start.
      score: of the study.
      measure: of the spectrum; None without one.
      tasks: numbers of early and of late tasks.
      reference: the method that others are compared with.
      best: the arm with the best late score, except ``reset``.
      seeds: number of seeds.
      methods: arm -> its method, of several runs with the letter of its run.
      names: arm -> what sentences call it.
    """

    frame: pd.DataFrame
    score: Score
    measure: Measure | None
    tasks: tuple[int, int]
    reference: str | None
    best: str
    seeds: int
    methods: Mapping[str, str]
    names: Mapping[str, str]


def findings(data: xr.Dataset) -> Findings | None:
    """The findings; None if no late task is finished, or no score is recorded."""
    score = score_of(data)
    values = None if score is None else task_values(data, score.main)
    if score is None or values is None or not bool(values.notnull().any()):
        return None
    count = data.sizes["task"]
    early, late = (window.tasks(count) for window in windows(score))
    measure, name = spectrum(data), reference(data)
    at_end = values.isel(task=late).mean("task")
    parts = {"late": over_seeds(at_end)}
    if count > 1:
        parts["change"] = over_seeds(at_end - values.isel(task=early).mean("task"))
    if name is not None:
        parts["minus"] = over_seeds(at_end - of_reference(at_end, name))
    means = parts["late"]["mean"].to_series().dropna()
    if means.empty:
        return None
    of = dict(zip(data.arm.values.tolist(), data.method.values.tolist()))
    ranked = means[[arm for arm in means.index if arms.base(of[arm]) != "reset"] or means.index]
    best = ranked.idxmax() if score.higher_is_better else ranked.idxmin()
    parts["lead"] = over_seeds(at_end.sel(arm=best, drop=True) - at_end)
    drops: dict[str, Any] = {"drop": first_drop(values, score.higher_is_better)}
    if measure is not None:
        ranks = measure.values
        parts["rank_change"] = over_seeds(ranks.isel(task=late).mean("task") - ranks.isel(task=early).mean("task"))
        drops["rank_drop"] = first_drop(ranks)
    columns = {f"{key}{end}": part[name_].values for key, part in parts.items() for name_, end in _ENDS.items()}
    frame = pd.DataFrame(columns | {"arm": data.arm.values}).set_index("arm")
    frame["seeds"], frame["frozen_seeds"] = data.sizes["seed"], frozen_seeds(data).values
    for key, found in drops.items():
        frame[key] = pd.Series(found, dtype=object)
    sizes = len(range(count)[early]), len(range(count)[late])
    return Findings(frame, score, measure, sizes, name, best, data.sizes["seed"], of, arms.names(data))


def _listed(named: Sequence[str]) -> str:
    """Arms in a sentence; the table names them if there are many."""
    return ", ".join(named) if len(named) <= MANY else f"{len(named)} arms"


_ENDS = {"mean": "", "low": "_low", "high": "_high"}


def answers(found: Findings | None, why: str = "") -> list[tuple[str, str]]:
    """Questions and the study's answers; ``why`` it has none, if not for lack of finished tasks."""
    if found is None:
        return [("", f"{why[:1].upper()}{why[1:]}." if why else "No late task is finished yet.")]
    frame = found.frame
    if found.seeds < FEWEST:
        many = "One seed has" if found.seeds == 1 else f"{found.seeds} seeds have"
        return [("", f"{many} no interval, so a difference may be chance. Run more seeds (--seeds 8).")]
    learners = [arm for arm in frame.index if arms.base(found.methods[arm]) != "reset"] or list(frame.index)
    kept = [*_who(frame.loc[learners].dropna(subset="late"), found), *_changes(frame, found)]
    return [
        *((question, text) for question, text in zip(["Which method keeps its plasticity?", "", ""], kept)),
        ("Does its spectrum collapse first?", _order(frame.loc[learners], found)),
    ]


def _who(frame: pd.DataFrame, found: Findings) -> list[str]:
    """The best arm except ``reset``, its lead, and the distance of each arm to ``reset``."""
    if frame.empty:
        return []
    score, best = found.score, found.best
    value = cell(frame.loc[best], "late")
    text = f"In the last {found.tasks[1]} tasks {found.names[best]} has the best {score.main.label}: {value}"
    ahead: dict[bool, list[str]] = {True: [], False: []}
    for arm, row in frame.drop(best).iterrows():
        # The numbers of many arms would hide the sentence.
        number = f" by {cell(row, 'lead')}" if len(frame) <= FEW else ""
        ahead[_side(row, "lead", score) > 0].append(f"{found.names[arm]}{number}")
    text += f" ({found.reference} left out)" if found.reference and arms.base(found.reference) == "reset" else ""
    text += f"; clearly ahead of {_listed(ahead[True])}" if ahead[True] else ""
    text += f"; not clearly ahead of {_listed(ahead[False])}" if ahead[False] else ""
    said = [f"{text}."]
    if found.reference is not None and arms.base(found.reference) == "reset":
        verbs = {-1: "worse", 0: "not clearly different", 1: "better"}
        rows = frame[[found.methods[arm] != found.reference for arm in frame.index]].dropna(subset=["minus_low"])
        each = _grouped(rows, "minus", verbs, found)
        said += [f"Compared with a new network in every task ({found.reference}): {each}."] if each else []
    return said


def _grouped(rows: pd.DataFrame, name: str, verbs: Mapping[int, str], found: Findings) -> str:
    """``worse: a (-3), b (-2); better: c (+1)``, without intervals, which the table has."""
    groups: dict[int, list[str]] = {}
    for arm, row in rows.iterrows():
        number = _signed(row[[name]], name)
        groups.setdefault(_side(row, name, found.score), []).append(f"{found.names[arm]} ({number})")
    return "; ".join(f"{verbs[side]}: {_listed(groups[side])}" for side in verbs if side in groups)


def _side(row: pd.Series, name: str, score: Score) -> int:
    """1 if an interval lies on the better side of zero, -1 if on the worse, 0 if it contains zero."""
    ends = (row[f"{name}_low"], row[f"{name}_high"])
    low, high = ends if score.higher_is_better else (-ends[1], -ends[0])
    return int(low > 0) - int(high < 0)


def _signed(row: pd.Series, name: str) -> str:
    return f"{'+' if float(row[name]) > 0 else ''}{cell(row, name)}"


def _changes(frame: pd.DataFrame, found: Findings) -> list[str]:
    """The change of each arm's score over the stream."""
    if "change" not in frame:
        return []
    said = _grouped(
        frame.dropna(subset=["change_low"]), "change", {-1: "worse", 0: "no clear change", 1: "better"}, found
    )
    early, late = found.tasks
    return [f"In the last {late} tasks, compared with the first {early}: {said}."] if said else []


def _order(frame: pd.DataFrame, found: Findings) -> str:
    """Whether performance or spectrum fell first."""
    if found.measure is None:
        return "Not measured: add --probes hessian."
    score, groups = found.score.name, dict[str, list[str]]()
    for arm, row in frame.iterrows():
        verdict, when = _reading(row, score)
        groups.setdefault(verdict, []).append(f"{found.names[arm]}{when}")
    label = found.measure.label
    hint = "" if label.startswith(("Hessian", "Gauss")) else " No spectrum was measured; --probes hessian does."
    said = "; ".join(f"{verdict}: {_listed(groups[verdict])}" for verdict in groups)
    return f"By the {label}: {said}.{hint}"


def _reading(row: pd.Series, score: str) -> tuple[str, str]:
    """Whether performance or spectrum of an arm fell first, and in which tasks."""
    drop, rank = row["drop"], row["rank_drop"]
    if pd.isna(drop) and pd.isna(rank):
        return "neither falls", ""
    if pd.isna(rank):
        return f"{score} falls, the rank does not", f" (task {drop})"
    if pd.isna(drop):
        return f"the rank falls, {score} does not", f" (task {rank})"
    if drop == rank:
        return "both fall in the same task", f" (task {drop})"
    if rank < drop:
        return "the rank falls first", f" (task {rank}, {score} in {drop})"
    return f"{score} falls first", f" (task {drop}, the rank in {rank})"


def table(found: Findings) -> pd.DataFrame:
    """The findings for the page, one row for each arm."""
    label = found.score.main.label
    headings = {
        "late": f"{label}, last {found.tasks[1]} tasks",
        "change": f"change from the first {found.tasks[0]}",
        "minus": f"minus {found.reference}",
        "rank_change": f"change of {found.measure.label if found.measure else ''}",
    }
    out = {}
    for key, heading in headings.items():
        if key in found.frame:
            out[heading] = [
                "" if key == "minus" and found.methods[arm] == found.reference else cell(row, key)
                for arm, row in found.frame.iterrows()
            ]
    for key, heading in {
        "drop": f"{found.score.name} below start from task",
        "rank_drop": "rank below start from task",
    }.items():
        if key in found.frame:
            out[heading] = ["never" if pd.isna(task) else str(task) for task in found.frame[key]]
    return pd.DataFrame(out, index=found.frame.index)


NOTE = (
    "Means over seeds with 95 % t intervals (for three seeds or more); changes and differences are paired by "
    "seed. Tasks are numbered from 0. Below start: the interval of the change since task 0 lies on the worse side of "
    "zero in that task and in the next measured one. The rank of task 0 is that of the untrained network. An order in "
    "time is not a cause."
)
