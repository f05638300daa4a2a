"""The arms of several runs in one table: a statistic over seeds and tasks, differences, probabilities of improvement.

Intervals are over seeds and keep the tasks of a seed together. Agarwal et al. ("Deep reinforcement learning at the edge
of the statistical precipice", NeurIPS 2021) resample each task by itself; on a stream, where each task starts from what
the one before left, such intervals would be too short. Seed k of two methods has seen the same tasks, so differences
are paired wherever the numbers of seeds agree.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import rich.table
import xarray as xr

from plastax.errors import ConfigError
from plastax.records.layout import RecordError
from plastax.report.notes import NUMBERED, run_name, task_numbers, unfinished, unscored
from plastax.report.score import Score, TaskWindow, score_of
from plastax.report.statistics import ABOUT_BOOTSTRAP, FEWEST, about_intervals, bootstrap, jackknife
from plastax.report.table import cell
from plastax.report.values import REFERENCES, finished, frozen_seeds, task_values, together

Statistic = Literal["mean", "iqm"]


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over seeds of each seed's mean over its tasks.

    Args:
      values: ``[S, T]``; NaN where a seed has no value, which every seed has in some task.
      weights: ``[..., S]``, how often each seed is there.

    Returns:
      ``[...]``
    """
    return weights @ np.nanmean(values, axis=1) / weights.sum(axis=-1)


