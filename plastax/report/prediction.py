"""Which measurement at a task's start foretells what a network gains on that task over a fresh network.

The gain after 1, 10 and 100 updates is what the probe `gain` records: the loss of a fresh network on the same task,
minus the network's own, after the same number of updates. The gain over the whole task is the network's score in it,
minus that of the method ``reset``, which starts the same task with a fresh network. Positive is better in both.

Networks are compared in pairs of one seed: within a method those of different tasks, across methods those in the same
task. Within a method every quantity with a trend over tasks foretells a gain with a trend, so the task's number is
ranked beside the measurements: what does no better than a clock says nothing about the network. `ranking` has the
statistics; no seed both chooses and reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import rich.table
import xarray as xr
from matplotlib.figure import Figure

from plastax.errors import ConfigError
from plastax.records.loading import differing
from plastax.report import ranking
from plastax.report.arms import methods, run_of
from plastax.report.drawn import evenly
from plastax.report.quantities import AXES, TECHNICAL, WHOLE
from plastax.report.score import score_of
from plastax.report.style import WIDTH, Drawing
from plastax.report.table import cell, fitted
from plastax.report.values import middle_eps, of_reference, task_values, without_scalars

FEWEST_TASKS = 5
"""Tasks with measurements: ten pairs within a method. With fewer, seeds often agree by chance."""
TASKS = 30
"""The most tasks; of more, evenly spread ones. Seeds, not pairs, limit what can be said."""
CLOCK = "task number (a clock)"
SHOWN = 16
"""The most measurements in a figure and in the terminal; prediction.csv has all."""
LAYERS = ("layer", "other_layer", "feature_layer")
PAIRS = {"within": ("seed", "arm", "task"), "across": ("seed", "task", "arm")}
"""Kind of pairs -> axes of the values, of which the last has what is paired."""


class Case(NamedTuple):
    """What is foretold from what: values of one study, (arm, seed, task) each."""

    measured: dict[str, xr.DataArray]
    gains: dict[str, xr.DataArray]


def measurements(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """Name -> values (arm, seed, task) at each task's start, of everything that probes measured there.

    Of layers, both the mean and the smallest; of thresholds, the middle one; along other axes, the mean. The probe
    `gain` is what is foretold. What never varies cannot foretell anything, and is left out.
    """
    found = {}
    for name, array in data.data_vars.items():
        kind, _, key = str(name).partition("/")
        last = key.rpartition("/")[2]
        if kind != "probe" or key.startswith("gain/") or last in WHOLE or key.endswith(TECHNICAL):
            continue
        values = without_scalars(middle_eps(array.sel(mark="init")))
        layers = [dim for dim in values.dims if dim in LAYERS]
        values = values.mean([dim for dim in values.dims if dim not in (*AXES, *layers)])
        if layers:
            found[f"{key} (mean)"] = values.mean(layers)
            found[f"{key} (min)"] = values.min(layers)
        else:
            found[key] = values
    return {name: values for name, values in found.items() if float(values.max() - values.min()) > 0}


def gains(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """After what -> gain over a fresh network (arm, seed, task): ``1 update``, ``10 updates``, ..., ``the task``.

    Each run of several has its own method ``reset``; the arms of a run without one have no gain over the whole task.
    """
    found = {}
    if "probe/gain/gain" in data:
        values = data["probe/gain/gain"].sel(mark="init")
        for budget in values.budget.values[values.budget.values > 0].tolist():
            found[f"{budget} update{'s' * (budget > 1)}"] = without_scalars(values.sel(budget=budget))
    score = score_of(data)
    scores = None if score is None else task_values(data, score.main)
    if score is not None and scores is not None:
        sign, parts, of = (1.0 if score.higher_is_better else -1.0), [], methods(data)
        for letter in dict.fromkeys(run_of(arm) for arm in of):
            own = scores.sel(arm=[arm for arm in of if run_of(arm) == letter])
            reset = next((str(m) for a, m in zip(own.arm.values, own.method.values) if of[str(a)] == "reset"), None)
            parts += [] if reset is None else [sign * (own - of_reference(own, reset))]
        if parts:
            found["the task"] = xr.concat(parts, "arm").reindex(arm=data.arm)
    return {after: values for after, values in found.items() if bool(values.notnull().any())}


def case(data: xr.Dataset) -> Case:
    """What can be foretold in a study.

    Args:
      data: a study, or several runs as one, see `plastax.report.html.side_by_side`.

    Returns:
      Values of at most `TASKS` tasks.

    Raises:
      ConfigError: the study lacks gains or measurements, or has too few tasks or seeds; the message says how to record
        them.
    """
    foretold, found = gains(data), measurements(data)
    if not foretold:
        raise ConfigError("no gain over a fresh network is recorded; add gain to --probes, or reset to --methods")
    if not found:
        raise ConfigError(
            "nothing is measured at the start of tasks; record it: --probes features weights hessian gain"
        )
    tasks = data.task.values[(_there(found) & _there(foretold)).values].tolist()
    if len(tasks) < FEWEST_TASKS:
        raise ConfigError(
            f"{len(tasks)} tasks have measurements and a gain, and {FEWEST_TASKS} are needed; give --tasks "
            f"{FEWEST_TASKS} or more, and --probe-every 1"
        )
    if (seeds := data.sizes["seed"]) < ranking.SEEDS:
        raise ConfigError(
            f"{seeds} seed{'s' * (seeds > 1)} cannot both choose a direction and report an interval; give --seeds "
            f"{ranking.SEEDS} or more"
        )
    tasks = evenly(tasks, TASKS)
    found[CLOCK] = xr.zeros_like(next(iter(found.values()))) + data.task
    values = (
        {name: one.transpose("arm", "seed", "task").sel(task=tasks) for name, one in some.items()}
        for some in (found, foretold)
    )
    return Case(*values)


def other_streams(configs: Sequence[Mapping[str, Any]]) -> str:
    """The settings in which the streams of runs differ, in words; "" for runs of one stream.

    Args:
      configs: content of their ``config.json``.
    """
    rows = {"experiment": [config.get("experiment", "") for config in configs], **differing(configs)}
    told = {
        name: list(dict.fromkeys(map(str, values)))
        for name, values in rows.items()
        if name.partition(".")[0]
        in ("experiment", "stream", "stream_settings", "data", "synthetic", "updates_per_task")
    }
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in told.items() if len(values) > 1)


def _there(values: dict[str, xr.DataArray]) -> xr.DataArray:
    """Whether any of the values is known in a task (task), bool."""
    return xr.concat([one.notnull().any(["arm", "seed"]) for one in values.values()], "value").any("value")


def foretell(data: xr.Dataset) -> pd.DataFrame:
    """Ranking accuracy and AUC of every measurement for every gain.

    Args:
      data: see `case`.

    Returns:
      A row for each measurement, gain and kind of pairs, the best measurements first: ``measurement``, ``after``,
      ``pairs`` (within methods or across them); ``accuracy`` and ``auc`` with ``_low``, ``_high``, ``_adjusted_low``,
      ``_adjusted_high`` and ``_direction``, see `ranking.HeldOut`; ``seeds`` that report; ``checkpoints``, networks at
      a task's start with both values. A success, for AUC, is a gain of at least zero. The attribute ``comparisons``
      says how many were made; adjusted intervals allow for all of them.

    Raises:
      ConfigError: see `case`.
    """
    found = case(data)
    kinds = {name: axes for name, axes in PAIRS.items() if data.sizes[axes[-1]] > 1}
    measured = {(name, pairs): one for name, one in found.measured.items() for pairs in kinds}
    # In one task, the clock shows the same to all.
    measured.pop((CLOCK, "across"), None)
    comparisons = 2 * len(measured) * len(found.gains)
    rows = []
    for (name, pairs), values in measured.items():
        for after, gain in found.gains.items():
            x, y = (one.transpose(*kinds[pairs]).values.astype(float) for one in (values, gain))
            known = np.isfinite(y) & ~np.isnan(x)
            success = np.where(known, y >= 0, np.nan)
            row: dict[str, Any] = {"measurement": name, "after": after, "pairs": pairs}
            for kind, per_seed in (("accuracy", ranking.ranking_accuracy(x, y)), ("auc", ranking.auc(x, success))):
                held = ranking.held_out(per_seed, comparisons)
                row |= {kind: held.value, f"{kind}_low": held.low, f"{kind}_high": held.high}
                row |= {f"{kind}_adjusted_low": held.adjusted_low, f"{kind}_adjusted_high": held.adjusted_high}
                row[f"{kind}_direction"] = held.direction
                row.setdefault("seeds", held.seeds)
            rows.append(row | {"checkpoints": int(known.sum())})
    frame = pd.DataFrame(rows)
    frame["order"] = -frame.groupby("measurement")["accuracy"].transform("mean")
    frame = frame.sort_values(["order", "measurement"], kind="stable", ignore_index=True).drop(columns="order")
    seeds, first = data.seed.values.tolist(), ranking.choosing(data.sizes["seed"])
    frame.attrs |= {"comparisons": comparisons, "chosen_by": seeds[:first], "reported_on": seeds[first:]}
    return frame


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of `foretell`, a row for each measurement; an asterisk where the adjusted interval lacks 1/2."""
    cells: dict[str, dict[str, str]] = {}
    for after in reversed(frame["after"].unique()):
        for pairs, kind in (("across", "accuracy"), ("within", "accuracy"), ("across", "auc"), ("within", "auc")):
            heading = f"{'AUC ' * (kind == 'auc')}{pairs}, {after}"
            for _, row in frame[(frame["after"] == after) & (frame["pairs"] == pairs)].iterrows():
                sure = not row[f"{kind}_adjusted_low"] <= 0.5 <= row[f"{kind}_adjusted_high"]
                sure &= bool(np.isfinite(row[f"{kind}_adjusted_low"]))
                cells.setdefault(heading, {})[row["measurement"]] = cell(row, kind) + "*" * sure
    table = pd.DataFrame(cells).reindex(frame["measurement"].unique()).fillna("")
    larger = frame.groupby("measurement", sort=False)["accuracy_direction"].agg(lambda one: set(one) - {0})
    signs = {frozenset([1]): "larger", frozenset([-1]): "smaller"}
    table.insert(0, "better", [signs.get(frozenset(larger[name]), "either") for name in table.index])
    return table


