"""The report of supervised studies whose true values are known, and how the kind of a study is told."""

from __future__ import annotations

import io
import pathlib

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import rich.console
import scipy.stats
import xarray as xr

import plastax
from plastax import report
from plastax.records.layout import write_json, write_segment
from plastax.report import figures, score, style, table
from plastax.types import Record

METHODS = ("backprop", "l2", "reset")
SEEDS, TASKS, UPDATES, PARTS = 4, 15, 6, 2
LOSS = {"backprop": 0.6, "l2": 0.2, "reset": 0.0}


def _segment(method: str, part: int, regression: bool, evaluated: bool) -> Record:
    """A segment in which a method loses ``LOSS`` of its accuracy over the tasks; seeds differ by a lot in level."""
    rng = np.random.default_rng((METHODS.index(method), part))
    task, half = divmod(part, PARTS)
    level = 0.9 - LOSS[method] * task / (TASKS - 1) - 0.06 * np.arange(SEEDS)
    noise = 0.01 * rng.uniform(size=(SEEDS, 2))
    length = UPDATES // PARTS
    online = level[:, None] - 0.3 / (1 + half) + 0.05 * rng.uniform(size=(SEEDS, length))
    train = {"accuracy": np.full_like(online, np.nan) if regression else online, "loss": 1.0 - online}
    # What is measured at the borders of tasks: the other mark of a segment has no value.
    due = np.where(np.arange(2) == half, 1.0, np.nan)
    accuracy = (level[:, None] + noise) * due
    probe = {
        "evaluation/train_accuracy": np.full_like(accuracy, np.nan) if regression else accuracy,
        "evaluation/test_accuracy": np.full_like(accuracy, np.nan) if regression else 0.8 * accuracy,
        "evaluation/train_loss": 1.0 - accuracy,
        "evaluation/test_loss": 1.2 - accuracy,
        "features/dormant_fraction": (0.5 - 0.5 * accuracy)[..., None] * np.ones(2),
    }
    return Record(train, probe if evaluated else {})


def make_study(
    directory: pathlib.Path,
    *,
    regression: bool = False,
    evaluated: bool = True,
    tasks: int = TASKS,
    segments: int = TASKS * PARTS,
    settings: dict[str, object] | None = None,
) -> pathlib.Path:
    """Writes the first segments of a supervised study."""
    plan = {"methods": METHODS, "seeds": SEEDS, "tasks": tasks, "updates_per_task": UPDATES}
    config = {
        "experiment": "labels",
        "run_id": "s0",
        "hash": "0",
        "settings": {**plan, **(settings or {})},
        "dims": {"features/dormant_fraction": ["feature_layer"]},
        "coords": {"feature_layer": ["0", "1"]},
    }
    write_json(directory / "config.json", config)
    length = UPDATES // PARTS
    for method in METHODS:
        for part in range(min(segments, tasks * PARTS)):
            host = {"clock": part * length, "length": length, "task": part // PARTS, "train_seconds": 0.5}
            host |= {"compile_seconds": 3.0 if part == 0 else 0.0, "env_steps": 1000.0 * length}
            write_segment(directory / "records" / method, part, _segment(method, part, regression, evaluated), host)
    return directory


CARD = {"name": "synthetic", "synthetic": True}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = make_study(tmp_path_factory.mktemp("study"), settings={"data_card": CARD})
    report.write(directory)
    return directory


def raw(directory: pathlib.Path, method: str, name: str) -> np.ndarray:
    """``[S, tasks]``, straight from the files: the mean over updates, or the value at the end of the task."""
    parts = [np.load(path)[name] for path in sorted((directory / "records" / method).glob("*.npz"))]
    if name.startswith("probe/"):
        return np.stack([part[:, 1] for part in parts[PARTS - 1 :: PARTS]], axis=1).astype(np.float64)
    return np.concatenate(parts, axis=1).astype(np.float64).reshape(SEEDS, -1, UPDATES).mean(axis=2)


def printed(directory: pathlib.Path) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    report.print_table(directory, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("train_accuracy", "probe/evaluation/train_accuracy"),
        ("test_accuracy", "probe/evaluation/test_accuracy"),
        ("online_accuracy", "train/accuracy"),
    ],
)
def test_early_late_and_change(study: pathlib.Path, name: str, variable: str) -> None:
    frame = pd.read_csv(study / "summary.csv", index_col="arm")
    reset = raw(study, "reset", variable)
    for method in METHODS:
        values, row = raw(study, method, variable), frame.loc[method]
        early, late = values[:, :3].mean(axis=1), values[:, -5:].mean(axis=1)
        assert row[f"{name}_early"] == pytest.approx(early.mean(), rel=1e-5)
        assert row[f"{name}_late"] == pytest.approx(late.mean(), rel=1e-5)
        change = late - early
        assert row[f"{name}_change"] == pytest.approx(change.mean(), abs=1e-6)
        # Seeds differ by 0.18 in level and hardly in what they lose: an interval that is not paired would be wide.
        ends = scipy.stats.ttest_1samp(change, 0.0).confidence_interval()
        assert [row[f"{name}_change_low"], row[f"{name}_change_high"]] == pytest.approx(list(ends), abs=1e-5)
        assert change.max() - change.min() < 0.02
        prefix = "" if name == "train_accuracy" else f"{name}_"
        column = f"{prefix}minus_reset_late"
        if method == "reset":
            assert np.isnan(row[column])
        else:
            assert row[column] == pytest.approx((values - reset)[:, -5:].mean(), abs=1e-6)
            assert row[f"{prefix}minus_reset_early"] == pytest.approx((values - reset)[:, :3].mean(), abs=1e-6)


