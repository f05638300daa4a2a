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
import xarray as xr

from plastax.errors import ConfigError
from plastax.records.layout import RecordError
from plastax.report.arms import described
from plastax.report.notes import run_name, unscored
from plastax.report.quantities import quantity as find
from plastax.report.score import SCORES, Quantity, Score, TaskWindow, score_of
from plastax.report.statistics import bootstrap, jackknife
from plastax.report.values import REFERENCES, finished, frozen_seeds, layer_mean, together

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
      about: its method and the values of swept settings, see `plastax.report.arms.described`.
      errors: ``[seeds of the run, tasks]`` standard error of one measurement; None if unknown.
    """

    run: str
    label: str
    seeds: tuple[int, ...]
    values: np.ndarray
    finished: np.ndarray
    frozen: int
    about: Mapping[str, Any]
    errors: np.ndarray | None

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.about["method"])

    @property
    def name(self) -> str:
        """What options and the table call it: its label; of several runs, after the letter of its run."""
        return f"{self.run}:{self.label}" if self.run else self.label


def letters(count: int) -> list[str]:
    """Short names of runs: A, B, ..., Z, A2, ...; "" for a single one."""
    alphabet = string.ascii_uppercase
    return [""] if count == 1 else [alphabet[i % 26] + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]


def scored_arms(studies: Sequence[xr.Dataset], quantity: str = "") -> tuple[list[Scored], Score, Quantity]:
    """All arms of some runs, to be compared.

    Args:
      studies: one data set for each run, see `plastax.report.read`.
      quantity: see `plastax.report.quantities.quantity`; "": the score's main one.

    Returns:
      The arms, the score whose windows of tasks are compared, and the quantity.

    Raises:
      ConfigError: the runs are judged by different scores, or a run has no such quantity.
      RecordError: a run has no finished task yet.
    """
    names, scores = [run_name(data) for data in studies], []
    for name, data in zip(names, studies):
        score = score_of(data)
        if score is None and not quantity:
            raise RecordError(f"{name}: {unscored(data) or 'no return, accuracy or loss has been recorded'}")
        scores.append(score or SCORES[-1])
    score = scores[0]
    if any(other.main != score.main for other in scores):
        named = "; ".join(f"{name}: {other.main.label}" for name, other in zip(names, scores))
        raise ConfigError(f"runs that are judged by different things cannot be compared ({named})")
    chosen = find(studies[0], quantity)
    values = together(studies, chosen)
    if lacking := [name for name, one in zip(names, values) if one is None]:
        raise ConfigError(f"quantity={quantity!r} was not measured by {lacking[0]}")
    found: list[Scored] = []
    for letter, data, of_arms in zip(letters(len(studies)), studies, values):
        assert of_arms is not None
        about = described(data)
        for name in data.arm.values.tolist():
            done = finished(data).sel(arm=name).values
            if done.any():
                one = of_arms.sel(arm=name).dropna("seed", how="all")
                broken = int(frozen_seeds(data).sel(arm=name)) if chosen in score.quantities else 0
                seeds, numbers = tuple(one.seed.values.tolist()), one.values.astype(float)
                error = layer_mean(data, f"{chosen.variable}_se", chosen.mark) if chosen.mark else None
                errors = None if error is None else error.sel(arm=name).values
                found.append(Scored(letter, name, seeds, numbers, done, broken, about.loc[name].to_dict(), errors))
    if not found:
        raise RecordError(f"{'; '.join(names)}: no task is finished yet")
    return found, score, chosen


def against(arm: Scored, others: Sequence[Scored], reference: str = "") -> Scored | None:
    """The arm that an arm is compared with, None for a reference itself.

    That is the ``reference``, an arm or a method. Otherwise an arm of the first run is compared with the first of
    `REFERENCES` that the run has, and an arm of another run with the same arm of the first run. In a sweep it is the
    arm of the reference with the same values.
    """
    first = [other for other in others if other.run == others[0].run]
    if reference:
        named = [other for other in others if other.name == reference] or [
            other for other in others if reference in (other.method, f"{other.run}:{other.method}")
        ]
        if not named:
            raise ConfigError.unknown(
                "reference", reference, dict.fromkeys(o for a in others for o in (a.name, a.method))
            )
    else:
        named = [other for other in first if arm.run != other.run and arm.label == other.label]
        named = named or next(
            (of for name in REFERENCES if (of := [other for other in first if other.method == name])), first[:1]
        )
    # Of a sweep of the reference alone, its first arm.
    named = named[:1] if len(named) == len(others) else named
    if any(other.name == arm.name for other in named):
        return None
    return max(
        named, key=lambda other: sum(arm.about[k] == value for k, value in other.about.items() if k in arm.about)
    )


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

    whole = won.sum(axis=-1) if pairs.all() else None  # [S, S']; every task then has the same pairs

    def of(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        b = a if b is None else b
        if whole is not None:
            return ((a @ whole) * b).sum(axis=-1) / (a.sum(axis=-1) * b.sum(axis=-1) * won.shape[-1])
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
      quantity: what to compare, see `plastax.report.quantities.quantity`; "": the score's main one.
      reference: the arm or method to compare with (``reset``, of several runs ``A:reset``); "": see `against`.
      window: tasks; by default the last of the score's windows. Of them, those that all arms have finished and have a
        value in.

    Returns:
      Columns ``run``, ``arm``, ``method`` and the swept settings, ``seeds`` (with a value), ``frozen_seeds``,
      ``missing`` (values of seeds in tasks), ``tasks`` (their number), ``first_task``, ``last_task``, ``value``,
      ``value_se`` (standard error of one measurement, median), ``against``, ``paired_seeds`` (0: no seed in common, the
      difference is unpaired), ``difference``, ``improves`` (the probability that a seed of this arm does better than
      one of the other in the same task; of a quantity that is no score, that it has more). Value, difference and
      probability have ``_low`` and ``_high``, the ends of the 95 % interval (t; of ``improves`` bootstrap); NaN with
      fewer than three seeds.

    Raises:
      ConfigError: something cannot be compared, or is unknown.
      RecordError: no task is finished, or none of the window by all arms.
    """
    if statistic not in STATISTICS:
        raise ConfigError.unknown("statistic", statistic, STATISTICS)
    found, score, measure = scored_arms(studies, quantity)
    window = window or score.windows[-1]
    # Of runs of different lengths, the tasks that all have.
    tasks = min(arm.values.shape[1] for arm in found)
    chosen = np.arange(tasks)[window.tasks(tasks)]
    # A task in which some seed of every arm has a value: one that no seed was measured in says nothing.
    known = [arm.finished[chosen] & np.isfinite(arm.values[:, chosen]).any(axis=0) for arm in found]
    chosen = chosen[np.all(known, axis=0)]
    if not len(chosen):
        raise RecordError(
            f"no task of the window ({window.among(tasks)}) is finished and has a value of {measure.name} for all of "
            f"{', '.join(arm.name for arm in found)}"
        )
    of, sign = STATISTICS[statistic], 1.0 if higher_is_better(score, measure) else -1.0
    settings = list(dict.fromkeys(name for arm in found for name in arm.about))
    rows = []
    for arm in found:
        mine = arm.values[:, chosen]
        there = _seen(mine)
        row: dict[str, Any] = {"run": arm.run, "arm": arm.label, **arm.about}
        row |= {"seeds": len(there), "frozen_seeds": arm.frozen}
        row |= {"missing": int(np.isnan(mine).sum()), "tasks": len(chosen)}
        row |= {"first_task": chosen[0], "last_task": chosen[-1]}
        row |= _interval("value", statistic, functools.partial(of, there), len(there))
        if arm.errors is not None and np.isfinite(arm.errors[:, chosen]).any():
            row["value_se"] = float(np.nanmedian(arm.errors[:, chosen]))
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
    columns = ["run", "arm", *settings, "seeds", "frozen_seeds", "missing", "tasks", "first_task", "last_task"]
    errors = ["value_se"] if any("value_se" in row for row in rows) else []
    return pd.DataFrame(rows, columns=[*columns, *names[:3], *errors, "against", "paired_seeds", *names[3:]])


def higher_is_better(score: Score, quantity: Quantity) -> bool:
    """Whether higher is better. For a quantity that is no score this is unknown, and higher counts as a win."""
    return score.higher_is_better or quantity not in score.quantities


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
    """`compare` for every window of the score, with the columns ``quantity``, ``label`` and ``window``.

    Args:
      studies: one data set a run, see `plastax.report.read`.
      statistic: see `compare`.
      **options: ``quantity`` and ``reference``, see `compare`.

    Returns:
      The rows of the windows in which all arms have a value. Attribute ``lacking``: lines on the others.

    Raises:
      RecordError: there is no such window.
    """
    _, score, quantity = scored_arms(studies, options.get("quantity", ""))
    tasks = min(data.sizes["task"] for data in studies)
    parts, lacking = [], []
    for window in score.windows:
        try:
            part = compare(studies, statistic, window=window, **options)
        except RecordError as error:
            lacking.append(str(error))
            continue
        part.insert(0, "quantity", quantity.name)
        part.insert(1, "label", quantity.label)
        part.insert(2, "window", window.among(tasks))
        parts.append(part)
    if not parts:
        raise RecordError(lacking[0])
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["lacking"] = lacking
    return frame
