"""Figures, their numbers, and the summary table of a synthetic study whose true values are known."""

from __future__ import annotations

import csv
import io
import pathlib
import shutil

import matplotlib
import numpy as np
import pandas as pd
import pytest
import rich.console
import scipy.stats
import xarray as xr

import plastax
from plastax import report
from plastax.errors import ConfigError
from plastax.records.layout import read_json, write_json, write_segment
from plastax.report import figures, spectra, style, table, values
from plastax.types import Record

METHODS = ("backprop", "l2_er", "reset")
SEEDS, TASKS, UPDATES, PARTS = 4, 5, 40, 2
EPS = (1e-3, 1e-2, 1e-1)
LAYERS = ("actor/0", "actor/1", "critic/0")
DIM = 1000.0
LOSS = {"backprop": 0.9, "l2_er": 0.35, "reset": 0.0}


def _segment(method: str, part: int, rng: np.random.Generator) -> Record:
    """A segment in which a method loses a share ``LOSS`` of its return and its curvature over the tasks."""
    task, half = divmod(part, PARTS)
    left = 1.0 - LOSS[method] * task / (TASKS - 1)
    length = UPDATES // PARTS
    time = (np.arange(length) + half * length) / UPDATES
    episode = 500.0 * left * (1.0 - np.exp(-4.0 * time)) + rng.normal(0, 20.0, (SEEDS, length))
    episode[:, ::7] = np.nan
    marks = np.full((SEEDS, 2, 1), np.nan)
    # The first part of a task is measured at its start, the last one at its end.
    marks[:, half] = left + rng.normal(0, 0.03, (SEEDS, 1))
    nodes = np.sort(rng.normal(-1.5, 1.0, (SEEDS, 2, 2, 24)), axis=-1)
    nodes = np.where(np.arange(24) < 6, -2.0, 1.0) * 10.0**nodes * marks[..., None] ** 3
    weights = rng.dirichlet(np.full(24, 0.3), (SEEDS, 2, 2)) + 0.0 * marks[..., None]
    probe = {
        "hessian/nodes": nodes,
        "hessian/weights": weights,
        "hessian/dim": 0.0 * marks[..., 0] + DIM,
        "hessian/rank": 300.0 * marks * np.array([1.0, 0.6, 0.2]),
        "hessian/effective_rank": 80.0 * marks[..., 0],
        "features/effective_rank": 30.0 * marks * np.array([1.0, 0.8, 0.5]),
        "features/dormant_fraction": np.clip(1.0 - marks, 0, 1) * np.ones(3),
        "weights/norm": 10.0 / marks * np.ones(3),
    }
    return Record({"episode_return": episode, "entropy": np.ones((SEEDS, length))}, probe)