def test_other_columns(study: pathlib.Path) -> None:
    frame = pd.read_csv(study / "summary.csv", index_col="arm")
    assert (frame["tasks"] == TASKS).all()
    assert (frame["compile_s"] == 3.0).all()
    assert frame["examples_per_s"].to_numpy() == pytest.approx(6000.0)
    assert frame.loc["backprop", "dormant_fraction"] > frame.loc["reset", "dormant_fraction"] > 0.0
    assert not [name for name in frame if "return" in name or "over" in name or "loss" in name]


def test_figures_show_accuracies(study: pathlib.Path) -> None:
    assert {path.stem for path in (study / "figures").glob("*.png")} == {
        "overview",
        "accuracy",
        "network",
        "prediction",
    }
    drawn = pd.read_csv(study / "figures" / "accuracy.csv").set_index(["quantity", "arm"])
    assert set(drawn.index.get_level_values(0)) == {"train_accuracy", "online_accuracy", "test_accuracy"}
    expected = raw(study, "l2", "probe/evaluation/train_accuracy").mean(axis=0)
    np.testing.assert_allclose(drawn.loc[("train_accuracy", "l2"), "mean"], expected, rtol=1e-5)
    updates = pd.read_csv(study / "figures" / "accuracy_per_update.csv")
    first = np.load(study / "records" / "l2" / "000000.npz")["train/accuracy"]
    assert updates.loc[1, "l2"] == pytest.approx(first[:, 1].mean(), rel=1e-5)
    assert len(updates) == TASKS * UPDATES


def test_axes_are_labelled(study: pathlib.Path) -> None:
    data = plastax.load(study)
    with style.styled():
        labels = [axes.get_ylabel() for axes in figures.scores(data).figure.axes]
        overview = [axes.get_ylabel() for axes in figures.overview(data).figure.axes]
    assert labels == ["online accuracy", "final training accuracy", "online accuracy, task mean", "final test accuracy"]
    assert overview == ["final training accuracy", "online accuracy, task mean"]


