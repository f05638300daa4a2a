"""The look of all charts: colours and lines of the arms, bands, axes."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from plastax.report.arms import titles
from plastax.report.drawn import TASKS, fewer_tasks
from plastax.report.spectra import signed_log
from plastax.report.statistics import over_seeds
from plastax.report.style import Look, arm_looks, log_scale
from plastax.report.values import without_scalars

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")


def styled(look: Look, name: str) -> dict[str, Any]:
    """``name``, ``color``, ``dash`` and ``symbol`` of an arm's look."""
    # Black, the colour of reset in print, is invisible on a dark page.
    colour = "#7d868f" if look.color == "#000000" else look.color
    return {"name": name, "color": colour, "dash": DASHES[look.line], "symbol": _SYMBOLS[look.marker]}


def styles(data: xr.Dataset | xr.DataArray) -> dict[str, dict[str, Any]]:
    """Arm -> its style, see `plastax.report.style.arm_looks`; its name has its values after the method."""
    names = {arm: plain(", ".join(title.splitlines())) for arm, title in titles(data).items()}
    return {arm: styled(look, names[arm]) for arm, look in arm_looks(data).items()}


def logarithmic() -> dict[str, Any]:
    """Settings of a logarithmic axis."""
    return {"type": "log", "exponentformat": "power", "dtick": 1}


def plain(text: str) -> str:
    """A text that a chart shows literally: plotly interprets tags in names and variables in hover texts."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def clear(colour: str, alpha: float) -> str:
    """A colour ``#rrggbb`` with transparency."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def figure(x: str, y: str, **layout: Any) -> go.Figure:
    """An empty chart with labelled axes, transparent to the page's colours."""
    made = go.Figure()
    made.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12.5, "family": "system-ui, sans-serif"},
        margin={"l": 62, "r": 12, "t": 8, "b": 44},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0, "font": {"size": 12}, "entrywidth": 0},
        hovermode="closest",
        dragmode=False,
        xaxis={"title": {"text": x, "font": {"size": 13}}, "zeroline": False, "showgrid": False},
        yaxis={"title": {"text": y, "standoff": 6, "font": {"size": 13}}, "zeroline": False, "gridwidth": 1},
    )
    made.update_layout(**layout)
    return made


def small(values: np.ndarray) -> np.ndarray:
    """float32: halves the file, and has more digits than these numbers need."""
    return np.asarray(values, np.float32)


def scatter(made: go.Figure, **options: Any) -> None:
    """``made.add_scatter(**options)`` in half the time: it checks the options once, not twice."""
    made.add_trace({"type": "scatter", **options})


def band(
    made: go.Figure,
    x: np.ndarray,
    interval: xr.Dataset,
    name: str,
    style: dict[str, Any],
    *,
    group: str = "",
    markers: bool = True,
    legend: bool = True,
    log: bool = False,
    **line: Any,
) -> None:
    """A line with its interval as a band; one entry of the legend shows and hides both.

    Args:
      made: the chart.
      x: ``[n]``.
      interval: ``mean``, ``low`` and ``high`` ``[n]``.
      name: in the legend.
      style: from `styles`.
      group: traces of one group are shown and hidden together; by default the name.
      markers: whether the points are marked.
      legend: whether it has an entry in the legend.
      log: whether the vertical axis is logarithmic; an interval that reaches zero is then drawn down to a tenth of the
        mean.
      **line: options of the line that replace the style's.
    """
    mean, low, high = (small(interval[part].values) for part in ("mean", "low", "high"))
    if np.isfinite(low).any():
        edges = {
            "legendgroup": group or name,
            "showlegend": False,
            "hoverinfo": "skip",
            "mode": "lines",
            "line": {"width": 0},
        }
        scatter(made, x=x, y=np.where(low > 0, low, mean / 10) if log else low, **edges)
        scatter(made, x=x, y=high, fill="tonexty", fillcolor=clear(style["color"], 0.17), **edges)
    scatter(
        made,
        x=x,
        y=mean,
        name=name,
        legendgroup=group or name,
        showlegend=legend,
        mode="lines+markers" if markers else "lines",
        line={"color": style["color"], "dash": style["dash"], "width": 2} | line,
        marker={"size": 5, "symbol": style["symbol"]},
        customdata=np.stack([low, high], axis=-1),
        hovertemplate=f"{name}<br>%{{x}}: %{{y:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}]<extra></extra>",
    )


def error_bars(made: go.Figure, interval: xr.Dataset, style: dict[str, Any], **options: Any) -> None:
    """A line over tasks with error bars.

    Args:
      made: the chart.
      interval: ``mean``, ``low`` and ``high`` (task).
      style: from `styles`.
      **options: other options of ``add_scatter``.
    """
    mean, low, high = (small(interval[part].values) for part in ("mean", "low", "high"))
    look = {
        "name": style["name"],
        "mode": "lines+markers",
        "line": {"color": style["color"], "dash": style["dash"], "width": 2},
        "error_y": {"array": high - mean, "arrayminus": mean - low, "thickness": 1.2, "width": 3},
        "customdata": np.stack([low, high], axis=-1),
    } | options
    ends = "[%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
    hover = f"{look['name']}, task %{{x}}<br>%{{y:.4g}} {ends}<extra></extra>"
    scatter(made, x=interval.task.values, y=mean, hovertemplate=hover, **look)


def over_tasks(values: xr.DataArray | None, label: str, *, bars: bool = False) -> go.Figure | None:
    """Mean over seeds with its 95 % t interval over the drawn tasks, one line for each arm.

    Args:
      values: (arm, seed, task), NaN where not measured; None if never measured.
      label: of the vertical axis.
      bars: error bars instead of bands.

    Returns:
      The chart; None without data.
    """
    if values is None or not bool(values.notnull().any()):
        return None
    values = fewer_tasks(values)
    interval = over_seeds(without_scalars(values))
    log = log_scale(interval["mean"])
    made = figure("task", f"{label} (log)" if log else label)
    if log:
        made.update_yaxes(**logarithmic())
    if values.sizes["task"] <= 8:
        made.update_xaxes(dtick=1)
    for arm, style in styles(values).items():
        one = interval.sel(arm=arm).dropna("task", subset=["mean"])
        if not one.sizes["task"]:
            continue
        if not bars:
            band(made, one.task.values, one, style["name"], style, markers=one.sizes["task"] <= TASKS, log=log)
            continue
        error_bars(made, one, style, marker={"size": 6, "symbol": style["symbol"]})
    return made if made.data else None


def symlog_axis(smallest: float, low: float, high: float) -> dict[str, Any]:
    """Settings of an axis of `signed_log` eigenvalues from low to high, with ticks at decades."""
    top = int(np.ceil(np.log10(max(abs(low), abs(high)) / smallest)))
    # Two or three ticks on each side, which fit on a phone.
    step = max(1, -(-top // 3))
    exponents = range(0 if step == 1 else top % step, top + 1, step)
    labels: list[tuple[float, str]] = [(0.0, "0")]
    for k in exponents:
        value = smallest * 10.0**k
        text = f"10<sup>{round(np.log10(value))}</sup>"
        labels += [(value, text), (-value, f"-{text}")]
    labels = sorted(pair for pair in labels if low * 1.001 <= pair[0] <= high * 1.001)
    ends = signed_log(np.array([low, high]), smallest)
    return {
        "tickmode": "array",
        "tickangle": 0,
        "tickvals": signed_log(np.array([value for value, _ in labels]), smallest),
        "ticktext": [text for _, text in labels],
        "range": [float(ends[0]) - 0.1, float(ends[1]) + 0.1],
    }
