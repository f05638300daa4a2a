"""The figures of a study. Each function returns a figure and its numbers, or None without data."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from plastax.errors import ConfigError
from plastax.records.loading import write_table
from plastax.report import blocks, drawn, heat_maps, prediction, sweeps
from plastax.report.arms import methods, swept
from plastax.report.score import RETURN, Quantity, measured, score_of
from plastax.report.statistics import over_seeds
from plastax.report.style import (
    MOST_MARKERS,
    WIDTH,
    Drawing,
    arm_looks,
    integer_axis,
    legend,
    legend_looks,
    log_scale,
    save,
    stamp,
    styled,
)
from plastax.report.values import layer_mean, rank_at, task_values, threshold, weight_norm, without_scalars
from plastax.report.wording import worded


class Subplot(NamedTuple):
    """One quantity over tasks, with its interval over seeds.

    Attributes:
      name: in the CSV file.
      label: of the vertical axis, with unit.
      values: (arm, seed, task), NaN where not measured; None if it was not measured at all.
    """

    name: str
    label: str
    values: xr.DataArray | None


def _intervals(subplots: Sequence[Subplot]) -> dict[str, tuple[Subplot, xr.Dataset]]:
    """Name -> subplot and its interval, for the subplots with data."""
    return {
        one.name: (one, over_seeds(without_scalars(one.values)))
        for one in subplots
        if one.values is not None and bool(one.values.notnull().any())
    }


def _frame(intervals: Mapping[str, tuple[Subplot, xr.Dataset]]) -> pd.DataFrame:
    """The numbers of subplots: quantity, arm, task, mean, low, high, seeds; one row for each measured point."""
    parts = [
        interval.drop_vars(["method", *swept(interval)], errors="ignore")
        .to_dataframe(["arm", "task"])
        .reset_index()
        .dropna(subset="mean")
        .assign(quantity=name)
        for name, (_, interval) in intervals.items()
    ]
    columns = ["quantity", "arm", "task", "mean", "low", "high", "seeds"]
    # A run that was killed in its first task has updates, but no finished task; pandas concatenates no empty list.
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def _lines(axes: Axes, interval: xr.Dataset, label: str, arms: Sequence[str]) -> None:
    """Means over tasks with bands, one line for each arm."""
    looks = arm_looks(interval.sel(arm=arms))
    for arm in arms:
        # A line bridges tasks without a measurement, and ends where a killed run ends.
        one = interval.sel(arm=arm).dropna("task", subset=["mean"])
        style = looks[arm].options | ({"marker": ""} if len(one.task) > MOST_MARKERS else {})
        axes.plot(one.task, one["mean"], label=arm, markersize=3.5, **style)
        axes.fill_between(one.task, one["low"], one["high"], color=style["color"], alpha=0.18, linewidth=0)
    axes.set_ylabel(label)
    if log_scale(interval["mean"]):
        axes.set_yscale("log")
    integer_axis(axes)


def _partly(figure: Figure, data: xr.Dataset, most: int = drawn.ARMS) -> None:
    """Says below a figure of at most ``most`` arms which part of the study it shows."""
    if text := drawn.left_out(data[["arm"]].assign_coords(task=[0]), most):
        figure.supxlabel(text, fontsize=9, color="0.35")


def _stack(data: xr.Dataset, panels: Sequence[Subplot], columns: int, height: float) -> Drawing | None:
    """Several subplots in one figure; those without data are left out."""
    intervals = _intervals(panels)
    if not intervals:
        return None
    columns = min(columns, len(intervals))
    rows = -(-len(intervals) // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False)
    arms = drawn.arms(data)
    for axes, (panel, interval) in zip(grid.flat, intervals.values()):
        _lines(axes, interval, panel.label, arms)
        axes.set_xlabel("task")
    for axes in grid.flat[len(intervals) :]:
        axes.set_axis_off()
    legend(figure, legend_looks(data.arm.sel(arm=arms)))
    _partly(figure, data)
    return Drawing(figure, _frame(intervals))


def _score_subplot(data: xr.Dataset, quantity: Quantity) -> Subplot:
    label = quantity.label if quantity.mark or quantity.variable == RETURN.variable else f"{quantity.label}, task mean"
    return Subplot(quantity.name, label, task_values(data, quantity))


def _curve(data: xr.Dataset) -> pd.DataFrame | None:
    """The score's curve: one row for each update, one column for each arm, mean over seeds."""
    score = score_of(data)
    if score is None or not measured(data, score.curve):
        return None
    return data[score.curve.variable].mean("seed").to_series().unstack("arm")[data.arm.values.tolist()]