def test_synthetic_data_are_named_everywhere(study: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert pd.read_csv(study / "summary.csv")["notice"].str.contains("SYNTHETIC").all()
    # In the title and in the caption.
    assert printed(study).count("SYNTHETIC DATA") == 2
    real = make_study(tmp_path, segments=2, settings={"data_card": CARD | {"synthetic": False}})
    assert "SYNTHETIC" not in printed(real)
    for directory, expected in {study: True, real: False}.items():
        data = report.read(directory)
        with style.styled():
            drawings = figures.drawings(data)
        # Of two tasks nothing is foretold.
        assert set(drawings) == {"overview", "accuracy", "network"} | ({"prediction"} if directory == study else set())
        for drawing in drawings.values():
            texts = drawing.figure.findobj(matplotlib.text.Text)
            assert sum(text.get_text().startswith("SYNTHETIC DATA") for text in texts) == expected


def test_regression_is_judged_by_its_loss(tmp_path: pathlib.Path) -> None:
    directory = make_study(tmp_path, regression=True)
    data = report.read(directory)
    frame = table.summary(data)
    loss = raw(directory, "backprop", "train/loss")
    assert frame.loc["backprop", "online_loss_late"] == pytest.approx(loss[:, -5:].mean(), rel=1e-5)
    assert frame.loc["backprop", "online_loss_change"] > 0.3
    assert frame.loc["backprop", "minus_reset_late"] > 0.3
    assert {"train_loss_early", "test_loss_late"} <= set(frame)
    assert not [name for name in frame if "accuracy" in name]
    assert "lower loss is better" in printed(directory)
    # The worst loss is the highest.
    assert figures.worst_and_best(data) == ["backprop", "l2"]
    with style.styled():
        assert "loss" in figures.drawings(data)


def test_higher_accuracy_is_better(study: pathlib.Path) -> None:
    assert figures.worst_and_best(plastax.load(study)) == ["backprop", "l2"]
    text = printed(study)
    assert "lower" not in text
    for line in ("final training accuracy, early (first 3)", "online accuracy, late (last 5), minus reset's, paired"):
        assert line in text


def test_without_evaluation_the_online_accuracy_counts(tmp_path: pathlib.Path) -> None:
    data = report.read(make_study(tmp_path, evaluated=False, tasks=1))
    assert score.score_of(data).main == score.ONLINE_ACCURACY
    frame = table.summary(data)
    assert frame["minus_reset_late"].notna().sum() == len(METHODS) - 1
    # One task is early and late at once.
    assert not [name for name in frame if "change" in name]


def test_run_killed_in_its_first_task_is_judged_as_its_whole(tmp_path: pathlib.Path) -> None:
    directory = make_study(tmp_path, segments=1)
    data = report.read(directory)
    assert score.score_of(data).main == score.TRAIN_ACCURACY
    assert table.summary(data)["train_accuracy_early"].isna().all()
    assert "final training accuracy" in printed(directory)


def test_returns_come_first_and_nothing_is_no_score() -> None:
    dims = ("arm", "seed", "update")
    both = xr.Dataset({name: (dims, np.ones((1, 1, 2))) for name in ("train/loss", "train/episode_return")})
    assert score.score_of(both).main.label == "episode return, mean over updates"
    assert score.score_of(both.assign({"train/episodes": both["train/loss"]})).main == score.RETURN
    assert score.score_of(both[["train/loss"]]).main == score.ONLINE_LOSS
    assert score.score_of(xr.Dataset()) is None


@pytest.mark.parametrize("width", [60, 80, 90, 200])
def test_a_narrow_terminal_has_one_table_of_what_matters_most(study: pathlib.Path, width: int) -> None:
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(table.render(report.read(study), width))
    text = console.file.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("───" in line for line in lines) == 1
    # No number is folded or cut.
    row = table.summary(report.read(study)).loc["backprop"]
    late = "[{:.2f}, {:.2f}]".format(*(row[f"train_accuracy_late_{end}"] for end in ("low", "high")))
    assert sum(late in line for line in lines) == 1
    assert "…" not in text
    assert ("more quantities are in summary.csv" in text) == (width < 200)


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.000261, -0.000838, 0.00139, "0.0003 [-0.0008, 0.0014]"),
        (0.8153, 0.755, 0.876, "0.82 [0.76, 0.88]"),
        (164.6, 163.2, 166.1, "165 [163, 166]"),
        (12345.6, 12300.4, 12400.0, "12,346 [12,300, 12,400]"),
        (0.0, -0.031, 0.022, "0.000 [-0.031, 0.022]"),
        (0.012, -0.0001, 0.025, "0.012 [0.000, 0.025]"),
        (1.0, 1.0, 1.0, "1 [1, 1]"),
        (0.25, 0.25, 0.25, "0.25 [0.25, 0.25]"),
        (0.4371, np.nan, np.nan, "0.437"),
        (3.0, np.nan, np.nan, "3"),
        (np.nan, np.nan, np.nan, "-"),
    ],
)
def test_digits(mean: float, low: float, high: float, text: str) -> None:
    assert table.cell({"x": mean, "x_low": low, "x_high": high}, "x") == text


def test_windows() -> None:
    for tasks in range(1, 60):
        early, late = (list(range(tasks)[window.tasks(tasks)]) for window in (score.EARLY, score.LATE))
        assert early[0] == 0
        assert late[-1] == tasks - 1
        assert 1 <= len(early) <= min(3, -(-tasks // 3))
        assert 1 <= len(late) <= min(5, -(-tasks // 3))
        assert tasks == 1 or early[-1] < late[0]
    assert (len(early), len(late)) == (3, 5)
