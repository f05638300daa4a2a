"""Several runs as one labelled data set, and everything in it as tables."""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd
import pytest

import plastax
from plastax.errors import ConfigError
from plastax.records import layout, loading
from plastax.types import Record

UPDATES = 4


def make(directory: pathlib.Path, methods: list[str], tasks: int, seeds: int, nodes: int, **settings) -> pathlib.Path:
    """A run whose every number says where it belongs: 100 task + 10 seed + mark, and methods by the thousand."""
    sizes = {"methods": methods, "seeds": seeds, "tasks": tasks, "updates_per_task": UPDATES}
    config = {
        "experiment": "demo",
        "run_id": directory.name,
        "hash": directory.name,
        "settings": {**sizes, "ppo": {"clip": 0.2}, "runs_dir": str(directory), **settings},
        "dims": {"hessian/nodes": ["probe", "node"], "hessian/rank": ["eps"]},
        "coords": {"eps": [0.01, 0.1]},
    }
    layout.write_json(directory / "config.json", config)
    for m, method in enumerate(methods):
        for task in range(tasks):
            place = 1000.0 * m + 100 * task + 10 * np.arange(seeds)[:, None] + np.arange(2)
            probe = {
                "hessian/nodes": place[..., None, None] * np.ones((1, nodes)),
                "hessian/rank": place[..., None] + np.array([0.0, 0.5]),
            }
            train = {"loss": place[:, :1] + np.linspace(0, 0.9, UPDATES)}
            host = {"clock": UPDATES * task, "length": UPDATES, "task": task, "train_seconds": 0.5}
            layout.write_segment(directory / "records" / method, task, Record(train, probe), host)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("runs")
    make(root / "one", ["reset", "l2"], 2, 3, 4, ppo={"clip": 0.1})
    make(root / "two", ["backprop", "reset"], 3, 2, 6)
    (root / "notes").mkdir()
    return root


def test_several_runs_are_one_data_set(runs: pathlib.Path) -> None:
    data = plastax.load(f"{runs}/*")
    assert data.run.values.tolist() == ["one", "two"]
    assert data.arm.values.tolist() == data.method.values.tolist() == ["reset", "l2", "backprop"]
    assert dict(data.sizes) == {
        "run": 2, "arm": 3, "seed": 3, "task": 3, "mark": 2, "update": 12, "segment": 3, "eps": 2, "probe": 1,
        "node": 6,
    }  # fmt: skip
    assert data["settings/ppo.clip"].values.tolist() == [0.1, 0.2]
    assert data["settings/methods"].values.tolist() == ['["reset", "l2"]', '["backprop", "reset"]']
    assert "settings/updates_per_task" not in data.coords
    assert "settings/runs_dir" not in data.coords
    assert data.update_task.values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    rank = data["probe/hessian/rank"]
    assert rank.sel({"run": "one", "arm": "l2", "seed": 2, "task": 1, "mark": "end", "eps": 0.1}) == 1121.5
    assert rank.sel({"run": "two", "arm": "backprop", "seed": 1, "task": 2, "mark": "init", "eps": 0.01}) == 210.0
    # What a run lacks is NaN: methods, tasks, seeds, Lanczos nodes; nothing else is.
    assert rank.notnull().sum() == 2 * 2 * 2 * (2 * 3 + 3 * 2)
    assert data["probe/hessian/nodes"].notnull().sum() == 2 * 2 * (2 * 3 * 4 + 3 * 2 * 6)
    for name in ("one", "two"):
        alone = plastax.load(runs / name)
        picked = data["train/loss"].sel({"run": name, "arm": alone.arm.values, "seed": alone.seed.values})
        np.testing.assert_array_equal(picked.sel({"update": alone["update"]}), alone["train/loss"])