def scores(data: xr.Dataset) -> Drawing | None:
    """Score per update (mean over seeds, smoothed), and its quantities over tasks (mean over seeds, with interval)."""
    score, frame = score_of(data), _curve(data)
    if score is None or frame is None:
        return None
    tasks, per_task = data.sizes["task"], data.sizes["update"] // data.sizes["task"]
    arms = drawn.arms(data)
    looks = arm_looks(data.arm.sel(arm=arms))
    # Without a finished task, the subplot of the main quantity is empty.
    panels = [_score_subplot(data, quantity) for quantity in score.quantities if measured(data, quantity)]
    figure = Figure(figsize=(WIDTH, 3.0 * (1 + len(panels))))
    top, *below = figure.subplots(1 + len(panels), 1, sharex=True)
    # Single updates are noisy: few episodes end in one, or its batch is small. The window stays inside a task, so that
    # it does not blur the switch.
    window = max(1, per_task // 20)
    smooth = frame[arms].groupby(data.update_task.values).rolling(window, min_periods=1).mean().droplevel(0)
    x = (smooth.index + 0.5) / per_task - 0.5
    for arm in smooth.columns:
        top.plot(x, smooth[arm], label=arm, **looks[arm].options | {"linewidth": 1.0, "marker": ""})
    for axes in (top, *below):
        axes.grid(visible=False, axis="x")
        for boundary in range(1, tasks) if tasks <= MOST_MARKERS else ():
            axes.axvline(boundary - 0.5, color="0.75", linewidth=0.8, zorder=0)
    top.set_ylabel(score.curve.label if window == 1 else f"{score.curve.label}, mean of {window} updates")
    below[-1].set_xlabel("task")
    below[-1].set_xlim(-0.5, tasks - 0.5)
    legend(figure, legend_looks(data.arm.sel(arm=arms)))
    integer_axis(below[-1])
    intervals = _intervals(panels)
    for axes, panel in zip(below, panels):
        if panel.name in intervals:
            _lines(axes, intervals[panel.name][1], panel.label, arms)
    _partly(figure, data)
    return Drawing(figure, _frame(intervals))


def curve_per_update(data: xr.Dataset) -> pd.DataFrame | None:
    """The curve of `scores` before smoothing: update, task and one column for each arm, mean over seeds."""
    frame = _curve(data)
    if frame is None:
        return None
    frame.insert(0, "task", data.update_task.values)
    return frame.dropna(how="all", subset=data.arm.values.tolist()).reset_index().rename_axis(None, axis=1)


def _ranks(data: xr.Dataset) -> list[Subplot]:
    """eps-rank and effective rank of the Hessian at the first update of a task."""
    at = threshold(data)
    eps = "" if at is None else f" (ε = {at:.0e})".replace("e-0", "e-")
    effective = layer_mean(data, "probe/hessian/effective_rank", "init")
    return [
        Subplot("hessian_rank", f"Hessian ε-rank{eps}", rank_at(data)),
        Subplot("hessian_effective_rank", "Hessian effective rank", effective),
    ]


def ranks(data: xr.Dataset) -> Drawing | None:
    """eps-rank and effective rank of the Hessian at the first update of every task."""
    return _stack(data, _ranks(data), columns=2, height=3.4)


def network(data: xr.Dataset) -> Drawing | None:
    """Effective rank of the features, dormant units and weight norm at the last update of every task."""
    panels = [
        Subplot("feature_rank", "feature effective rank", layer_mean(data, "probe/features/effective_rank", "end")),
        Subplot("dormant_fraction", "dormant units, share", layer_mean(data, "probe/features/dormant_fraction", "end")),
        Subplot("weight_norm", "weight norm", weight_norm(data)),
    ]
    return _stack(data, panels, columns=3, height=3.0)


def spectra(data: xr.Dataset, operator: str = "hessian") -> Drawing | None:
    """Spectral density at the first update of every task, pooled over seeds and probe vectors; one heat map an arm."""
    heat = heat_maps.prepare(data, operator)
    if heat is None:
        return None
    there = heat_maps.measured(heat)
    arms = drawn.arms(data, drawn.HEATS, there)
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(WIDTH, 3.2 * rows + 0.2))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, arm in zip(grid.flat, arms):
        mesh = heat_maps.draw(axes, heat, arm)
    for axes in grid.flat[len(arms) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(heat.axis)
    figure.colorbar(mesh, ax=grid, label=heat.label, pad=0.01, aspect=20 * rows)
    _partly(figure, data, drawn.HEATS)
    return Drawing(figure, heat_maps.frame(heat, there))


def worst_and_best(data: xr.Dataset) -> list[str]:
    """The arms with the worst and the best score in the last tasks (the last window of `plastax.report.score`).

    ``reset`` starts every task with a new network and cannot lose plasticity; with two other arms, it is left out.
    """
    scores = drawn.late_scores(data)
    arms = [str(arm) for arm in data.arm.values]
    of = methods(data)
    others = [arm for arm in arms if of[arm] != "reset"]
    arms = others if len(others) >= 2 else arms
    if scores is None:
        return [arms[0], arms[-1]][: len(arms)]
    last = scores[arms].dropna()
    return [last.idxmin(), last.idxmax()] if len(last) >= 2 else list(last.index)


def overview(data: xr.Dataset) -> Drawing | None:
    """The study in one picture: score, Hessian eps-rank, and the spectra of the worst and the best arm.

    Without a Hessian, the score's next quantity takes its place.
    """
    score = score_of(data)
    panels = [_score_subplot(data, quantity) for quantity in score.quantities] if score else []
    panels = [*panels[:1], _ranks(data)[0], *panels[1:]]
    intervals = dict(list(_intervals(panels).items())[:2])
    heat = heat_maps.prepare(data, "hessian")
    chosen = [] if heat is None else [arm for arm in worst_and_best(data) if arm in heat_maps.measured(heat)]
    if not intervals:
        return None
    figure = Figure(figsize=(WIDTH, 6.6 if chosen else 3.6))
    # Both rows share one grid of columns, so that the edges of their subplots line up.
    mosaic: list[Any] = [list(intervals) * (2 // len(intervals))]
    if chosen:
        mosaic.append([arm for arm in chosen for _ in range(2 // len(chosen))])
    axes: dict[str, Any] = figure.subplot_mosaic(mosaic)
    for panel, interval in intervals.values():
        _lines(axes[panel.name], interval, panel.label, drawn.arms(data))
        axes[panel.name].set_xlabel("task")
    frames = [_frame(intervals)]
    if heat is not None and chosen:
        ends = ("lowest", "highest") if score is None or score.higher_is_better else ("highest", "lowest")
        for arm, rank in zip(chosen, ends if score and len(chosen) == 2 else ("",)):
            mesh = heat_maps.draw(axes[arm], heat, arm, f" ({rank} {score.name})" if score and rank else "")
            axes[arm].sharey(axes[chosen[0]])
        axes[chosen[0]].set_ylabel(heat.axis)
        figure.colorbar(mesh, ax=[axes[arm] for arm in chosen], label=heat.label, pad=0.01)
        frames.append(heat_maps.frame(heat, chosen).rename(columns={"value": "mean"}).assign(quantity="spectrum"))
    legend(figure, legend_looks(data.arm.sel(arm=drawn.arms(data))))
    _partly(figure, data)
    return Drawing(figure, pd.concat(frames))


FIGURES: Mapping[str, Callable[[xr.Dataset], Drawing | None]] = {
    "overview": overview,
    "sweep": sweeps.draw,
    "spectra": spectra,
    "spectra_ggn": functools.partial(spectra, operator="ggn"),
    "blocks": blocks.draw,
    "blocks_ggn": functools.partial(blocks.draw, operator="ggn"),
    "ranks": ranks,
    "network": network,
    "prediction": prediction.draw,
}
"""Name -> function that draws it; `drawings` adds the score's figure under the score's name for it."""


def drawings(data: xr.Dataset, names: Collection[str] = ()) -> dict[str, Drawing]:
    """Figures by name, in the style of the reports.

    Args:
      data: a study, see `plastax.load`; its attribute ``notice``, if any, is written across every figure.
      names: of the figures; by default every one with data.

    Raises:
      ConfigError: a name is unknown, or the study has no data for its figure.
    """
    score = score_of(data)
    known = {**FIGURES, **({score.figure: scores} if score else {})}
    for name in names:
        if name not in known:
            raise ConfigError.unknown("figure", name, known)
    with styled():
        made = {name: draw(data) for name, draw in known.items() if not names or name in names}
        out = {name: drawing for name, drawing in made.items() if drawing is not None}
        for drawing in out.values():
            stamp(drawing.figure, data.attrs.get("notice", ""))
            for text in drawing.figure.findobj(Text):
                text.set_text(worded(text.get_text(), data.attrs.get("axis", "task")))
    if empty := [name for name in names if name not in out]:
        raise ConfigError(f"figure: {empty[0]!r} has no data in this study, which did not measure what it shows")
    return out


def write(data: xr.Dataset, directory: pathlib.Path) -> dict[str, Drawing]:
    """Writes every figure with data as PNG, PDF and CSV.

    Args:
      data: a study, see `drawings`.
      directory: made if it is missing.

    Returns:
      The figures by name.
    """
    made = drawings(data)
    for name, drawing in made.items():
        with styled():
            save(*drawing, directory, name)
    if (score := score_of(data)) is not None and (frame := curve_per_update(data)) is not None:
        write_table(frame, directory / f"{score.figure}_per_update.csv")
    return made
