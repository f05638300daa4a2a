"""Spectra of diagonal blocks: a chart for each, and their ranks in a table."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from plastax.report.blocks import labels, of_block, table
from plastax.report.html.look import figure, logarithmic, small, styles
from plastax.report.html.page import Chart, Section
from plastax.report.html.spectra import NAMES, Density, densities

NOTE = (
    "Values are at the start of tasks, means over seeds and tasks. After ± is the standard error of one measurement. A "
    "block says nothing of how it acts on the others: what is outside of the blocks is a share of the squared "
    "Frobenius norm of the whole. Where it is large, the blocks do not describe the network."
)


def _last(shown: Density) -> go.Figure:
    """The densities of all arms at the start of the last measured task."""
    late = shown.counts.dropna("task", how="all").isel(task=-1)
    top = np.log10(float(late.max()))
    made = figure("eigenvalue (symmetric-log)", shown.unit)
    for arm, style in styles(shown.counts).items():
        counts = late.sel(arm=arm).values
        line = {"color": style["color"], "dash": style["dash"], "width": 1.6, "shape": "hvh"}
        y = small(np.fmax(counts, 10.0 ** (top - 5)))
        made.add_scatter(x=small(shown.middle), y=y, name=style["name"], mode="lines", line=line, showlegend=False)
    made.update_xaxes(**shown.axis)
    made.update_yaxes(range=[top - 4.5, top + 0.3], **logarithmic())
    return made


def section(data: xr.Dataset, operator: str) -> Section:
    """The section on the blocks of one operator."""
    charts = []
    for i, block in enumerate(labels(data, operator)):
        if (shown := densities(of_block(data, operator, block), operator, 4)) is not None:
            charts.append(Chart(f"{operator}-block-{i}", block, _last(shown), height=240))
    ranks = table(data, operator)
    tables = [] if ranks is None else [("", ranks)]
    return Section(f"{operator}-blocks", f"{NAMES[operator]} spectrum by block", [NOTE], charts, tables)
