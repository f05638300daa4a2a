"""Spectra of diagonal blocks: one small multiple a block, and a table of their ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plastax.report import drawn, spectra
from plastax.report.arms import names
from plastax.report.score import thirds
from plastax.report.style import WIDTH, Drawing, arm_looks
from plastax.report.values import middle_eps, threshold

COLUMNS = 4


def labels(data: xr.Dataset, operator: str) -> list[str]:
    """The blocks of an operator's spectra; empty without any."""
    found = data.get(f"probe/{operator}/block_nodes")
    return [] if found is None else [str(label) for label in found.block.values]


def of_block(data: xr.Dataset, operator: str, block: str) -> xr.Dataset:
    """A study whose spectra are those of one block."""
    start = f"probe/{operator}/block_"
    own = {name: data[name].sel(block=block, drop=True) for name in data if str(name).startswith(start)}
    named = {str(name).replace("/block_", "/"): value for name, value in own.items()}
    return xr.Dataset(named, coords={"arm": data.arm, "task": data.task, "method": data.method})


def table(data: xr.Dataset, operator: str) -> pd.DataFrame | None:
    """Ranks by block at the start of tasks, of every arm: means over seeds and tasks, first and last third.

    Behind each ``±`` is the standard error of one measurement, its root mean square.

    Returns:
      A row for each block, one for the whole and one for what is outside of the blocks; None without blocks.
    """
    if not (blocks := labels(data, operator)):
        return None
    eps = threshold(data, operator)
    rank = "ε-rank" if eps is None else f"ε-rank (ε = {eps:g})"
    rows = []
    for arm, name in names(data).items():
        one = data.sel(arm=arm)
        whole = xr.Dataset({str(n).rpartition("/")[2]: one[n] for n in one if str(n).startswith(f"probe/{operator}/")})
        parts = {block: of_block(one, operator, block) for block in blocks}
        named = {block: part.rename({n: str(n).rpartition("/")[2] for n in part}) for block, part in parts.items()}
        rows += [{"arm": name, "block": label, **_row(part, whole, rank)} for label, part in named.items()]
        outside = {"share of squared norm": _said(whole, "off_diagonal", thirds(data.sizes["task"])[1])}
        rows += [{"arm": name, "block": "whole", **_row(whole, whole, rank)}]
        rows += [{"arm": name, "block": "outside of the blocks", **outside}]
    return pd.DataFrame(rows).fillna("").set_index("arm")


def _said(values: xr.Dataset, name: str, tasks: slice) -> str:
    """The mean of a value at the start of tasks, and its error."""
    value, error = (
        middle_eps(values[one].sel(mark="init")).isel(task=tasks).astype(float) for one in (name, f"{name}_se")
    )
    mean, square = float(value.mean()), float((error**2).mean())
    return "" if np.isnan(mean) else f"{mean:.3g} ± {np.sqrt(square):.2g}"


def _row(part: xr.Dataset, whole: xr.Dataset, rank: str) -> dict[str, str]:
    first, last = thirds(part.sizes["task"])
    row = {"parameters": f"{float(part['dim'].max()):.0f}"}
    for where, tasks in (("first third", first), ("last third", last)):
        row[f"{rank}, {where}"] = _said(part, "rank", tasks)
        row[f"effective rank, {where}"] = _said(part, "effective_rank", tasks)
    share = (part["frobenius"] ** 2 / whole["frobenius"] ** 2).sel(mark="init").isel(task=last)
    return row | {"share of squared norm": f"{float(share.mean()):.3g}"}


def draw(data: xr.Dataset, operator: str = "hessian") -> Drawing | None:
    """Spectral density of each block at the start of the last measured task, pooled over seeds and probe vectors."""
    blocks = labels(data, operator)
    found = {block: spectra.counts(of_block(data, operator, block), operator) for block in blocks}
    shown = {block: counts for block, (counts, _) in found.items() if counts is not None}
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    figure = Figure(figsize=(WIDTH, 2.3 * -(-len(shown) // columns) + 0.4))
    grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    looks = arm_looks(data.sel(arm=drawn.arms(data)))
    frames = []
    for axes, (block, counts) in zip(grid.flat, shown.items()):
        late = counts.dropna("task", how="all").isel(task=-1)
        edges = np.append(late.low.values, late.high.values[-1])
        for arm, look in looks.items():
            line = {key: value for key, value in look.options.items() if key != "marker"}
            axes.stairs(late.sel(arm=arm).values, edges, label=names(data)[arm], **line)
        axes.set_xscale("symlog", linthresh=float(np.abs(edges).min()), linscale=0.3)
        axes.set_yscale("log")
        top = float(late.max())
        axes.set_ylim(top * 1e-4, top * 3)
        axes.xaxis.set_ticks([-abs(edges[0]), 0.0, abs(edges[0])])
        axes.set_title(block)
        frames.append(late.to_dataframe("value").reset_index().query("value > 0").assign(block=block))
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    what = "GGN" if operator == "ggn" else operator.capitalize()
    figure.supxlabel(f"{what} eigenvalue (symmetric-log)", fontsize=11)
    figure.supylabel(next(unit for _, unit in found.values()), fontsize=11)
    handles, said = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, said, loc="outside upper center", ncols=4)
    return Drawing(figure, pd.concat(frames)[["block", "arm", "task", "low", "high", "value"]])