def iqm(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Interquartile mean of the values of all seeds and tasks, as in the paper above; arguments as of `mean`."""
    flat = values.ravel()
    order = np.argsort(flat)
    order = order[np.isfinite(flat[order])]
    count = np.repeat(weights, values.shape[1], axis=-1)[..., order]
    upto = np.cumsum(count, axis=-1)
    cut = np.floor(upto[..., -1:] / 4)
    kept = np.clip(upto, cut, upto[..., -1:] - cut)
    kept -= np.clip(upto - count, cut, upto[..., -1:] - cut)
    return kept @ flat[order] / kept.sum(axis=-1)


MISSING = "a seed's value is of its other tasks, a difference of the tasks that both seeds have"

STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"mean": mean, "iqm": iqm}


class Scored(NamedTuple):
    """What an arm of a run has achieved.

    Attributes:
      run: letter of the run, see `letters`.
      label: of the arm, see `plastax.records.labelled.read_run`.
      seeds: numbers of the seeds.
      values: ``[S, tasks]``, of the planned tasks; NaN where a task is not finished, or a seed has no value in it.
      finished: ``[tasks]``, whether the arm has finished it.
      frozen: number of frozen seeds; see `plastax.report.values.together` for how they count.
    """

    run: str
    label: str
    seeds: tuple[int, ...]
    values: np.ndarray
    finished: np.ndarray
    frozen: int = 0

    @property
    def name(self) -> str:
        """What options and the table call it: its label; of several runs, after the letter of its run."""
        return f"{self.run}:{self.label}" if self.run else self.label


def letters(count: int) -> list[str]:
    """Short names of runs: A, B, ..., Z, A2, ...; "" for a single one."""
    alphabet = string.ascii_uppercase
    return [""] if count == 1 else [alphabet[i % 26] + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]


def scored_arms(studies: Sequence[xr.Dataset], quantity: str = "") -> tuple[list[Scored], Score, str]:
    """All arms of some runs, to be compared.

    Args:
      studies: one data set for each run, see `plastax.report.read`.
      quantity: name of one of the score's quantities; "": the main one.

    Returns:
      The arms, the score, and the label of the quantity.

    Raises:
      ConfigError: the runs are judged by different scores, or have no such quantity.
      RecordError: a run has no finished task yet.
    """
    names, scores = [run_name(data) for data in studies], []
    for name, data in zip(names, studies):
        if (score := score_of(data)) is None:
            raise RecordError(f"{name}: {unscored(data) or 'no return, accuracy or loss has been recorded'}")
        scores.append(score)
    score = scores[0]
    if any(other.main != score.main for other in scores):
        named = "; ".join(f"{name}: {other.main.label}" for name, other in zip(names, scores))
        raise ConfigError(f"runs that are judged by different things cannot be compared ({named})")
    chosen = {q.name: q for q in score.quantities} | {"": score.main}
    values = together(studies, chosen[quantity]) if quantity in chosen else [None] * len(studies)
    if lacking := [name for name, one in zip(names, values) if one is None]:
        known = [q.name for q in score.quantities if all(task_values(data, q) is not None for data in studies)]
        raise ConfigError(f"quantity={quantity!r} was not measured by {lacking[0]}; allowed: {', '.join(known)}")
    found: list[Scored] = []
    for letter, data, of_arms in zip(letters(len(studies)), studies, values):
        assert of_arms is not None
        for name in data.arm.values.tolist():
            done = finished(data).sel(arm=name).values
            if done.any():
                one = of_arms.sel(arm=name).dropna("seed", how="all")
                broken = int(frozen_seeds(data).sel(arm=name))
                found.append(
                    Scored(letter, name, tuple(one.seed.values.tolist()), one.values.astype(float), done, broken)
                )
    if not found:
        raise RecordError(f"{'; '.join(names)}: no task is finished yet")
    return found, score, chosen[quantity].label


def against(arm: Scored, others: Sequence[Scored], reference: str = "") -> Scored | None:
    """The arm that an arm is compared with, None for itself.

    That is the ``reference``, if given. Otherwise an arm of the first run is compared with the first of `REFERENCES`
    that the run has, and an arm of another run with the same arm of the first run.
    """
    if reference:
        named = {other.name: other for other in others}
        if reference not in named:
            raise ConfigError.unknown("reference", reference, named)
        chosen: Scored | None = named[reference]
    else:
        first = {other.label: other for other in others if other.run == others[0].run}
        usual = next((first[name] for name in REFERENCES if name in first), others[0])
        chosen = usual if arm.run == others[0].run else first.get(arm.label, usual)
    return None if chosen is not None and chosen.name == arm.name else chosen


def wins(mine: np.ndarray, its: np.ndarray) -> Callable[..., np.ndarray]:
    """Probability that a seed of the first does better than a seed of the second in the same task, mean over tasks.

    Args:
      mine: ``[S, T]``; higher is better; NaN where a seed has no value.
      its: ``[S', T]``.

    Returns:
      ``(weights [..., S], weights [..., S']) -> [...]``; without the second, the first is for both. Ties count half
      (the Mann-Whitney statistic, as a share of all pairs).
    """
    pairs = np.isfinite(mine)[:, None] & np.isfinite(its)
    won = np.where(pairs, (np.sign(mine[:, None] - its) + 1) / 2, 0.0)

    def of(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        b = a if b is None else b
        share, count = ((b[..., None] * np.tensordot(a, part * 1.0, 1)).sum(axis=-2) for part in (won, pairs))
        # Of few seeds, a resample may have no pair in a task, or in any.
        of_tasks = np.divide(share, count, out=np.zeros(count.shape), where=count > 0).sum(axis=-1)
        tasks = (count > 0).sum(axis=-1)
        return np.divide(of_tasks, tasks, out=np.full(tasks.shape, np.nan), where=tasks > 0)

    return of


def compare(
    studies: Sequence[xr.Dataset],
    statistic: Statistic = "mean",
    *,
    quantity: str = "",
    reference: str = "",
    window: TaskWindow | None = None,
) -> pd.DataFrame:
    """One row for each arm: the statistic, its difference to what the arm is compared with, and how often it wins.

    A value is missing where no episode of a seed ended in a task. The statistic is of the tasks that a seed has, the
    difference of two seeds of the tasks that both have, and pairs of seeds win or lose in the tasks that both have.

    Args:
      studies: one data set for each run, see `plastax.report.read`.
      statistic: ``mean`` or ``iqm`` (interquartile mean), of all seeds and tasks of the window.
      quantity: name of one of the score's quantities; "": the main one.
      reference: name of the arm to compare with (``reset``, of several runs ``A:reset``); "": see `against`.
      window: tasks; by default the last of the score's windows. Of them, those that all arms have finished and have a
        value in.

    Returns:
      Columns ``run``, ``arm``, ``seeds`` (with a value), ``frozen_seeds``, ``missing`` (values of seeds in tasks),
      ``tasks`` (their number), ``first_task``, ``last_task``, ``value``, ``against``, ``paired_seeds`` (0: no seed in
      common, the difference is unpaired), ``difference``, ``improves`` (the probability that a seed of this arm does
      better than one of the other in the same task). Value, difference and probability have ``_low`` and ``_high``, the
      ends of the 95 % interval (t; of ``improves`` bootstrap); NaN with fewer than three seeds.

    Raises:
      ConfigError: something cannot be compared, or is unknown.
      RecordError: no task is finished, or none of the window by all arms.
    """
    if statistic not in STATISTICS:
        raise ConfigError.unknown("statistic", statistic, STATISTICS)
    found, score, _ = scored_arms(studies, quantity)
    # Of runs of different lengths, the tasks that all have.
    tasks = min(arm.values.shape[1] for arm in found)
    chosen = np.arange(tasks)[(window or score.windows[-1]).tasks(tasks)]
    # A task in which some seed of every arm has a value: one that no seed was measured in says nothing.
    known = [arm.finished[chosen] & np.isfinite(arm.values[:, chosen]).any(axis=0) for arm in found]
    chosen = chosen[np.all(known, axis=0)]
    if not len(chosen):
        raise RecordError(f"no task of the window is finished by all of {', '.join(arm.name for arm in found)}")
    of, sign = STATISTICS[statistic], 1.0 if score.higher_is_better else -1.0
    rows = []
    for arm in found:
        mine = arm.values[:, chosen]
        there = _seen(mine)
        row: dict[str, Any] = {"run": arm.run, "arm": arm.label, "seeds": len(there), "frozen_seeds": arm.frozen}
        row |= {"missing": int(np.isnan(mine).sum()), "tasks": len(chosen)}
        row |= {"first_task": chosen[0], "last_task": chosen[-1]}
        row |= _interval("value", statistic, functools.partial(of, there), len(there))
        if (other := against(arm, found, reference)) is not None:
            its = other.values[:, chosen]
            common = [seed for seed in arm.seeds if seed in other.seeds]
            if common:
                mine, its = (one.values[[one.seeds.index(k) for k in common]][:, chosen] for one in (arm, other))
                both = np.isfinite(mine + its)
                a, b = (_seen(np.where(both, values, np.nan)) for values in (mine, its))
                sizes, ranked = [len(a)], [len(common)]
            else:
                a, b = _seen(mine), _seen(its)
                sizes, ranked = [len(a), len(b)], [len(mine), len(its)]
            row |= {"against": other.name, "paired_seeds": len(common)}
            row |= _interval("difference", statistic, functools.partial(_difference, of, a, b), *sizes)
            row |= _interval("improves", "", wins(sign * mine, sign * its), *ranked)
        rows.append(row)
    names = [f"{name}{end}" for name in ("value", "difference", "improves") for end in ("", "_low", "_high")]
    columns = ["run", "arm", "seeds", "frozen_seeds", "missing", "tasks", "first_task", "last_task", *names[:3]]
    return pd.DataFrame(rows, columns=[*columns, "against", "paired_seeds", *names[3:]])


def _seen(values: np.ndarray) -> np.ndarray:
    """The seeds that have a value in any task."""
    return values[np.isfinite(values).any(axis=1)]


def _difference(of: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray, *weights: np.ndarray) -> np.ndarray:
    return of(a, weights[0]) - of(b, weights[-1])


def _interval(name: str, statistic: str, of: Callable[..., np.ndarray], *seeds: int) -> dict[str, float]:
    """A statistic of weighted seeds and its interval, by column; ``statistic`` "": a probability."""
    student = functools.partial(bootstrap, student=True, resamples=1999)
    kinds: dict[str, Callable[..., tuple[float, float, float]]] = {"mean": jackknife, "iqm": student, "": bootstrap}
    ends = kinds[statistic](of, *seeds) if min(seeds) else (np.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends))


def compare_windows(studies: Sequence[xr.Dataset], statistic: Statistic = "mean", **options: str) -> pd.DataFrame:
    """`compare` for every window of the score, with the columns ``quantity`` and ``window``.

    Args:
      studies: one data set a run, see `plastax.report.read`.
      statistic: see `compare`.
      **options: ``quantity`` and ``reference``, see `compare`.
    """
    _, score, label = scored_arms(studies, options.get("quantity", ""))
    tasks = min(data.sizes["task"] for data in studies)
    parts = []
    for window in score.windows:
        where = window.label.format(n=len(range(tasks)[window.tasks(tasks)]))
        part = compare(studies, statistic, window=window, **options)
        part.insert(0, "quantity", label)
        part.insert(1, "window", where)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def what(data: xr.Dataset) -> str:
    """A run and the tasks that it lacks, for the captions of `render`."""
    name = f"{run_name(data)} {data.attrs.get('notice', '')}".strip()
    return "; ".join(text for text in (name, f"{data.sizes['task']} tasks", unfinished(data)) if text)


def render(
    frame: pd.DataFrame, title: str, captions: Mapping[str, str], statistic: Statistic = "mean"
) -> rich.table.Table:
    """The table of `compare` for a terminal.

    Args:
      frame: from `compare`.
      title: says what the numbers are; their tasks are added to it.
      captions: letter of a run -> its description, see `what`.
      statistic: as of `compare`.
    """
    row = frame.iloc[0]
    tasks = range(row["first_task"], row["last_task"] + 1)
    some = f"{row['tasks']} of " if row["tasks"] < len(tasks) else ""
    title = f"{title}: {some}{task_numbers(tasks)}"
    table = rich.table.Table(title=title, caption_justify="left")
    several = bool(frame["run"].any())
    for name in [*(["run"] if several else []), "arm"]:
        table.add_column(name, no_wrap=True)
    for name in ("seeds", "value", "minus", "difference", "P(better)"):
        table.add_column(name, justify="left" if name == "minus" else "right", no_wrap=True)
    for _, row in frame.iterrows():
        compared = isinstance(row["against"], str)
        minus = f"{row['against']}{'' if row['paired_seeds'] else ' (unpaired)'}" if compared else ""
        cells = [cell(row, "value"), minus, *(cell(row, n) if compared else "" for n in ("difference", "improves"))]
        table.add_row(*([row["run"]] if several else []), row["arm"], str(row["seeds"]), *cells)
    lines = [f"{letter}: {text}" if letter else text for letter, text in captions.items()]
    fewest = int(frame["seeds"].min())
    about = about_intervals(fewest, " over seeds", statistic).removeprefix(";").strip()
    first = f"{about}; P(better): in the same task, ties count half{f', {ABOUT_BOOTSTRAP}' if fewest >= FEWEST else ''}"
    if missing := frame["missing"].sum():
        lines = [f"values that are missing, because no episode ended: {missing}; {MISSING}", *lines]
    if frame["frozen_seeds"].any():
        lines = ["a frozen seed counts as the worst of all compared seeds in each task from then on", *lines]
    table.caption = "\n".join([first, f"over the tasks that all arms have finished; {NUMBERED}", *lines])
    return table
