"""The best arm of every method of a sweep, chosen by one half of the seeds and reported on the other.

On the seeds that it was chosen by, the best of many arms looks better than it is. So the first half of the seeds
chooses, by the mean of the study's main quantity over its last window of tasks, and the second half reports.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import rich.table
import xarray as xr

from plastax.errors import ConfigError
from plastax.records.layout import RecordError
from plastax.report import arms
from plastax.report.compare import STATISTICS, Statistic, compare, scored_arms
from plastax.report.notes import NUMBERED, task_numbers
from plastax.report.statistics import FEWEST, about_intervals
from plastax.report.table import cell, fitted
from plastax.report.values import REFERENCES, finished

SEEDS = 4
"""The fewest seeds of a sweep whose best arms are chosen: two choose, two report."""


def chosen(
    data: xr.Dataset,
    statistic: Statistic = "mean",
    quantity: str = "",
    tasks: Callable[[int], slice] | None = None,
) -> tuple[dict[str, str], dict[str, float]]:
    """The best arm of every method, by all seeds of a study.

    An arm with a diverged seed is chosen only if all arms of its method have one.

    Args:
      data: a study, see `plastax.report.read`.
      statistic: see `plastax.report.compare.compare`.
      quantity: see there.
      tasks: ``(tasks of the study) -> slice`` of those that count; by default the score's last window.

    Returns:
      Method -> label of its best arm; label -> value, NaN of an arm with a diverged seed.

    Raises:
      ConfigError: the quantity was not measured.
      RecordError: no task that counts is finished.
    """
    found, score, _ = scored_arms([data], quantity)
    window = np.arange(data.sizes["task"])[(tasks or score.windows[-1].tasks)(data.sizes["task"])]
    done = finished(data).sel({"arm": [arm.label for arm in found]}).all("arm").values
    window = window[done[window]]
    sign = 1.0 if score.higher_is_better else -1.0
    method = dict(zip(data.arm.values.tolist(), data.method.values.tolist()))
    if not len(window):
        raise RecordError(f"no task of the window is finished by all of {', '.join(arm.label for arm in found)}")
    values: dict[str, float] = {}
    for arm in found:
        # `scored_arms` leaves out a seed that diverged in the first task.
        whole = len(arm.seeds) == data.sizes["seed"] and not arm.frozen
        whole = whole and bool(np.isfinite(arm.values[:, window]).all())
        weights = np.ones(data.sizes["seed"])
        values[arm.label] = float(STATISTICS[statistic](arm.values[:, window], weights)) if whole else np.nan
    best: dict[str, str] = {}
    for label, value in values.items():
        other = best.setdefault(method[label], label)
        if not np.isnan(value) and not sign * value <= sign * values[other]:
            best[method[label]] = label
    return best, values


def select(data: xr.Dataset, statistic: Statistic = "mean", quantity: str = "") -> pd.DataFrame:
    """One row for each method: its best arm by the first half of the seeds, and its values on the second half.

    See `chosen`. Of an odd number of seeds, the middle one chooses.

    Args:
      data: a sweep, see `plastax.report.read`.
      statistic: see `plastax.report.compare.compare`.
      quantity: see there.

    Returns:
      The columns of `compare` for the chosen arms and the second half of the seeds, compared with the chosen arm of the
      first of `REFERENCES` in the study. Before them ``arms`` (number of arms of the method), ``chosen_by``
      and ``reported_on`` (seeds, ``0-3``), ``value_chosen_by`` (on the first half, so too good).

    Raises:
      ConfigError: the study has fewer than `SEEDS` seeds, or the quantity was not measured.
      RecordError: no task is finished.
    """
    seeds = data.seed.values.tolist()
    if len(seeds) < SEEDS:
        raise ConfigError(
            f"best arms are chosen by half of a sweep's seeds and reported on the other half, and {len(seeds)} are too "
            f"few; give --seeds {SEEDS} or more ({2 * FEWEST} for intervals)"
        )
    half = (len(seeds) + 1) // 2
    best, values = chosen(data.isel(seed=slice(half)), statistic, quantity)
    rest = data.isel(seed=slice(half, None)).sel({"arm": list(best.values())})
    method = dict(zip(data.arm.values.tolist(), data.method.values.tolist()))
    reference = next((best[name] for name in REFERENCES if name in best), "")
    frame = compare([rest], statistic, quantity=quantity, reference=reference)
    labels = frame["arm"].tolist()
    frame.insert(0, "arms", [sum(method[other] == method[label] for other in values) for label in labels])
    frame.insert(1, "chosen_by", f"{seeds[0]}-{seeds[half - 1]}")
    frame.insert(2, "reported_on", f"{seeds[half]}-{seeds[-1]}")
    frame.insert(3, "value_chosen_by", [values[label] for label in labels])
    return frame


def best(data: xr.Dataset, statistic: Statistic = "mean", quantity: str = "") -> pd.DataFrame | str:
    """`select` of a sweep, or the reason why nothing can be chosen yet; "" of a study that is not a sweep."""
    try:
        return select(data, statistic, quantity) if arms.is_sweep(data) else ""
    except (ConfigError, RecordError) as error:
        return f"no best arms: {error}"


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of `select`, one row for each method: its values, and the difference to the reference's chosen arm."""
    cells = arms.shown(frame.loc[:, "method":"seeds"].iloc[:, :-1])
    cells.insert(cells.shape[1], "of", frame["arms"].astype(str))
    compared = frame["against"].notna()
    for heading, name in (("value", "value"), ("difference", "difference"), ("P(better)", "improves")):
        there = compared | (name == "value")
        cells[heading] = [cell(row, name) if one else "" for one, (_, row) in zip(there, frame.iterrows())]
    return cells


def note(frame: pd.DataFrame, statistic: Statistic = "mean") -> list[str]:
    """Lines on how the arms of `select` were chosen."""
    first = frame.iloc[0]
    against = frame[frame["arm"].isin(frame["against"])]["method"].tolist()
    lines = [f"chosen by seeds {first['chosen_by']}, reported on seeds {first['reported_on']}"]
    tasks = task_numbers(range(first["first_task"], first["last_task"] + 1))
    about = about_intervals(int(frame["seeds"].min()), " over seeds", statistic).removeprefix(";").strip()
    lines += [f"{tasks} ({NUMBERED}); {about}"]
    return lines + [f"difference to {method}'s best arm, paired; P(better): in the same task" for method in against]


def render(frame: pd.DataFrame, title: str, statistic: Statistic = "mean", width: int = 120) -> rich.table.Table:
    """The table of `select` for a terminal."""
    cells = shown(frame)
    cells = cells.rename(columns={"method": "best arms: method"})
    table = fitted(cells, width, cells.columns.get_loc("of") + 1)
    table.title, table.caption = title, "\n".join(note(frame, statistic))
    return table
