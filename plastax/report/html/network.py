"""The network: features, dormancy, norms; Kronecker factors of layers; all other measurements."""

from __future__ import annotations

import xarray as xr

from plastax.report.drawn import TASKS, fewer_tasks
from plastax.report.html.look import error_bars, figure, over_tasks, plain, styles
from plastax.report.html.page import Chart, Section
from plastax.report.statistics import over_seeds
from plastax.report.values import by_task, layer_mean, weight_norm

SHOWN = {
    "features/effective_rank": ("feature effective rank", "end"),
    "features/dormant_fraction": ("dormant units, share", "end"),
    "features/norm": ("feature norm", "end"),
    "weights/mean_magnitude": ("mean weight magnitude", "end"),
    "gradient/norm": ("gradient norm", "init"),
}
"""Probe value -> its label and mark; charts show the mean over layers."""

LAYERS = 12
"""The most layers whose Kronecker factors are drawn."""


def section(data: xr.Dataset) -> Section:
    """Features, dormancy and norms over tasks, the mean over layers."""
    shown = {
        key: (label, mark, layer_mean(data, f"probe/{key}", mark))
        for key, (label, mark) in SHOWN.items()
        if f"probe/{key}" in data
    }
    shown["weights/norm"] = "weight norm", "end", weight_norm(data)
    charts = []
    for key, (label, mark, values) in shown.items():
        if (made := over_tasks(values, label)) is not None:
            where = "start" if mark == "init" else "end"
            charts.append(Chart(f"network-{key.replace('/', '-')}", f"{label} at task {where}", made))
    text = ["Mean over layers. None of these alone ranks methods: a large rank can go with poor learning."]
    return Section("network", "Features, dormancy, norms", text, charts)


def kronecker(data: xr.Dataset) -> Section:
    """Effective ranks of both Kronecker factors of every layer."""
    sides = {side: data.get(f"probe/kronecker/{side}_effective_rank") for side in ("a", "g")}
    if any(value is None or "layer" not in value.dims for value in sides.values()):
        return Section("kronecker", "Kronecker factors")
    intervals = {
        side: over_seeds(fewer_tasks(value.sel(mark="init"))) for side, value in sides.items() if value is not None
    }
    layers = intervals["a"].layer.values.tolist()
    charts = []
    for i, layer in enumerate(layers[:LAYERS]):
        made = figure("task", "effective rank")
        for arm, style in styles(data).items():
            for side, dash in (("a", "solid"), ("g", "dot")):
                one = intervals[side].sel({"arm": arm, "layer": layer}).dropna("task", subset=["mean"])
                name = f"{style['name']} {side.upper()}"
                error_bars(made, one, style | {"name": name, "dash": dash}, legendgroup=style["name"], mode="lines")
        charts.append(Chart(f"kronecker-{i}", str(layer), made))
    text = [
        "Effective rank of the input side A (solid) and the output-gradient side G (dotted) at each task's start, with "
        "95 % t intervals over seeds."
    ]
    if (without := data.get("probe/kronecker/left_out")) is not None:
        shares = without.max([dim for dim in without.dims if dim != "parameter"])
        listed = ", ".join(f"{one.parameter.item()} ({one.item():.1%})" for one in shares[:LAYERS])
        text.append(
            f"In no factor are {shares.size} parameters, {shares.sum().item():.2%} of all: {listed}"
            f"{', ...' if shares.size > LAYERS else ''}."
        )
    if len(layers) > LAYERS:
        text.append(f"The first {LAYERS} of {len(layers)} layers; the record has the others.")
    return Section("kronecker", "Kronecker factors, layer by layer", text, charts)


def others(data: xr.Dataset) -> Section:
    """All other measurements: one chart, whose menu chooses the value."""
    hidden = ("nodes", "weights", "residuals", "eigenvalues", "dim", "complete", "breakdowns", "left_out")
    chosen: list[tuple[str, xr.DataArray]] = []
    for name, value in data.data_vars.items():
        key = str(name).removeprefix("probe/")
        kind = str(name).partition("/")[0]
        if kind == "train":
            chosen.append((f"{name}, mean of the task", by_task(data, value).mean("within")))
        elif kind == "probe" and not key.endswith((*hidden, "_se", "_residual")):
            for mark in data.mark.values.tolist():
                one = layer_mean(data, str(name), mark)
                if one is not None and bool(one.notnull().any()):
                    chosen.append((f"{key}, task {'start' if mark == 'init' else 'end'}", one))
    chosen = [(name, one.transpose("arm", "seed", "task")) for name, one in chosen if bool(one.notnull().any())]
    if not chosen:
        return Section("others", "All other measurements")
    together = xr.concat(
        [one.reset_coords(drop=True) for _, one in chosen], "value", coords="minimal", compat="override"
    )
    interval = over_seeds(fewer_tasks(together))
    made = figure("task", "")
    of = styles(data)
    owner = []
    for i in range(len(chosen)):
        for arm, style in of.items():
            row = interval.isel(value=i).sel(arm=arm)
            mode = "lines+markers" if row.sizes["task"] <= TASKS else "lines"
            error_bars(made, row, style, visible=i == 0, mode=mode, connectgaps=True, marker={"size": 5})
            owner.append(i)
    menu = [
        {"label": plain(name), "method": "restyle", "args": ["visible", [mine == i for mine in owner]]}
        for i, (name, _) in enumerate(chosen)
    ]
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}
    made.update_layout(
        updatemenus=[{"buttons": menu, **place}], legend={"y": -0.18, "yanchor": "top"}, margin={"t": 44}
    )
    note = "Mean over layers; the middle one of several thresholds; 95 % t intervals over seeds."
    return Section(
        "others",
        f"All {len(chosen)} other measurements",
        charts=[Chart("others-menu", "Choose what to see", made, note, 460, wide=True)],
    )
