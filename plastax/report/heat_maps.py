"""Heat maps of spectral densities over tasks, one for each arm, with a common scale of colours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize

from plastax.report.arms import titles
from plastax.report.spectra import counts
from plastax.report.style import integer_axis
from plastax.report.values import threshold


class Heat(NamedTuple):
    """Counts of eigenvalues for heat maps.

    Attributes:
      values: (arm, task, bin), eigenvalues per bin, or their share where the size of the network is unknown.
      label: of the colour bar.
      axis: label of the vertical axis.
      norm: colour scale of log10(values), shared by all heat maps.
      range: the lowest and highest eigenvalue shown.
      eps: threshold of the eps-rank in the other figures, None if unknown.
    """

    values: xr.DataArray
    label: str
    axis: str
    norm: Normalize
    range: tuple[float, float]
    eps: float | None


def prepare(data: xr.Dataset, operator: str) -> Heat | None:
    """The counts of ``hessian`` or ``ggn`` in a study; None if it has no such spectra."""
    shares, unit = counts(data, operator)
    if shares is None:
        return None
    logs = np.log10(shares.where(shares > 0))
    top = np.ceil(float(logs.max()))
    occupied = (shares > 0).any(["arm", "task"])
    low, high = float(shares.low.where(occupied).min()), float(shares.high.where(occupied).max())
    # Five decades of colour: smaller shares are rounding errors of the quadrature's weights.
    eps = threshold(data, operator)
    axis = f"{'GGN' if operator == 'ggn' else operator.capitalize()} eigenvalue"
    axis += "" if eps is None else " (dashed: ±ε)"
    return Heat(shares, f"{unit} (log₁₀)", axis, Normalize(max(float(logs.min()), top - 5.0), top), (low, high), eps)


def draw(axes: Axes, heat: Heat, arm: str, more: str = "") -> QuadMesh:
    """One arm's spectral density over tasks, with lines at +-eps; tasks without a measurement are grey.

    Its title is the arm, with ``more`` after the method.
    """
    one = heat.values.sel(arm=arm).dropna("task", how="all")
    tasks = one.task.values.astype(float)
    middle = (tasks[1:] + tasks[:-1]) / 2.0
    across = np.concatenate([tasks[:1] - 0.5, middle, tasks[-1:] + 0.5])
    edges = np.append(one.low.values, one.high.values[-1])
    with np.errstate(divide="ignore"):
        logs = np.log10(one.transpose("bin", "task").values)
    mesh = axes.pcolormesh(across, edges, logs.clip(min=heat.norm.vmin), norm=heat.norm, cmap="magma", rasterized=True)
    smallest = float(np.abs(edges).min())
    axes.set_yscale("symlog", linthresh=smallest, linscale=0.3)
    axes.set_ylim(heat.range)
    if heat.eps is not None and heat.eps > smallest:
        for level in (-heat.eps, heat.eps):
            axes.axhline(level, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
    decades = round(np.log10(edges[-1] / smallest))
    ticks = [smallest * 10.0**k for k in range(1, decades + 1) if (decades - k) % 2 == 0]
    axes.set_yticks([tick for tick in (*(-t for t in ticks), 0.0, *ticks) if heat.range[0] <= tick <= heat.range[1]])
    axes.minorticks_off()
    axes.grid(visible=False)
    axes.set_facecolor("0.85")
    method, *values = titles(heat.values)[arm].splitlines()
    axes.set_title("\n".join(textwrap.fill(line, 30) for line in (f"{method}{more}", *values)))
    axes.set_xlabel("task")
    integer_axis(axes)
    return mesh


def frame(heat: Heat, arms: Sequence[str]) -> pd.DataFrame:
    """The numbers of heat maps: arm, task, low, high (of the bin), value; without empty bins."""
    series = heat.values.sel({"arm": list(arms)}).to_dataframe("value").reset_index()
    return series[series["value"] > 0][["arm", "task", "low", "high", "value"]]


def measured(heat: Heat) -> list[str]:
    """The arms with a measurement."""
    return [str(m) for m in heat.values.arm.values if bool(heat.values.sel(arm=m).notnull().any())]
