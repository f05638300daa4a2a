"""Spectra of blocks in figures, in the page, and in what is tracked."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from plastax import report
from plastax.records.layout import Segment
from plastax.report import blocks, figures
from plastax.report.html import blocks as pages
from plastax.tracking import dashboard, reduce_segment
from tests.report.test_figures import DIM, EPS, make_study

BLOCKS = ("mlp", "norm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """A study whose blocks have the whole's spectrum, once and twice as large, the second with half of the nodes."""
    study = report.read(make_study(tmp_path_factory.mktemp("study")))
    times = xr.DataArray([1.0, 2.0], {"block": list(BLOCKS)}, "block")
    there = xr.DataArray(np.arange(24) < 12, dims="node") | (times == 1.0)
    whole = {name: study[f"probe/hessian/{name}"] for name in ("nodes", "weights", "rank", "effective_rank", "dim")}
    whole |= {"rank_se": 0.0 * whole["rank"] + 3.0, "effective_rank_se": 0.0 * whole["dim"] + 4.0}
    whole |= {"frobenius": 0.0 * whole["dim"] + 8.0, "off_diagonal": 0.0 * whole["dim"] + 0.25}
    whole |= {"off_diagonal_se": 0.0 * whole["dim"] + 0.05}
    weights = whole["weights"].where(there)
    weights = weights / weights.sum("node")
    own = {
        "nodes": (whole["nodes"] * times).where(there), "weights": weights, "rank": whole["rank"] * times,
        "rank_se": whole["rank_se"] * times, "effective_rank": whole["effective_rank"] * times,
        "effective_rank_se": whole["effective_rank_se"] * times, "dim": whole["dim"] * times / 4,
        "frobenius": whole["frobenius"] * times / 4,
    }  # fmt: skip
    order = ("arm", "seed", "task", "mark", "block", ...)
    added = {f"probe/hessian/block_{name}": value.transpose(*order) for name, value in own.items()}
    return study.assign({f"probe/hessian/{name}": value for name, value in whole.items()} | added)


def test_the_table_has_every_block_the_whole_and_what_is_outside(data: xr.Dataset) -> None:
    frame = blocks.table(data, "hessian")
    rows = frame.loc["backprop"].set_index("block")
    assert list(rows.index) == [*BLOCKS, "whole", "outside of the blocks"]
    assert list(rows["parameters"]) == [f"{DIM / 4:.0f}", f"{DIM / 2:.0f}", f"{DIM:.0f}", ""]
    first = data["probe/hessian/effective_rank"].sel(arm="backprop", mark="init")[:, :2].mean()
    assert rows.loc["norm", "effective rank, first third"].split(" ± ") == [f"{2 * float(first):.3g}", "8"]
    assert rows.loc["norm", f"ε-rank (ε = {EPS[1]:g}), last third"].endswith(" ± 6")
    assert list(rows["share of squared norm"]) == ["0.0625", "0.25", "1", "0.25 ± 0.05"]
    assert blocks.table(data.drop_vars("probe/hessian/block_nodes"), "hessian") is None


def test_a_figure_has_one_small_multiple_a_block(data: xr.Dataset) -> None:
    made = figures.drawings(data, ["blocks"])["blocks"]
    assert [axes.get_title() for axes in made.figure.axes] == list(BLOCKS)
    total = made.frame.groupby(["block", "arm"])["value"].sum().unstack()
    np.testing.assert_allclose(total.loc["mlp"], DIM / 4, rtol=1e-6)
    np.testing.assert_allclose(total.loc["norm"], DIM / 2, rtol=1e-6)


def test_the_page_has_a_chart_a_block_and_the_table(data: xr.Dataset) -> None:
    section = pages.section(data, "hessian")
    assert [chart.title for chart in section.charts] == list(BLOCKS)
    assert len(section.tables) == 1
    assert pages.section(data, "ggn").empty


def test_blocks_are_tracked_by_their_labels() -> None:
    rng = np.random.default_rng(0)
    nodes = rng.standard_normal((3, 2, 2, 1, 4))
    probe = {
        "hessian/block_nodes": nodes,
        "hessian/block_weights": np.full(nodes.shape, 0.25),
        "hessian/block_rank": np.arange(36.0).reshape(3, 2, 2, 3),
        "hessian/block_effective_rank": np.ones((3, 2, 2)),
    }
    dims = {"block_nodes": ("block", "probe", "node"), "block_weights": ("block", "probe", "node")}
    dims |= {"block_rank": ("block", "eps"), "block_effective_rank": ("block",)}
    config = {"dims": {f"hessian/{k}": v for k, v in dims.items()}, "coords": {"block": BLOCKS, "eps": EPS}}
    found = reduce_segment(Segment({}, probe, {}), config)
    np.testing.assert_array_equal(found["hessian/block_rank/init/norm"], probe["hessian/block_rank"][:, 0, 1, 1])
    assert found["hessian/block_spectrum/end/mlp"].counts.sum() == pytest.approx(1)
    for name in found:
        assert dashboard.shown(name) == ("/init/" in name)