def notes(frame: pd.DataFrame) -> list[str]:
    """Lines on how the numbers of `foretell` were made."""
    chosen, reported = (", ".join(map(str, frame.attrs[name])) for name in ("chosen_by", "reported_on"))
    lines = [
        "Share of pairs of networks that a measurement at a task's start orders as their later gains over a fresh "
        "network; 1/2 is useless. Across: two methods in one task of a seed. Within: two tasks of one network. AUC: "
        "for gaining at least as much as the fresh network.",
        f"Which direction is better was chosen on seed{'s' * (len(frame.attrs['chosen_by']) > 1)} {chosen}; seeds "
        f"{reported} report, with 95 % t intervals over seeds.",
        f"* the interval lacks 1/2 after Bonferroni's adjustment for {frame.attrs['comparisons']} comparisons.",
    ]
    if frame["measurement"].str.endswith(("(mean)", "(min)")).any():
        lines.append("(mean) and (min) are over layers.")
    if not frame["measurement"].str.match("hessian/|ggn/|kronecker/").any():
        lines.append("No spectrum is recorded; add hessian or ggn to --probes.")
    if "the task" not in set(frame["after"]):
        lines.append("No gain over the whole task is known; add reset to --methods.")
    if set(frame["after"]) == {"the task"}:
        lines.append("No gain after few updates is recorded; add gain to --probes.")
    return lines


