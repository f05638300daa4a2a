"""A sweep in tables: an arm is a method and its values, and nothing is cut in 80 columns."""

from __future__ import annotations

import html
import io
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
import rich.console
import xarray as xr

from plastax import report
from plastax.records.layout import write_json, write_segment
from plastax.report import compare, style, sweeps, table
from plastax.report import html as pages
from plastax.report.html import verdict
from plastax.study import listing
from plastax.types import Record

METHODS, RATES = ("backprop", "l2_er", "layernorm"), (0.0005, 0.002, 0.01)
SEEDS, TASKS, UPDATES = 4, 6, 2
EPS = (0.01, 0.1, 1.0)


def label(method: str, rate: float) -> str:
    return f"{method}@learning_rate={rate:g}"


def true_accuracy(method: str, rate: float) -> float:
    return 0.2 + 0.1 * METHODS.index(method) + 10 * rate


def true_rank(method: str, rate: float) -> float:
    """At eps 0.1."""
    return 1000.0 * (1 + METHODS.index(method)) * 0.0005 / rate


def make(directory: pathlib.Path, seeds: int = SEEDS) -> pathlib.Path:
    """A sweep of three methods over three rates, whose values are known up to what seeds differ."""
    arms = {
        label(method, rate): {"method": method, "settings": {"training.learning_rate": rate}}
        for method in METHODS
        for rate in RATES
    }
    config = {
        "experiment": "demo", "run_id": "sweep", "hash": "h", "arms": arms,
        "settings": {"methods": METHODS, "seeds": seeds, "tasks": TASKS, "updates_per_task": UPDATES},
        "dims": {"hessian/rank": ["eps"], "hessian/rank_se": ["eps"], "features/norm": ["feature_layer"]},
        "coords": {"eps": EPS, "feature_layer": ["0", "1"]},
    }  # fmt: skip
    write_json(directory / "config.json", config)
    # Without their mean, so that the mean over seeds is the true value.
    away = np.linspace(-0.02, 0.02, seeds)[:, None]
    for name, arm in arms.items():
        method, rate = arm["method"], arm["settings"]["training.learning_rate"]
        for task in range(TASKS):
            accuracy = np.broadcast_to(true_accuracy(method, rate) + away, (seeds, 2))
            rank = true_rank(method, rate) * (1 + away[..., None]) * np.array([2.0, 1.0, 0.5])
            probe = {
                "evaluation/train_accuracy": accuracy,
                "hessian/rank": np.broadcast_to(rank, (seeds, 2, 3)),
                "hessian/rank_se": np.broadcast_to(0.5 * rank, (seeds, 2, 3)),
                "features/norm": np.broadcast_to(np.array([1.0, 3.0]), (seeds, 2, 2)),
            }
            train = {"accuracy": accuracy - 0.1, "loss": 1.0 - accuracy, "grad_norm": np.full((seeds, UPDATES), 5.0)}
            host = {"clock": UPDATES * task, "length": UPDATES, "task": task, "compile_seconds": 1.0}
            write_segment(directory / "records" / name, task, Record(train, probe), host)
    return directory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make(tmp_path_factory.mktemp("runs") / "sweep0")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of two seeds, which have no intervals, so that comparing them takes no time."""
    return make(tmp_path_factory.mktemp("few"), seeds=2)


def printed(show, width: int = 80) -> str:
    console = rich.console.Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()


def rows(text: str) -> list[list[str]]:
    """The cells of each row about an arm in the tables of a text."""
    cells = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return [row for row in cells if {*METHODS} & {*row[:2]} and len(row) > 2]


def test_an_arm_is_a_method_and_its_values_in_80_columns(sweep: pathlib.Path) -> None:
    text = printed(lambda console: report.print_table(sweep, console))
    tables = text[: text.index("no best arms")] if "no best arms" in text else text[: text.index("best arms: method")]
    assert max(map(len, tables.splitlines())) <= 80
    assert "…" not in text
    assert "@" not in text
    found = rows(tables)
    assert [row[:2] for row in found] == [[method, f"{rate:g}"] for method in METHODS for rate in RATES]
    assert found[4][2].startswith(f"{true_accuracy('l2_er', 0.002):.2f}")
    # The rank with its eps, its interval over seeds and the error of a measurement.
    assert "(0.1)" in tables
    assert re.fullmatch(r"500 \[\d+, \d+\] ± 250", found[4][3])
    assert "± standard error of one measurement" in text
    assert "more quantities are in summary.csv" in text


def test_the_file_has_a_column_for_each_swept_setting(sweep: pathlib.Path) -> None:
    frame = table.summary(report.read(sweep))
    assert frame.loc[label("l2_er", 0.002), ["method", "training.learning_rate"]].tolist() == ["l2_er", 0.002]
    assert frame["rank_last_third_se"].tolist() == pytest.approx((0.5 * frame["rank_last_third"]).tolist(), rel=0.02)


def test_the_summary_pairs_arms_with_the_reference_under_the_same_values(sweep: pathlib.Path) -> None:
    data = report.read(sweep)
    frame = table.summary(data)
    found = verdict.findings(data)
    for method in METHODS[1:]:
        for rate in RATES:
            difference = 0.1 * METHODS.index(method)
            assert frame.loc[label(method, rate), "minus_backprop_late"] == pytest.approx(difference, abs=1e-6)
            assert found.frame.loc[label(method, rate), "minus"] == pytest.approx(difference, abs=1e-6)
    assert frame.loc[[label("backprop", rate) for rate in RATES], "minus_backprop_late"].isna().all()


def test_a_swept_reset_is_no_method_that_keeps_its_plasticity(sweep: pathlib.Path) -> None:
    data = report.read(sweep)
    # layernorm is best, under the name of reset.
    methods = ["reset" if name == "layernorm" else name for name in data.method.values.tolist()]
    found = verdict.findings(data.assign_coords(method=("arm", methods)))
    assert (found.best, found.reference) == (label("l2_er", 0.01), "reset")
    texts = " ".join(text for _, text in verdict.answers(found))
    assert "l2_er (learning_rate = 0.01) has the best" in texts
    assert "Compared with a new network in every task (reset): worse: 6 arms" in texts


def test_arms_are_compared_with_the_reference_under_the_same_values(sweep: pathlib.Path) -> None:
    frame = compare.compare([report.read(sweep)]).set_index("arm")
    for method in METHODS:
        for rate in RATES:
            row = frame.loc[label(method, rate)]
            assert (row["method"], row["training.learning_rate"]) == (method, rate)
            if method == "backprop":
                assert pd.isna(row["against"])
            else:
                assert row["against"] == label("backprop", rate)
                assert row["difference"] == pytest.approx(0.1 * METHODS.index(method), abs=1e-6)
    other = compare.compare([report.read(sweep)], reference="l2_er").set_index("arm")
    assert other.loc[label("backprop", 0.01), "against"] == label("l2_er", 0.01)
    one = compare.compare([report.read(sweep)], reference=label("l2_er", 0.002)).set_index("arm")
    assert set(one["against"].dropna()) == {label("l2_er", 0.002)}


def test_the_list_of_runs_is_not_cut(sweep: pathlib.Path) -> None:
    text = printed(lambda console: console.print(listing.table(sweep.parent)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert re.search(rf"^{sweep.name} ", text, flags=re.MULTILINE)
    assert "best: layernorm, learning_rate = 0.01 (final training accuracy 0.5)" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
def test_comparisons_are_not_cut(sweep: pathlib.Path, width: int) -> None:
    text = printed(lambda console: report.print_comparison([sweep], console=console), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert [row[:2] for row in rows(text)[:9]] == [[method, f"{rate:g}"] for method in METHODS for rate in RATES]
    assert "difference to backprop, with the same values" in " ".join(text.split())
    two = printed(lambda console: report.print_comparison([sweep, sweep], console=console), width)
    assert {tuple(row[:3]) for row in rows(two) if row[0] in "AB"} == {
        (run, method, f"{rate:g}") for run in "AB" for method in METHODS for rate in RATES
    }
    assert ("--csv FILE has all" in two) == (width == 80)
    assert "difference to the same arm of run A" in " ".join(two.split())


@pytest.mark.parametrize(
    ("typed", "expected", "said"),
    [
        ("train/grad_norm", 5.0, "grad_norm, mean of a task's updates"),
        ("train.grad_norm", 5.0, "grad_norm, mean of a task's updates"),
        ("probe/hessian/rank", 500.0, "hessian/rank at task start, ε = 0.1"),
        ("hessian.rank", 500.0, "hessian/rank at task start, ε = 0.1"),
        ("hessian/rank/end", 500.0, "hessian/rank at task end, ε = 0.1"),
        ("features.norm", 2.0, "features/norm at task end, mean over feature layers"),
        ("evaluation/train_accuracy", true_accuracy("l2_er", 0.002), "evaluation/train_accuracy at task end"),
        ("train_accuracy", true_accuracy("l2_er", 0.002), "final training accuracy"),
    ],
)
def test_any_measurement_is_compared(few: pathlib.Path, typed: str, expected: float, said: str) -> None:
    console = rich.console.Console(file=io.StringIO(), width=200)
    frame = report.print_comparison([few], console=console, quantity=typed)
    late = frame[frame["window"] == "late (last 2)"].set_index("arm")
    assert late.loc[label("l2_er", 0.002), "value"] == pytest.approx(expected, rel=1e-5)
    assert ("value_se" in frame) == ("rank" in typed)
    text = " ".join(console.file.getvalue().split())
    assert said in text
    assert "late (last 2): tasks 4, 5" in text
    # More of a measurement is not better.
    assert ("P(better)" in text) == (typed == "train_accuracy")
    assert ("P(larger)" in text) == (typed != "train_accuracy")


def test_windows_without_a_measurement_are_said(tmp_path: pathlib.Path) -> None:
    run = make(tmp_path, seeds=2)
    for path in run.glob("records/*/00000[1-5].npz"):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        probe = {name[6:]: value for name, value in arrays.items() if name.startswith("probe/evaluation")}
        train = {name[6:]: value for name, value in arrays.items() if name.startswith("train/")}
        host = {name[5:]: float(value) for name, value in arrays.items() if name.startswith("host/")}
        write_segment(path.parent, int(path.stem), Record(train, probe), host)
    text = printed(lambda console: report.print_comparison([run], console=console, quantity="hessian.rank"), 200)
    assert "early (first 2): task 0" in text
    assert "no task of the window (late (last 2)) is finished and has a value of hessian/rank/init" in text


def test_the_figure_of_a_sweep_is_score_and_rank_against_the_values(sweep: pathlib.Path) -> None:
    figure, frame = report.draw(sweep, "sweep")["sweep"]
    found = frame.set_index(["method", "training.learning_rate"])
    for method in METHODS:
        for rate in RATES:
            row = found.loc[(method, rate)]
            assert row["train_accuracy_late"] == pytest.approx(true_accuracy(method, rate), rel=1e-5)
            assert row["rank_last_third"] == pytest.approx(true_rank(method, rate), rel=1e-5)
            assert row["rank_last_third_low"] < row["rank_last_third"] < row["rank_last_third_high"]
    score, rank = figure.axes
    for axes, true in ((score, true_accuracy), (rank, true_rank)):
        assert axes.get_xscale() == "log"
        for line, method in zip(axes.get_lines(), METHODS, strict=True):
            np.testing.assert_allclose(line.get_xdata(), RATES)
            np.testing.assert_allclose(line.get_ydata(), [true(method, rate) for rate in RATES], rtol=1e-5)
    assert [text.get_text() for text in rank.get_xticklabels()] == ["0.0005", "0.002", "0.01"]
    # From 50 to 3000: on a linear axis the small ones could not be told apart.
    assert (score.get_yscale(), rank.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(METHODS)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1e-3, 1e-2], "log"),
        ([0.1, 0.2, 0.5], "linear"),
        ([0.0, 1e-3, 1e-1], "category"),
        (["adam", "sgd"], "category"),
    ],
)
def test_the_axis_suits_the_values(values: list, kind: str) -> None:
    names = [f"l2@x={value}" for value in values]
    coords = {"arm": names, "method": ("arm", ["l2"] * len(values)), "training.x": ("arm", values)}
    (axis,) = sweeps.axes(xr.Dataset(coords=coords))
    assert (axis.kind, axis.values) == (kind, values)
    assert len(set(axis.places.values())) == len(values)


def test_a_method_without_the_setting_is_a_flat_line() -> None:
    frame = pd.DataFrame({"method": ["l2", "l2", "reset"], "l2.rate": [0.1, 0.2, np.nan], "x": [1.0, 2.0, 3.0]})
    frame = frame.assign(x_low=0.0, x_high=4.0)
    found = {c.name: c for c in sweeps.curves(frame, "x", sweeps.Axis("l2.rate", [0.1, 0.2], "linear"))}
    assert found["reset"].points["mean"].tolist() == [3.0, 3.0]
    assert (found["reset"].flat, found["l2"].flat) == (True, False)
    assert found["l2"].points["place"].tolist() == [0.1, 0.2]


def test_colour_is_the_method_and_shade_the_value(sweep: pathlib.Path) -> None:
    data = report.read(sweep)
    looks = style.arm_looks(data)
    assert len({look.color for look in looks.values()}) == 9
    base = style.method_colours(METHODS)
    for method in METHODS:
        shades = [looks[label(method, rate)].color for rate in RATES]
        # The largest value has the full colour; smaller ones are lighter.
        assert shades[-1].upper() == base[method][0]
        light = [sum(int(shade[i : i + 2], 16) for i in (1, 3, 5)) for shade in shades]
        assert light == sorted(light, reverse=True)
    # The legend has methods and values, not every pair of them.
    entries = [*METHODS, *(f"learning_rate = {rate:g}" for rate in RATES)]
    assert list(style.legend_looks(data)) == entries
    figure = report.draw(sweep, "ranks")["ranks"].figure
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == entries
    figure.canvas.draw()
    inside, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= inside.x0 < inside.x1 <= page.x1


def test_two_settings_are_shade_and_line() -> None:
    pairs = [(rate, l2) for rate in (0.1, 0.2) for l2 in (1.0, 2.0)]
    coords = {
        "arm": [str(pair) for pair in pairs],
        "method": ("arm", ["l2"] * 4),
        "training.rate": ("arm", [rate for rate, _ in pairs]),
        "method.l2": ("arm", [l2 for _, l2 in pairs]),
    }
    looks = style.arm_looks(xr.Dataset(coords=coords))
    assert len({look.color for look in looks.values()}) == 2
    assert len({(look.color, look.line) for look in looks.values()}) == 4
    assert looks["(0.1, 1.0)"].line == looks["(0.2, 1.0)"].line


def test_the_page_of_a_sweep(sweep: pathlib.Path, tmp_path: pathlib.Path) -> None:
    page = pages.write([report.load_run(sweep)], tmp_path / "report.html").read_text()
    text = html.unescape(page[page.index("<body>") :] if "<body>" in page else page)
    for name in ("sweep-train_accuracy_late-training-learning_rate", "sweep-rank_last_third-training-learning_rate"):
        assert f'id="{name}"' in page
    # No sentence, table or legend has the label of an arm.
    assert "@learning_rate" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "layernorm (learning_rate = 0.01) has the best" in text
