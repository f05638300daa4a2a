"""Several methods of several runs in one table: a statistic over seeds and tasks, differences, who wins how often.

Intervals are over seeds and keep each seed's tasks together (Agarwal et al., "Deep reinforcement learning at the edge
of the statistical precipice", NeurIPS 2021, resample every task by itself: on a stream, where a task starts from what
the one before left, that would be too sure). The seeds are those of the record: seed k of two methods has seen the same
tasks, so differences are paired wherever the seeds' numbers agree.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import rich.table
import scipy.stats
import xarray as xr

from plastax.errors import ConfigError
from plastax.records.layout import RecordError
from plastax.report.notes import NUMBERED, numbers, unfinished, unscored
from plastax.report.score import Score, Window, score_of
from plastax.report.statistics import ABOUT_BOOTSTRAP, FEWEST, about_intervals, jackknife, resample
from plastax.report.table import cell
from plastax.report.values import REFERENCES, finished, frozen_seeds, task_values

Statistic = Literal["mean", "iqm"]

STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda values: values.mean(axis=(-2, -1)),
    # The mean of the middle half of all values, as the paper above has it.
    "iqm": lambda values: scipy.stats.trim_mean(values.reshape(*values.shape[:-2], -1), 0.25, axis=-1),
}
"""Name -> statistic of values ``[..., S, T]``."""


class Arm(NamedTuple):
    """An arm of a run.

    Attributes:
      run: its letter, see `letters`.
      label: of the arm, see `plastax.records.labelled.read_run`.
      seeds: numbers of the seeds.
      values: ``[S, tasks]``, of the planned tasks; NaN where a task was not finished.
      frozen: how many of the seeds broke down; see `plastax.report.values.task_values` for how they count.
    """

    run: str
    label: str
    seeds: tuple[int, ...]
    values: np.ndarray
    frozen: int = 0

    @property
    def name(self) -> str:
        """What options and the table call it: its label, behind the run's letter if there are several runs."""
        return f"{self.run}:{self.label}" if self.run else self.label


def letters(count: int) -> list[str]:
    """Short names of so many runs, A, B, ..., Z, A2, ...; "" for a single one."""
    alphabet = string.ascii_uppercase
    return [""] if count == 1 else [alphabet[i % 26] + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]


def arms(studies: Sequence[xr.Dataset], quantity: str = "") -> tuple[list[Arm], Score, str]:
    """What there is to compare.

    Args:
      studies: one data set a run, see `plastax.report.read`.
      quantity: name of one of the score's quantities; "": the main one.

    Returns:
      The arms, the score, and the label of the quantity.

    Raises:
      ConfigError: the runs are judged by different scores, or have no such quantity.
      RecordError: a run has no finished task yet.
    """
    found: list[Arm] = []
    label = ""
    scores: dict[str, Score] = {}
    for letter, data in zip(letters(len(studies)), studies):
        where = " ".join(str(data.attrs[name]) for name in ("experiment", "run_id") if name in data.attrs)
        score = score_of(data)
        if score is None:
            raise RecordError(f"{where}: {unscored(data) or 'no return, accuracy or loss has been recorded'}")
        scores[where] = score
        chosen = {q.name: q for q in score.quantities} | {"": score.main}
        values = task_values(data, chosen[quantity]) if quantity in chosen else None
        if values is None:
            there = [q.name for q in score.quantities if task_values(data, q) is not None]
            raise ConfigError(f"quantity={quantity!r} was not measured by {where}; allowed: {', '.join(there)}")
        label = chosen[quantity].label
        done = finished(data)
        for name in data.arm.values.tolist():
            if bool(done.sel(arm=name).any()):
                one = values.sel(arm=name).dropna("seed", how="all")
                broken = int(frozen_seeds(data).sel(arm=name))
                found.append(Arm(letter, name, tuple(one.seed.values.tolist()), one.values.astype(float), broken))
    if len({score.main for score in scores.values()}) > 1:
        named = "; ".join(f"{where}: {score.main.label}" for where, score in scores.items())
        raise ConfigError(f"runs cannot be compared that are judged by different things ({named})")
    if not found:
        raise RecordError(f"{'; '.join(scores)}: no task is finished yet")
    return found, next(iter(scores.values())), label


def against(arm: Arm, others: Sequence[Arm], reference: str = "") -> Arm | None:
    """What an arm is compared with: the reference; else the same arm in the first run, in the first run the first of
    `REFERENCES` that it has; None for itself.
    """  # noqa: D205
    if reference:
        named = {other.name: other for other in others}
        if reference not in named:
            raise ConfigError.unknown("reference", reference, named)
        chosen: Arm | None = named[reference]
    else:
        first = {other.label: other for other in others if other.run == others[0].run}
        usual = next((first[name] for name in REFERENCES if name in first), others[0])
        chosen = usual if arm.run == others[0].run else first.get(arm.label, usual)
    return None if chosen is not None and chosen.name == arm.name else chosen


def wins(mine: np.ndarray, its: np.ndarray) -> np.ndarray:
    """Probability that a seed of the first does better than a seed of the second in the same task, mean over tasks.

    Args:
      mine: ``[..., S, T]``; higher is better.
      its: ``[..., S', T]``.

    Returns:
      ``[...]``; ties count half (the Mann-Whitney statistic, as a share of all pairs).
    """
    pairs = mine.shape[-2] * its.shape[-2]
    with np.errstate(all="ignore"):
        # Only its statistic is used; its p-value is undefined where all are equal.
        test = scipy.stats.mannwhitneyu(mine, its, axis=-2, method="asymptotic")
    return test.statistic.mean(axis=-1) / pairs