def test_an_arm_is_selected_by_keyword_and_arms_by_their_method(tmp_path: pathlib.Path) -> None:
    """``method`` is an argument of ``sel``: a dimension of this name could not be selected by keyword."""
    settings = {"reset": {}, "l2@l2=0": {"method.l2": 0.0}, "l2@l2=0.1": {"method.l2": 0.1}}
    for name, labels in {"one": ["reset", "l2@l2=0"], "two": ["l2@l2=0.1", "reset"]}.items():
        run = make(tmp_path / name, labels, 2, 2, 4)
        arms = {label: {"method": label.partition("@")[0], "settings": settings[label]} for label in labels}
        layout.write_json(run / "config.json", layout.read_json(run / "config.json") | {"arms": arms})
    data = plastax.load(tmp_path / "one")
    assert data.sel(arm="reset")["train/loss"].dims == ("seed", "update")
    assert data.where(data.method == "l2", drop=True).arm.values.tolist() == ["l2@l2=0"]
    both = plastax.load(f"{tmp_path}/*")
    for name in ("method", "method.l2"):
        assert both[name].dims == ("arm",)
    assert both.where(both.method == "l2", drop=True).arm.values.tolist() == ["l2@l2=0", "l2@l2=0.1"]
    assert both.sel(arm=both["method.l2"] == 0.1).arm.values.tolist() == ["l2@l2=0.1"]
    assert {"arm", "method", "method.l2"} <= set(loading.tables(both)["train"])


def test_runs_whose_tasks_differ_in_length_say_so(runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = layout.read_json(runs / "one" / "config.json")
    settings = config["settings"] | {"tasks": 1, "updates_per_task": 12}
    layout.write_json(tmp_path / "longer" / "config.json", config | {"run_id": "longer", "settings": settings})
    data = plastax.load([runs / "two", tmp_path / "*"])
    assert data.update_task.dims == ("run", "update")
    assert data.update_task.sel(run="longer").values.tolist() == [0.0] * 12
    assert data.update_task.sel(run="two").values.tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4


def test_a_pattern_of_one_run_keeps_the_dimension(runs: pathlib.Path) -> None:
    assert plastax.load(f"{runs}/o*").sizes["run"] == 1
    assert "run" not in plastax.load(runs / "one").dims
    with pytest.raises(FileNotFoundError, match=r"the 2 runs in it are '.*/\*'"):
        plastax.load(runs)
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        plastax.load(f"{runs}/x*")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_export_holds_every_number(runs: pathlib.Path, tmp_path: pathlib.Path, form: loading.Format) -> None:
    paths = loading.export([f"{runs}/*"], form, tmp_path)
    frames = {path.stem: (pd.read_parquet if form == "parquet" else pd.read_csv)(path) for path in paths}
    assert set(frames) == {"runs", "train", "host", "probe_by_eps", "probe_by_probe_node"}
    rank = frames["probe_by_eps"].set_index(["run", "arm", "seed", "task", "mark", "eps"])["probe/hessian/rank"]
    assert len(rank) == 2 * 2 * 2 * (2 * 3 + 3 * 2)
    assert rank["one", "l2", 2, 1, "end", 0.1] == 1121.5
    assert frames["runs"].set_index("run")["settings/ppo.clip"].to_dict() == {"one": 0.1, "two": 0.2}
    assert (frames["train"]["method"] == frames["train"]["arm"]).all()
    loss = frames["train"]
    assert len(loss) == 2 * UPDATES * (2 * 3 + 3 * 2)
    assert (loss["update_task"] == loss["update"] // UPDATES).all()
    assert len(frames["host"]) == 2 * (2 + 3)


@pytest.mark.parametrize("evil", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path: pathlib.Path, evil: str) -> None:
    frame = pd.DataFrame({"arm": [evil, "reset"], "value": [-1.5, 2.0], "text": ["-1.5", "+2"], evil: ["a", "b"]})
    loading.write_table(frame, tmp_path / "t.csv")
    back = pd.read_csv(tmp_path / "t.csv", lineterminator="\n")
    assert back["arm"].tolist() == [f"'{evil}", "reset"]
    assert back.columns[-1] == f"'{evil}"
    # Numbers stay numbers.
    assert back["value"].tolist() == [-1.5, 2.0]
    assert back["text"].tolist() == [-1.5, 2]


def test_export_goes_into_the_run(runs: pathlib.Path) -> None:
    paths = loading.export([runs / "one"])
    assert {path.parent for path in paths} == {runs / "one" / "export"}
    assert "run" not in pd.read_parquet(runs / "one" / "export" / "train.parquet")
    with pytest.raises(ConfigError, match="out is not given"):
        loading.export([runs / "one", runs / "two"])
    with pytest.raises(ConfigError, match="format='xlsx'"):
        loading.export([runs / "one"], "xlsx")  # type: ignore[arg-type]


def test_a_run_names_the_settings_that_change_no_number() -> None:
    """Those of earlier versions, which name none, have the list of their time; see the runs above."""
    configs = [{"settings": {"threads": n, "rate": n}, "asides": ["threads"]} for n in (1, 2)]
    assert loading.differing(configs) == {"rate": [1, 2]}
