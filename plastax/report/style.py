"""Colours of the arms, sizes and saving of figures."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plastax.records.files import write_atomic
from plastax.records.loading import write_table
from plastax.report.arms import base, described, is_sweep, rest, shown, value_text

WIDE = 30.0
"""An axis whose largest mean is more than this many times its smallest is logarithmic."""

WIDTH = 9.0
"""Inches; with `DPI` and the font sizes below, readable at the 830 pixels of a README."""

DPI = 160

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
}

# Okabe and Ito, "Color universal design", 2008; without its yellow, which is too light for lines on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_FIXED = {"reset": "#000000", "backprop": "#D55E00"}
LINES = ("-", (0, (4, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v")
_GREY = "#666666"
_LIGHTEST = 0.65
"""How much white is in the lightest shade of a colour."""


class Look(NamedTuple):
    """How an arm is drawn.

    Attributes:
      color: of its method, in the shade of its value of the first swept setting, the largest darkest.
      line: place in `LINES`, of its run and its values of other swept settings, or of a sixth method and so on.
      marker: place in `MARKERS`, of its value of the first swept setting, or else as ``line``.
    """

    color: str
    line: int
    marker: int

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``."""
        return {"color": self.color, "linestyle": LINES[self.line], "marker": MARKERS[self.marker]}


def method_colours(methods: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Method -> its colour, and how often the colours were used up before it, the same in all figures of a study.

    ``backprop`` and ``reset`` always look the same; the colours of the others repeat after five.
    """
    others = [name for name in dict.fromkeys(methods) if name not in _FIXED]
    found = {name: (_COLOURS[i % len(_COLOURS)], i // len(_COLOURS)) for i, name in enumerate(others)}
    return {name: (colour, 0) for name, colour in _FIXED.items()} | found


def arm_looks(data: xr.Dataset | xr.DataArray) -> dict[str, Look]:
    """How each arm of a study is drawn, or of values along ``arm``."""
    frame = described(data)
    colours = method_colours(map(base, frame["method"]))
    values, lines = _values(frame), _lines(frame)
    kinds = list(dict.fromkeys(lines))
    looks = {}
    for (arm, row), line in zip(frame.iterrows(), lines):
        colour, place = colours[base(row["method"])][0], kinds.index(line) % len(LINES)
        look = Look(colour, place, place)
        if len(values) > 1 and row.iloc[1] in values:
            look = _shaded(look, values.index(row.iloc[1]), len(values))
        looks[str(arm)] = look
    return looks


def legend_looks(data: xr.Dataset | xr.DataArray) -> dict[str, Look]:
    """The entries of a legend: the arms; of a sweep the methods, then in grey the values of each setting."""
    frame = described(data)
    if not is_sweep(data):
        return arm_looks(data)
    methods, values = list(dict.fromkeys(map(base, frame["method"]))), _values(frame)
    colours = method_colours(methods)
    found = {name: Look(colours[name][0], colours[name][1] % len(LINES), 0) for name in methods}
    for i, value in enumerate(values):
        grey = Look(_GREY, 0, 0)
        found[f"{shown(frame).columns[1]} = {value_text(value)}"] = _shaded(grey, i, len(values))
    kinds = list(dict.fromkeys(_lines(frame)))
    return found | {text: Look(_GREY, i % len(LINES), 0) for i, (text, _) in enumerate(kinds) if text}


def _shaded(look: Look, i: int, count: int) -> Look:
    """A look for the i-th of some values, the last darkest."""
    white = _LIGHTEST * (1 - i / max(count - 1, 1))
    return look._replace(color=faded(look.color, white), marker=i % len(MARKERS))


def _values(frame: pd.DataFrame) -> list[Any]:
    """The values of the first swept setting, in order."""
    return sorted(value for value in set(frame.iloc[:, 1]) if value_text(value)) if frame.shape[1] > 1 else []


def _lines(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """What each arm's line stands for: run and other settings in words, and how often colours were used up before."""
    colours = method_colours(map(base, frame["method"]))
    words = rest(frame, *frame.columns[1:2])
    return [(text, colours[base(method)][1]) for text, method in zip(words, frame["method"])]


def faded(colour: str, white: float) -> str:
    """A colour ``#rrggbb`` mixed with a share of white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + white * (255 - part)):02x}" for part in parts)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draws in the style of the reports, and leaves matplotlib's settings as they were."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


MOST_MARKERS = 60
"""The most tasks of a figure that marks each point and each switch."""


def integer_axis(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole tasks only."""
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def legend(figure: Figure, looks: Mapping[str, Look]) -> None:
    """One legend for all panels, above them; as many columns as fit the figure.

    Args:
      figure: `WIDTH` wide.
      looks: see `legend_looks`.
    """
    labels = [textwrap.fill(label, 60) for label in looks]
    handles = [Line2D([], [], markersize=3.5, **look.options) for look in looks.values()]
    inches = 0.7 + 0.085 * max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(len(labels), 5, int(WIDTH / inches)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def stamp(figure: Figure, text: str) -> None:
    """Writes a warning, if it is not empty, across the top of a figure."""
    font = {"color": "#D55E00", "weight": "bold", "size": 13}
    for legend_ in figure.legends if text else ():
        # A title of the figure would be written over the legend.
        legend_.set_title(text)
        legend_.get_title().set(**font)
    if text and not figure.legends:
        figure.suptitle(text, **font)


class Drawing(NamedTuple):
    """A figure and its numbers, one row for each point. A notebook shows the figure."""

    figure: Figure
    frame: pd.DataFrame

    def _repr_png_(self) -> bytes:
        with styled(), io.BytesIO() as file:
            self.figure.savefig(file, format="png")
            return file.getvalue()


def log_scale(values: Any) -> bool:
    """Whether an axis of these values is logarithmic: on a linear one, those far above would flatten the others."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > WIDE * values.min())


def save(figure: Figure, frame: pd.DataFrame, directory: pathlib.Path, name: str) -> None:
    """Writes ``<name>.png``, ``<name>.pdf`` and the numbers in it as ``<name>.csv``."""
    figure.dpi = DPI
    write_atomic(directory / f"{name}.png", FigureCanvasAgg(figure).print_png)
    figure.set_layout_engine("none")  # The PDF has the same layout; finding it takes as long as drawing.
    # Without a date, the same numbers give the same file.
    pdf = functools.partial(FigureCanvasPdf(figure).print_pdf, metadata={"CreationDate": None})
    write_atomic(directory / f"{name}.pdf", pdf)
    write_table(frame, directory / f"{name}.csv")