def render(frame: pd.DataFrame, title: str, width: int = 120) -> rich.table.Table:
    """The table of `foretell` for a terminal: the best measurements, and the clock."""
    cells = wide(frame)
    shown = [*cells.index[:SHOWN], *({CLOCK} & {*cells.index[SHOWN:]})]
    table = fitted(cells.loc[shown].reset_index(names="measurement"), width, 2)
    left = len(cells) - len(shown)
    lines = [*notes(frame), *([f"{left} more measurements are in prediction.csv."] if left else [])]
    table.title, table.caption = title, "\n".join(lines)
    return table


def best(frame: pd.DataFrame) -> list[str]:
    """The measurements that are drawn, the best first."""
    return list(dict.fromkeys(frame["measurement"]))[:SHOWN]


COLOURS = {"within": "#0072B2", "across": "#D55E00"}


def draw(data: xr.Dataset) -> Drawing | None:
    """Ranking accuracy of the best measurements with its interval, a panel for each gain."""
    try:
        frame = foretell(data)
    except ConfigError:
        return None
    return picture(frame)


def picture(frame: pd.DataFrame) -> Drawing:
    """The figure of `draw`, of `foretell`."""
    names, afters = best(frame)[::-1], list(dict.fromkeys(frame["after"]))
    figure = Figure(figsize=(WIDTH, 1.4 + 0.34 * len(names)))
    panels = figure.subplots(1, len(afters), squeeze=False, sharey=True, sharex=True)[0]
    for panel, after in zip(panels, afters):
        panel.axvline(0.5, color="0.5", linewidth=0.8)
        for shift, (pairs, colour) in zip((0.15, -0.15), COLOURS.items()):
            rows = frame[(frame["after"] == after) & (frame["pairs"] == pairs)].set_index("measurement")
            rows = rows.reindex(names)
            ends = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
            places = np.arange(len(names)) + shift
            panel.errorbar(
                rows["accuracy"], places, xerr=ends, fmt="o", markersize=4, color=colour, linewidth=1.2,
                label=f"{pairs} methods",
            )  # fmt: skip
        panel.set_title(f"after {after}", fontsize=11)
        panel.set_yticks(range(len(names)), names, fontsize=9)
        panel.set_xlim(-0.03, 1.03)
        panel.set_xticks([0, 0.5, 1], ["0", "1/2", "1"])
    figure.supxlabel("ranking accuracy", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return Drawing(figure, frame)