def compare(
    studies: Sequence[xr.Dataset],
    statistic: Statistic = "mean",
    *,
    quantity: str = "",
    reference: str = "",
    window: Window | None = None,
) -> pd.DataFrame:
    """One row an arm: the statistic, its difference to what the arm is compared with, and how often it wins.

    Args:
      studies: one data set a run, see `plastax.report.read`.
      statistic: ``mean`` or ``iqm`` (interquartile mean), of all seeds and tasks of the window.
      quantity: name of one of the score's quantities; "": the main one.
      reference: name of the arm to compare with (``reset``, of several runs ``A:reset``); "": see `against`.
      window: tasks; by default the last of the score's windows. Of them, those that all arms have finished.

    Returns:
      Columns ``run``, ``arm``, ``seeds``, ``frozen_seeds``, ``first_task``, ``last_task``, ``value``, ``against``,
      ``paired_seeds`` (0: no seed in common, the difference is unpaired), ``difference``, ``improves`` (the
      probability that a seed of this arm does better than one of the other in the same task), each with ``_low`` and
      ``_high``, the ends of the 95 % interval (t; of ``improves`` bootstrap); NaN with fewer than three seeds.

    Raises:
      ConfigError: something cannot be compared, or is unknown.
      RecordError: no task is finished, or none of the window by all arms.
    """
    if statistic not in STATISTICS:
        raise ConfigError.unknown("statistic", statistic, STATISTICS)
    found, score, _ = arms(studies, quantity)
    # Of runs of different lengths, the tasks that all have.
    tasks = min(arm.values.shape[1] for arm in found)
    chosen = np.arange(tasks)[(window or score.windows[-1]).tasks(tasks)]
    chosen = chosen[[all(np.isfinite(arm.values[:, task]).all() for arm in found) for task in chosen]]
    if not len(chosen):
        raise RecordError(f"no task of the window is finished by all of {', '.join(arm.name for arm in found)}")
    of, sign = STATISTICS[statistic], 1.0 if score.higher_is_better else -1.0
    rows = []
    for arm in found:
        mine = arm.values[:, chosen]
        row: dict[str, Any] = {"run": arm.run, "arm": arm.label, "seeds": len(arm.seeds), "frozen_seeds": arm.frozen}
        row |= {"first_task": chosen[0], "last_task": chosen[-1]} | _columns("value", jackknife(of, mine))
        other = against(arm, found, reference)
        if other is not None:
            common = [seed for seed in arm.seeds if seed in other.seeds]
            its = other.values[:, chosen]
            if common:
                mine = mine[[arm.seeds.index(seed) for seed in common]]
                its = its[[other.seeds.index(seed) for seed in common]]
            row |= {"against": other.name, "paired_seeds": len(common)}
            paired = bool(common)
            row |= _columns("difference", jackknife(lambda a, b: of(a) - of(b), mine, its, paired=paired))
            row |= _columns("improves", resample(lambda a, b: wins(sign * a, sign * b), mine, its, paired=paired))
        rows.append(row)
    names = [f"{name}{end}" for name in ("value", "difference", "improves") for end in ("", "_low", "_high")]
    columns = ["run", "arm", "seeds", "frozen_seeds", "first_task", "last_task", "value", "value_low", "value_high"]
    return pd.DataFrame(rows, columns=[*columns, "against", "paired_seeds", *names[3:]])


def compare_windows(studies: Sequence[xr.Dataset], statistic: Statistic = "mean", **options: str) -> pd.DataFrame:
    """`compare` for every window of the score, one below another; ``quantity`` and ``window`` are columns.

    Args:
      studies: one data set a run, see `plastax.report.read`.
      statistic: see `compare`.
      **options: ``quantity`` and ``reference``, see `compare`.
    """
    _, score, label = arms(studies, options.get("quantity", ""))
    tasks = min(data.sizes["task"] for data in studies)
    parts = []
    for window in score.windows:
        where = window.label.format(n=len(range(tasks)[window.tasks(tasks)]))
        part = compare(studies, statistic, window=window, **options)
        part.insert(0, "quantity", label)
        part.insert(1, "window", where)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _columns(name: str, interval: Sequence[Any]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, interval)))


def what(data: xr.Dataset) -> str:
    """What a run is, and which tasks it lacks, for the captions of `render`."""
    names = [str(data.attrs[name]) for name in ("experiment", "run_id", "notice") if data.attrs.get(name)]
    return "; ".join(text for text in (" ".join(names), f"{data.sizes['task']} tasks", unfinished(data)) if text)


def render(frame: pd.DataFrame, title: str, captions: Mapping[str, str]) -> rich.table.Table:
    """The table of `compare` for a terminal.

    Args:
      frame: from `compare`.
      title: what the numbers are; the tasks that they are of are added.
      captions: letter of a run -> what it is, see `what`.
    """
    row = frame.iloc[0]
    title = f"{title}: {numbers(range(row['first_task'], row['last_task'] + 1))}"
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
    about = about_intervals(fewest, " over seeds").removeprefix(";").strip()
    first = f"{about}; P(better): in the same task, ties half{f', {ABOUT_BOOTSTRAP}' if fewest >= FEWEST else ''}"
    if frame["frozen_seeds"].any():
        lines = ["a frozen seed counts as the worst of all seeds in each task from then on", *lines]
    table.caption = "\n".join([first, f"of the tasks that all have finished; {NUMBERED}", *lines])
    return table
