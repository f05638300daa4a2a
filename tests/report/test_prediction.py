"""What foretells plasticity, on a study with a planted measurement, and what it refuses."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pandas as pd
import pytest
import rich.console

from plastax import __main__, report
from plastax.errors import ConfigError
from plastax.records.files import read_json
from plastax.records.layout import write_json, write_segment
from plastax.report import prediction
from plastax.report.html import prediction as sections
from plastax.types import Record

METHODS, SEEDS, TASKS, UPDATES = ("backprop", "l2", "reset"), 5, 6, 2
BUDGETS = (0, 1, 10)


def make(
    directory: pathlib.Path,
    methods: tuple[str, ...] = METHODS,
    seeds: int = SEEDS,
    tasks: int = TASKS,
    gain: bool = True,
    measured: bool = True,
    stream: str = "a",
) -> pathlib.Path:
    """A study: the smaller ``planted/good`` of two layers orders gains in reverse, and ``planted/bad`` is noise."""
    settings = {"methods": methods, "seeds": seeds, "tasks": tasks, "updates_per_task": UPDATES, "stream": stream}
    dims = {"gain/gain": ("budget",), "planted/good": ("layer",)}
    config = {
        "experiment": "demo", "run_id": directory.name, "hash": "h", "settings": settings, "dims": dims,
        "coords": {"budget": BUDGETS, "layer": ("one", "two")},
    }  # fmt: skip
    write_json(directory / "config.json", config)
    for method in methods:
        rng = np.random.default_rng(METHODS.index(method))
        for task in range(tasks):
            y = rng.normal(size=(seeds, 1)) * (method != "reset")
            probe = {"gain/gain": np.stack([y * 0, y, y * 2], -1)} if gain else {}
            if measured:
                probe["planted/good"] = np.stack([-y, 9 + y * 0], -1)
                probe["planted/bad"] = rng.normal(size=y.shape)
                probe["planted/constant"] = np.ones(y.shape)
            probe = {name: np.repeat(value, 2, axis=1) for name, value in probe.items()}
            host = {"clock": UPDATES * task, "length": UPDATES, "task": task}
            train = {"episode_return": np.repeat(y + task, UPDATES, axis=1)}
            write_segment(directory / "records" / method, task, Record(train, probe), host)
    return directory


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return prediction.foretell(report.read(make(tmp_path_factory.mktemp("study"))))


def test_the_planted_measurement_is_found_and_its_direction(frame: pd.DataFrame) -> None:
    good = frame[frame["measurement"] == "planted/good (min)"]
    assert set(zip(good["after"], good["pairs"])) == {
        (after, pairs) for after in ("1 update", "10 updates", "the task") for pairs in ("within", "across")
    }
    np.testing.assert_array_equal(good[["accuracy", "accuracy_adjusted_low", "auc"]], 1.0)
    np.testing.assert_array_equal(good["accuracy_direction"], -1)
    assert frame["measurement"].iloc[0].startswith("planted/good")
    assert set(good["seeds"]) == {4}
    assert good["checkpoints"].max() == len(METHODS) * SEEDS * TASKS
    bad = frame[frame["measurement"] == "planted/bad"]
    assert (bad["accuracy_adjusted_low"] <= 0.5).all()
    assert (bad["accuracy_adjusted_high"] >= 0.5).all()
    assert "planted/constant" not in set(frame["measurement"])


def test_all_that_was_tried_is_counted(frame: pd.DataFrame) -> None:
    assert frame.attrs["comparisons"] == 2 * len(frame)
    assert set(frame.loc[frame["measurement"] == prediction.CLOCK, "pairs"]) == {"within"}
    said = " ".join(prediction.notes(frame))
    assert f"adjustment for {2 * len(frame)} comparisons" in said
    assert "seed 0; seeds 1, 2, 3, 4 report" in said
    assert "No spectrum is recorded; add hessian or ggn to --probes." in said


def test_the_gain_over_the_task_is_over_reset(tmp_path: pathlib.Path) -> None:
    data = report.read(make(tmp_path, gain=False))
    found = prediction.gains(data)
    assert list(found) == ["the task"]
    raw = data["train/episode_return"].groupby("update_task").mean()
    wanted = (raw.sel(arm="l2") - raw.sel(arm="reset")).values
    np.testing.assert_allclose(found["the task"].sel(arm="l2").transpose("seed", "task"), wanted)


def test_the_command_prints_and_writes_and_takes_several_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    runs = [str(make(tmp_path / "a", METHODS[:2])), str(make(tmp_path / "b", METHODS[2:]))]
    __main__.main(["predict", *runs, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "planted/good (min)" in printed
    assert "1 [1, 1]*" in printed
    table = pd.read_csv(tmp_path / "out" / "prediction.csv")
    assert table["checkpoints"].max() == len(METHODS) * SEEDS * TASKS
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".pdf", ".csv"}


def test_the_report_has_it_if_there_is_enough(tmp_path: pathlib.Path) -> None:
    found = sections.section(report.read(make(tmp_path / "enough")))
    assert [chart.title for chart in found.charts] == [
        f"Gain after {of}" for of in ("1 update", "10 updates", "the task")
    ]
    ((_, table),) = found.tables
    assert table.loc["planted/good (min)", "better"] == "smaller"
    assert sections.section(report.read(make(tmp_path / "few", tasks=2))).empty


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gain": False, "methods": ("backprop",)}, "add gain to --probes, or reset to --methods"),
        ({"measured": False}, "nothing is measured at the start of tasks; record it: --probes features"),
        ({"tasks": 4}, "4 tasks have measurements and a gain, and 5 are needed; give --tasks 5"),
        ({"seeds": 3}, "3 seeds cannot both choose a direction and report an interval; give --seeds 4"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: pathlib.Path, options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        report.print_prediction([make(tmp_path, **options)], console=rich.console.Console(file=io.StringIO()))
    assert says in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_runs_of_different_streams_are_refused(tmp_path: pathlib.Path) -> None:
    runs = [make(tmp_path / "a"), make(tmp_path / "b", stream="b")]
    assert read_json(runs[1] / "config.json", {})["settings"]["stream"] == "b"
    with pytest.raises(ConfigError, match=r"different streams \(stream: a, b\); give runs of one stream"):
        report.print_prediction(runs)