def make_study(directory: pathlib.Path, kept: dict[str, int] | None = None) -> pathlib.Path:
    """Writes a study; of a method in ``kept`` only that many first segments."""
    dims = dict.fromkeys(("hessian/nodes", "hessian/weights"), ("probe", "node"))
    dims |= {"hessian/rank": ("eps",), "weights/norm": ("layer",)}
    dims |= dict.fromkeys(("features/effective_rank", "features/dormant_fraction"), ("feature_layer",))
    config = {
        "experiment": "synthetic",
        "run_id": "s0",
        "hash": "0",
        "settings": {"methods": METHODS, "seeds": SEEDS, "tasks": TASKS, "updates_per_task": UPDATES},
        "dims": dims,
        "coords": {"eps": EPS, "feature_layer": LAYERS, "layer": LAYERS},
    }
    write_json(directory / "config.json", config)
    length = UPDATES // PARTS
    for m, method in enumerate(METHODS):
        rng = np.random.default_rng(m)
        for part in range((kept or {}).get(method, TASKS * PARTS)):
            host = {"clock": part * length, "length": length, "task": part // PARTS, "train_seconds": 0.5}
            host |= {"compile_seconds": 3.0 if part == 0 else 0.0, "env_steps": 1000.0 * length}
            write_segment(directory / "records" / method, part, _segment(method, part, rng), host)
    return directory


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = make_study(tmp_path_factory.mktemp("study"))
    before = dict(matplotlib.rcParams)
    assert report.write(directory) == directory / "report.html"
    assert dict(matplotlib.rcParams) == before
    return directory


def raw_returns(directory: pathlib.Path, method: str) -> np.ndarray:
    """``[S, tasks]``, straight from the files."""
    parts = [np.load(path)["train/episode_return"] for path in sorted((directory / "records" / method).glob("*.npz"))]
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    return np.nanmean(whole[:, : whole.shape[1] // UPDATES * UPDATES].reshape(SEEDS, -1, UPDATES), axis=2)


def test_every_figure_is_there_as_png_pdf_and_csv(study: pathlib.Path) -> None:
    for name in {*figures.FIGURES, "returns"} - {"spectra_ggn", "blocks", "blocks_ggn", "sweep"}:
        for suffix, magic in {"png": b"\x89PNG", "pdf": b"%PDF", "csv": b"q"}.items():
            content = (study / "figures" / f"{name}.{suffix}").read_bytes()
            assert len(content) > 500
            assert content.startswith(magic) or suffix == "csv"
    # What was not measured leaves nothing.
    assert not (study / "figures" / "spectra_ggn.png").exists()


def test_return_numbers_are_those_of_the_records(study: pathlib.Path) -> None:
    drawn = pd.read_csv(study / "figures" / "returns.csv").set_index(["arm", "task"])
    assert len(drawn) == len(METHODS) * TASKS
    for method in METHODS:
        expected = raw_returns(study, method)
        np.testing.assert_allclose(drawn.loc[method, "mean"], expected.mean(0), rtol=1e-5)
        ends = scipy.stats.ttest_1samp(expected, 0.0).confidence_interval()
        np.testing.assert_allclose(drawn.loc[method, ["low", "high"]].T, ends, rtol=1e-4)
        assert (drawn.loc[method, "seeds"] == SEEDS).all()
    updates = pd.read_csv(study / "figures" / "returns_per_update.csv").set_index("update")
    first = np.load(study / "records" / "reset" / "000001.npz")["train/episode_return"]
    assert updates.loc[UPDATES // 2 + 1, "reset"] == pytest.approx(first[:, 1].mean(), rel=1e-5)


def test_rank_numbers_are_those_at_the_start_of_a_task(study: pathlib.Path) -> None:
    drawn = pd.read_csv(study / "figures" / "ranks.csv").set_index(["quantity", "arm", "task"])["mean"]
    for task in range(TASKS):
        record = np.load(study / "records" / "backprop" / f"{PARTS * task:06d}.npz")
        rank, effective = record["probe/hessian/rank"], record["probe/hessian/effective_rank"]
        assert drawn["hessian_rank", "backprop", task] == pytest.approx(rank[:, 0, 1].mean(), rel=1e-5)
        assert drawn["hessian_effective_rank", "backprop", task] == pytest.approx(effective[:, 0].mean(), rel=1e-5)


def test_network_numbers_are_those_at_the_end_of_a_task(study: pathlib.Path) -> None:
    drawn = pd.read_csv(study / "figures" / "network.csv").set_index(["quantity", "arm", "task"])["mean"]
    record = np.load(study / "records" / "l2_er" / f"{PARTS * 3 - 1:06d}.npz")
    norm = np.sqrt((record["probe/weights/norm"][:, 1].astype(float) ** 2).sum(-1)).mean()
    assert drawn["weight_norm", "l2_er", 2] == pytest.approx(norm, rel=1e-5)
    rank = record["probe/features/effective_rank"][:, 1].mean()
    assert drawn["feature_rank", "l2_er", 2] == pytest.approx(rank, rel=1e-5)


def test_spectra_count_every_eigenvalue_once(study: pathlib.Path) -> None:
    drawn = pd.read_csv(study / "figures" / "spectra.csv")
    totals = drawn.groupby(["arm", "task"])["value"].sum()
    assert len(totals) == len(METHODS) * TASKS
    np.testing.assert_allclose(totals, DIM, rtol=1e-5)
    record = np.load(study / "records" / "reset" / f"{PARTS * 4:06d}.npz")
    nodes, weights = record["probe/hessian/nodes"][:, 0], record["probe/hessian/weights"][:, 0]
    negative = drawn[(drawn.arm == "reset") & (drawn.task == 4) & (drawn.high < 0)]["value"].sum()
    edge = drawn.low.abs().min()
    expected = DIM * weights[nodes < -edge].sum() / (SEEDS * 2)
    assert expected > 0.0
    assert negative == pytest.approx(expected, rel=1e-4)


def test_table_numbers(study: pathlib.Path) -> None:
    frame = pd.read_csv(study / "summary.csv", index_col="arm")
    backprop, reset = raw_returns(study, "backprop"), raw_returns(study, "reset")
    row = frame.loc["backprop"]
    assert row["tasks"] == TASKS
    assert row["return"] == pytest.approx(backprop[:, 1:].mean(), rel=1e-5)
    assert row["return_first_task"] == pytest.approx(backprop[:, 0].mean(), rel=1e-5)
    assert row["return_last_third"] == pytest.approx(backprop[:, 3:].mean(), rel=1e-5)
    difference = (backprop - reset)[:, 1:].mean(axis=1)
    assert row["minus_reset"] == pytest.approx(difference.mean(), rel=1e-5)
    ends = scipy.stats.ttest_1samp(difference, 0.0).confidence_interval()
    assert [row["minus_reset_low"], row["minus_reset_high"]] == pytest.approx(list(ends), rel=1e-4)
    assert row["over_reset"] == pytest.approx(backprop[:, 1:].mean() / reset[:, 1:].mean(), rel=1e-5)
    assert row["compile_s"] == 3.0
    assert row["env_steps_per_s"] == pytest.approx(40_000.0)
    assert frame.loc["reset", ["minus_reset", "over_reset"]].isna().all()
    assert frame.loc["backprop", "rank_last_third"] < frame.loc["l2_er", "rank_last_third"]


def test_table_is_printed(study: pathlib.Path) -> None:
    console = rich.console.Console(file=io.StringIO(), width=120)
    report.print_table(study, console)
    text = console.file.getvalue()
    for word in (*METHODS, "synthetic", "4 seeds", "paired", "40,000"):
        assert word in text


def test_arms_keep_their_colour_in_every_study() -> None:
    def looks(*names: str) -> dict[str, style.Look]:
        return style.arm_looks(xr.Dataset(coords={"arm": [*names], "method": ("arm", [*names])}))

    many = looks("backprop", *(f"m{i}" for i in range(12)), "reset")
    assert len({(look.color, look.line) for look in many.values()}) == 14
    assert looks("reset", "backprop")["backprop"] == many["backprop"]


def test_killed_run_draws_what_it_has(tmp_path: pathlib.Path) -> None:
    # backprop was killed in its third task, reset never started.
    directory = make_study(tmp_path, {"backprop": 5, "reset": 0})
    (directory / "records" / "backprop" / ".000005.npz.7.tmp").write_bytes(b"half")
    data = report.read(directory)
    drawn = figures.drawings(data)["returns"].frame.groupby("arm")["task"].max()
    assert drawn.to_dict() == {"backprop": 1, "l2_er": TASKS - 1}
    frame = table.summary(data)
    assert frame["tasks"].to_dict() == {"backprop": 2, "l2_er": TASKS, "reset": 0}
    assert np.isnan(frame.loc["backprop", "return_last_third"])
    assert frame.loc["backprop", "return"] == pytest.approx(raw_returns(directory, "backprop")[:, 1].mean(), rel=1e-5)


@pytest.mark.parametrize("segments", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_run_killed_in_its_first_task(tmp_path: pathlib.Path, segments: int) -> None:
    directory = make_study(tmp_path, dict.fromkeys(METHODS, segments))
    report.write(directory)
    report.print_table(directory, rich.console.Console(file=io.StringIO()))
    assert (directory / "figures" / "returns.png").exists() == (segments > 0)


def test_one_seed_and_no_spectra(tmp_path: pathlib.Path) -> None:
    source = make_study(tmp_path / "source")
    target = tmp_path / "target"
    config = read_json(source / "config.json")
    write_json(target / "config.json", {**config, "settings": {**config["settings"], "seeds": 1}})
    for path in sorted(source.glob("records/*/*.npz")):
        with np.load(path) as file:
            arrays = {k: v if v.ndim == 0 else v[:1] for k, v in file.items() if "hessian" not in k}
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        np.savez(target / path.relative_to(source), **arrays)
    drawings = figures.drawings(report.read(target))
    assert set(drawings) == {"overview", "returns", "network"}
    drawn = drawings["returns"].frame
    assert drawn["mean"].notna().all()
    assert drawn[["low", "high"]].isna().all(axis=None)
    shutil.rmtree(target / "records" / "reset")
    assert "minus_backprop" in table.summary(plastax.load(target).sel({"arm": ["backprop", "l2_er"]}))


def test_tasks_without_probes_are_bridged(study: pathlib.Path) -> None:
    data = plastax.load(study)
    for name in [name for name in data if name.startswith("probe/")]:
        data[name] = data[name].where(data.task % 2 == 0)
    with style.styled():
        drawn = figures.ranks(data)
        heat = figures.spectra(data)
    assert sorted(set(drawn.frame["task"])) == [0, 2, 4]
    assert sorted(set(heat.frame["task"])) == [0, 2, 4]


def test_worst_and_best_leave_reset_out(study: pathlib.Path) -> None:
    assert figures.worst_and_best(plastax.load(study)) == ["backprop", "l2_er"]


def test_rank_takes_the_nearest_threshold(study: pathlib.Path) -> None:
    data = plastax.load(study)
    assert float(values.rank_at(data).eps) == 1e-2
    assert float(values.rank_at(data, eps=2e-3).eps) == 1e-3
    assert float(values.rank_at(data, eps=1.0).eps) == 1e-1


def test_histogram_by_hand() -> None:
    edges = spectra.symlog_edges(0.1, 10.0, per_decade=1)
    np.testing.assert_allclose(edges, [-10, -1, -0.1, 0.1, 1, 10])
    nodes = np.array([[-2.0, 0.0, 0.5, 30.0], [np.nan] * 4])
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.25] * 4])
    # The node outside counts in the last bin, the quadrature with NaN not at all.
    np.testing.assert_allclose(spectra.histogram(nodes, weights, edges), [0.1, 0.0, 0.2, 0.3, 0.4])
    assert np.isnan(spectra.histogram(nodes[1:], weights[1:], edges)).all()
    with pytest.raises(ValueError, match=r"smallest: 1\.0 and largest: 0\.1 are not allowed"):
        spectra.symlog_edges(1.0, 0.1)


def test_csv_is_plain(study: pathlib.Path) -> None:
    with (study / "figures" / "overview.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["quantity"] for row in rows} == {"return", "hessian_rank", "spectrum"}


def test_figures_are_drawn_by_name_without_a_file(study: pathlib.Path) -> None:
    before, files = dict(matplotlib.rcParams), sorted(study.rglob("*"))
    made = report.draw(study, "ranks", "returns")
    assert list(made) == ["ranks", "returns"]
    assert made["ranks"].figure.axes[0].get_ylabel().startswith("Hessian ε-rank")
    # What IPython asks an object for, to show it below a cell.
    assert made["ranks"]._repr_png_().startswith(b"\x89PNG")
    assert {"overview", "spectra", "network"} < set(report.draw(study))
    assert (dict(matplotlib.rcParams), sorted(study.rglob("*"))) == (before, files)
    with pytest.raises(ConfigError, match=r"figure: 'rank' is unknown \(did you mean 'ranks'\?\)"):
        report.draw(study, "rank")
    with pytest.raises(ConfigError, match="'spectra_ggn' has no data"):
        report.draw(study, "spectra_ggn")
