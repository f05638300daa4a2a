"""Score and rank of a sweep against the swept values: the charts on top, and the table."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from plastax.report import arms, sweeps, table
from plastax.report.drawn import evenly
from plastax.report.html.look import band, figure, logarithmic, plain, styled
from plastax.report.html.page import Chart, Table
from plastax.report.style import log_scale


def charts(data: xr.Dataset) -> list[Chart]:
    """A chart for each quantity and each swept setting; empty if the study is no sweep."""
    along = sweeps.axes(data)[: sweeps.SETTINGS]
    frame = table.summary(data) if along else pd.DataFrame()
    found = []
    for column, label in (sweeps.quantities(data, frame) if along else {}).items():
        for axis in along:
            log = log_scale(frame[column])
            made = figure(plain(axis.name), "")
            if log:
                made.update_yaxes(**logarithmic())
            for curve in sweeps.curves(frame, column, axis):
                name = plain(curve.name)
                band(made, curve.points["place"], curve.points, name, styled(curve.look, name), log=log)
            ticked = evenly(axis.values, sweeps.TICKS)
            ticks = {"tickvals": [axis.places[v] for v in ticked], "ticktext": list(map(arms.value_text, ticked))}
            made.update_xaxes(type="log" if axis.kind == "log" else "linear", tickmode="array", **ticks)
            name = axis.name.replace(".", "-")
            title = f"{label}, against {axis.name}{' (log)' if log else ''}"
            found.append(Chart(f"sweep-{column}-{name}", title, made))
    return found


def tables(data: xr.Dataset) -> list[Table]:
    """Score and rank of each arm of a sweep."""
    if not sweeps.axes(data):
        return []
    frame = table.summary(data)
    cells = {
        label: [table.cell(row, column) for _, row in frame.iterrows()]
        for column, label in sweeps.quantities(data, frame).items()
    }
    note = f"{table.ERROR[0].upper()}{table.ERROR[1:]}. Numbers: figures/sweep.csv."
    return [Table("Score and rank of each arm", pd.DataFrame(cells, frame.index), note)]
