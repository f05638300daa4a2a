"""Which measurement foretells what a network gains on a task: a chart for each gain, and the table."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from plastax.errors import ConfigError
from plastax.report import prediction
from plastax.report.html.look import figure, plain, small
from plastax.report.html.page import Chart, Section


def section(data: xr.Dataset, frame: pd.DataFrame | None = None) -> Section:
    """Ranking accuracies with their intervals; empty if the study has too few tasks or seeds, or lacks gains.

    Args:
      data: a study.
      frame: what `prediction.foretell` has found in it, if it is known.
    """
    title = "Which measurement foretells plasticity?"
    try:
        frame = prediction.foretell(data) if frame is None else frame
    except ConfigError:
        return Section("prediction", title)
    names, charts = prediction.best(frame)[::-1], []
    for i, after in enumerate(dict.fromkeys(frame["after"])):
        made = figure("ranking accuracy", "", margin={"l": 250, "r": 12, "t": 8, "b": 44})
        made.add_vline(x=0.5, line={"width": 1, "color": "#7d868f"})
        for pairs, colour in prediction.COLOURS.items():
            rows = frame[(frame["after"] == after) & (frame["pairs"] == pairs)].set_index("measurement").reindex(names)
            low, mean, high = (small(rows[f"accuracy{end}"]) for end in ("_low", "", "_high"))
            made.add_scatter(
                x=mean, y=[plain(name) for name in names], name=f"{pairs} methods", mode="markers",
                marker={"color": colour, "size": 6}, error_x={"array": high - mean, "arrayminus": mean - low},
            )  # fmt: skip
        made.update_xaxes(range=[0, 1])
        made.update_yaxes(categoryorder="array", categoryarray=[plain(name) for name in names])
        charts.append(Chart(f"prediction-{i}", f"Gain after {after}", made, height=120 + 24 * len(names), wide=True))
    return Section("prediction", title, prediction.notes(frame), charts, [("", prediction.wide(frame))])
