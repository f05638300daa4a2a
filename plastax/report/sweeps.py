"""What a sweep answers: score and rank of each method against the swept values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plastax.report import arms, table
from plastax.report.drawn import evenly
from plastax.report.style import LINES, WIDTH, Drawing, Look, legend, log_scale, method_colours

SETTINGS, TICKS = 3, 8
"""The most swept settings that are drawn, and the most of their values that are written at an axis."""


class Curve(NamedTuple):
    """One quantity of a method against a swept setting.

    Attributes:
      name: the method, with its run and its values of other settings.
      look: colour of the method, line of the rest.
      points: ``place`` on the axis, ``mean``, ``low`` and ``high``, in the order of the axis.
      flat: whether the method does not have the setting, and has the same mean everywhere.
    """

    name: str
    look: Look
    points: pd.DataFrame
    flat: bool


class Axis(NamedTuple):
    """The axis of a swept setting.

    Attributes:
      name: of the setting, dotted.
      values: in order.
      kind: ``log`` where positive values span a decade, ``linear``, or ``category`` for words and for values of which
        some span a decade and others are zero or negative.
    """

    name: str
    values: list[Any]
    kind: str

    @property
    def places(self) -> dict[Any, float]:
        """Value -> where it is on the axis: itself, or its number."""
        return {value: i if self.kind == "category" else value for i, value in enumerate(self.values)}


def axes(data: xr.Dataset) -> list[Axis]:
    """The axes of the swept settings that have several values."""
    found = []
    for name in arms.swept(data):
        values = sorted({value for value in data[name].values.tolist() if arms.value_text(value)})
        if len(values) > 1:
            found.append(Axis(name, values, _kind(values)))
    return found


def _kind(values: Sequence[Any]) -> str:
    if isinstance(values[0], str):
        return "category"
    sizes = sorted({abs(value) for value in values if value})
    spans = sizes[-1] >= 10 * sizes[0]
    return "linear" if not spans else "log" if values[0] > 0 else "category"


def quantities(data: xr.Dataset, frame: pd.DataFrame) -> dict[str, str]:
    """Column of `plastax.report.table.summary` -> its label, of what is drawn: late score, and rank."""
    headings = table.headings(data)
    return {name: headings[name] for name in table.by_weight(list(frame), data)[:2] if f"{name}_low" in frame}


def curves(frame: pd.DataFrame, column: str, axis: Axis) -> list[Curve]:
    """A curve for each method, and for each combination of its values of other settings.

    Args:
      frame: the summary of a sweep.
      column: of it.
      axis: of the swept setting.
    """
    colours = method_colours(map(arms.base, frame["method"]))
    others = [name for name in arms.settings(frame) if name != axis.name]
    rest = arms.rest(frame[["method", *others]])
    kinds = list(dict.fromkeys(rest))
    found = []
    for (method, more), rows in frame.groupby([frame["method"].map(arms.base), rest], sort=False):
        colour, turn = colours[method]
        flat = bool((rows[axis.name].map(arms.value_text) == "").all())
        rows = pd.concat([rows] * len(axis.values)) if flat else rows
        places = list(axis.places.values()) if flat else rows[axis.name].map(axis.places)
        ends = {name: rows[f"{column}{end}"] for name, end in (("mean", ""), ("low", "_low"), ("high", "_high"))}
        points = pd.DataFrame({"place": places, **{name: list(values) for name, values in ends.items()}})
        place = (kinds.index(more) + turn) % len(LINES)
        name = f"{method}, {more}".removesuffix(", ")
        found.append(Curve(name, Look(colour, place, place), points.sort_values("place").dropna(subset="mean"), flat))
    return found


def draw(data: xr.Dataset) -> Drawing | None:
    """Late score and rank of a sweep against each swept setting, mean over seeds with its interval."""
    along = axes(data)[:SETTINGS]
    if not along:
        return None
    frame = table.summary(data)
    shown = quantities(data, frame)
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 3.0 * len(shown) + 0.6))
    grid = figure.subplots(len(shown), len(along), squeeze=False, sharex="col", sharey="row")
    looks: dict[str, Look] = {}
    for line, (column, label) in zip(grid, shown.items()):
        for panel, axis in zip(line, along):
            for curve in curves(frame, column, axis):
                looks[curve.name] = curve.look
                style, points = curve.look.options | ({"marker": ""} if curve.flat else {}), curve.points
                panel.plot(points["place"], points["mean"], markersize=4, **style)
                panel.fill_between(
                    points["place"], points["low"], points["high"], color=curve.look.color, alpha=0.15, lw=0
                )
            if axis.kind == "log":
                panel.set_xscale("log")
            ticks = evenly(axis.values, TICKS)
            panel.set_xticks([axis.places[value] for value in ticks], list(map(arms.value_text, ticks)))
            panel.minorticks_off()
        line[0].set_ylabel(label.replace(", ", ",\n", 1))
        if log_scale(frame[column]):
            line[0].set_yscale("log")
    for panel, axis in zip(grid[-1], along):
        panel.set_xlabel(axis.name)
    legend(figure, looks)
    kept = [f"{name}{end}" for name in shown for end in ("", "_low", "_high", "_se") if f"{name}{end}" in frame]
    return Drawing(figure, frame[["method", *arms.settings(frame), "seeds", *kept]].reset_index())
