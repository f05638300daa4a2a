"""Colours of the arms, sizes and saving of figures."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plastax.records.files import write_atomic
from plastax.records.loading import write_table

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
# Line and marker of the first, second and third round through the colours.
_ROUNDS = (("-", "o"), ((0, (4, 1.5)), "s"), ((0, (1.5, 1)), "^"))


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of every arm, the same in all figures of a study.

    Args:
      arms: names in the order of the study.

    Returns:
      Name -> keyword arguments of ``Axes.plot``. ``backprop`` and ``reset`` always look the same; the colours of the
      others repeat after five arms, with another line and marker.
    """
    styles: dict[str, dict[str, Any]] = {
        arm: {"color": colour, "linestyle": "-", "marker": "o"} for arm, colour in _FIXED.items()
    }
    others = [arm for arm in arms if arm not in _FIXED]
    for i, arm in enumerate(others):
        line, marker = _ROUNDS[i // len(_COLOURS) % len(_ROUNDS)]
        styles[arm] = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": line, "marker": marker}
    return styles


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


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, above them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5))


def stamp(figure: Figure, text: str) -> None:
    """Writes a warning, if it is not empty, across the top of a figure."""
    font = {"color": "#D55E00", "weight": "bold", "size": 13}
    for legend_ in figure.legends if text else ():
        # A title of the figure would be written over the legend.
        legend_.set_title(text)
        legend_.get_title().set(**font)
    if text and not figure.legends:
        figure.suptitle(text, **font)


def save(figure: Figure, frame: pd.DataFrame, directory: pathlib.Path, name: str) -> None:
    """Writes ``<name>.png``, ``<name>.pdf`` and the numbers in it as ``<name>.csv``."""
    # Without a date, the same numbers give the same file.
    forms: dict[str, dict[str, Any]] = {"png": {"dpi": DPI}, "pdf": {"metadata": {"CreationDate": None}}}
    for form, options in forms.items():
        draw = functools.partial(figure.savefig, format=form, **options)
        write_atomic(directory / f"{name}.{form}", draw)
    write_table(frame, directory / f"{name}.csv")
