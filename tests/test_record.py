"""Records: written atomically, read back as one labelled data set, whatever state the run is in."""

from __future__ import annotations

import io
import json
import os
import pathlib
import platform
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.records import files, labelled, layout
from plastax.types import Record

SEEDS, TASKS, UPDATES = 3, 3, 4
CONFIG = {
    "experiment": "demo",
    "run_id": "r0",
    "hash": "abc",
    "settings": {"methods": ["backprop", "reset"], "seeds": SEEDS, "tasks": TASKS, "updates_per_task": UPDATES},
    "dims": {"hessian/rank": ["eps"], "ggn/rank": ["eps"], "hessian/nodes": ["probe", "node"]},
    "coords": {"eps": [0.1, 0.2]},
}


def segment(value: float, length: int = UPDATES) -> Record:
    marks = np.stack([np.full(SEEDS, value), np.full(SEEDS, value + 0.5)], axis=1)
    return Record(
        {"loss": np.full((SEEDS, length), value) + np.arange(SEEDS)[:, None]},
        {"hessian/rank": marks[..., None] * np.ones(2), "gradient/norm": marks},
    )


def host(clock: int, length: int = UPDATES) -> dict[str, float]:
    return {"clock": clock, "length": length, "task": clock // UPDATES, "train_seconds": 0.25}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    layout.write_json(tmp_path / "config.json", CONFIG)
    return tmp_path


def write(run: pathlib.Path, method: str, index: int, clock: int, length: int = UPDATES) -> pathlib.Path:
    return layout.write_segment(run / "records" / method, index, segment(float(index), length), host(clock, length))


def test_segment_reads_back(run: pathlib.Path) -> None:
    written = segment(2.0)
    path = layout.write_segment(run / "records" / "reset", 7, written, host(8))
    assert path == run / "records" / "reset" / "000007.npz"
    read = layout.read_segment(path)
    np.testing.assert_array_equal(read.train["loss"], written.train["loss"])
    np.testing.assert_array_equal(read.probe["hessian/rank"], written.probe["hessian/rank"])
    assert read.host == {"segment": 7.0, **host(8)}


def test_device_arrays_become_plain_floats(run: pathlib.Path) -> None:
    on_device = jax.tree.map(jnp.asarray, segment(1.0))
    on_device.probe["gradient/norm"] = on_device.probe["gradient/norm"].astype(jnp.bfloat16)
    on_device.train["episodes"] = jnp.ones((SEEDS, UPDATES), jnp.int32)
    read = layout.read_segment(layout.write_segment(run, 0, on_device, host(0)))
    assert {value.dtype for part in (read.train, read.probe) for value in part.values()} == {np.dtype(np.float32)}
    assert read.probe["gradient/norm"][0, 1] == 1.5


def test_full_run_is_labelled(run: pathlib.Path) -> None:
    for method in CONFIG["settings"]["methods"]:
        for task in range(TASKS):
            write(run, method, task, UPDATES * task)
    data = labelled.read_run(run)
    assert data["train/loss"].dims == ("arm", "seed", "update")
    assert data["probe/hessian/rank"].dims == ("arm", "seed", "task", "mark", "eps")
    assert data["probe/gradient/norm"].dims == ("arm", "seed", "task", "mark")
    assert data.eps.values.tolist() == [0.1, 0.2]
    assert data.mark.values.tolist() == ["init", "end"]
    # Beside a hint on tables.
    assert {**data.attrs, "tables": ""} == {"experiment": "demo", "run_id": "r0", "hash": "abc", "tables": ""}
    assert data.update_task.values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    chosen = data["probe/hessian/rank"].sel({"arm": "reset", "seed": 1, "task": 2, "mark": "end", "eps": 0.2})
    assert float(chosen) == 2.5
    frame = data[["train/loss"]].to_dataframe()
    assert frame.loc[("reset", 2, 5), "train/loss"] == 3.0
    assert frame.loc[("reset", 2, 5), "update_task"] == 1
    assert float(data["host/train_seconds"].sum()) == pytest.approx(0.25 * 6)


def test_marks_of_a_task_of_several_segments_are_its_own(run: pathlib.Path) -> None:
    # Two segments a task, both measured at both ends; the last task was cut after its first segment.
    for index in range(5):
        write(run, "reset", index, 2 * index, 2)
    norm = labelled.read_run(run)["probe/gradient/norm"].sel({"arm": "reset", "seed": 0})
    np.testing.assert_array_equal(norm, [[0.0, 1.5], [2.0, 3.5], [4.0, np.nan]])


def test_unfinished_run_is_padded(run: pathlib.Path) -> None:
    assert labelled.read_run(run).sizes["update"] == TASKS * UPDATES
    assert not labelled.read_run(run).data_vars
    for task in range(TASKS):
        write(run, "backprop", task, UPDATES * task)
    write(run, "reset", 0, 0)
    (run / "records" / "reset" / ".000001.npz.123.tmp").write_bytes(b"PK half a file")
    data = labelled.read_run(run)
    assert dict(data.sizes) | {"arm": 2, "seed": 3, "task": 3, "update": 12} == dict(data.sizes)
    loss = data["train/loss"].sel({"arm": "reset", "seed": 0}).values
    np.testing.assert_array_equal(loss, [0.0] * UPDATES + [np.nan] * UPDATES * 2)
    assert np.isnan(data["probe/hessian/rank"].sel({"arm": "reset"}).isel(task=slice(1, None))).all()
    assert data["host/clock"].sel({"arm": "reset"}).notnull().sum() == 1


def test_seeds_keep_their_numbers(run: pathlib.Path) -> None:
    layout.write_json(run / "config.json", {**CONFIG, "settings": {**CONFIG["settings"], "first_seed": 5}})
    write(run, "reset", 0, 0)
    assert labelled.read_run(run).seed.values.tolist() == [5, 6, 7]


def test_axes_of_equal_name_and_different_size_do_not_clash(run: pathlib.Path) -> None:
    # In whatever order they were written, the probe that the configuration names first keeps the axis' name.
    probe = {
        "ggn/rank": np.zeros((SEEDS, 2, 5)),
        "hessian/rank": np.zeros((SEEDS, 2, 2)),
        "x/y": np.zeros((SEEDS, 2, 7)),
    }
    layout.write_segment(run / "records" / "reset", 0, Record({}, probe), host(0))
    data = labelled.read_run(run)
    assert data["probe/hessian/rank"].dims[-1] == "eps"
    assert data["probe/ggn/rank"].dims[-1] == "ggn_eps"
    assert data["probe/x/y"].dims[-1] == "x/y/axis0"


def test_arms_whose_networks_have_other_layers_lie_in_one_record(run: pathlib.Path) -> None:
    layers = {"coords": {"layer": ["a", "b", "c"]}, "own_coords": {"reset": {"layer": ["c", "a"]}}}
    layout.write_json(run / "config.json", {**CONFIG, **layers, "dims": {"weights/norm": ["layer"]}})
    for method, names in (("backprop", "abc"), ("reset", "ca")):
        norms = np.broadcast_to([float(ord(name)) for name in names], (SEEDS, 2, len(names)))
        layout.write_segment(run / "records" / method, 0, Record({}, {"weights/norm": norms}), host(0))
    norm = labelled.read_run(run)["probe/weights/norm"].sel({"seed": 0, "task": 0, "mark": "end"})
    assert norm.layer.values.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(norm.sel({"arm": "backprop"}), [97.0, 98.0, 99.0])
    np.testing.assert_array_equal(norm.sel({"arm": "reset"}), [97.0, np.nan, 99.0])


def test_every_kind_of_damage_names_the_file(run: pathlib.Path) -> None:
    path = write(run, "reset", 0, 0)
    whole = path.read_bytes()
    clean = layout.read_segment(path)
    rng = np.random.default_rng(0)
    refused = []
    for trial in range(400):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[rng.integers(len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = layout.read_segment(path)
        except layout.RecordError as error:
            refused.append(str(error))
        else:
            # The archive holds bytes that mean nothing, such as time stamps.
            np.testing.assert_array_equal(read.train["loss"], clean.train["loss"])
    assert len(refused) > 300
    assert all(str(path) in message for message in refused)
    path.write_bytes(whole[:100])
    with pytest.raises(layout.RecordError, match=r"reset/000000\.npz is truncated or corrupt"):
        labelled.read_run(run)
    with pytest.raises(FileNotFoundError):
        layout.read_segment(path.with_name("000009.npz"))


def test_nothing_appears_if_writing_fails(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(run, "reset", 0, 0)
    assert list((run / "records" / "reset").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"loss": np.zeros((SEEDS, UPDATES + 1))}}, "train/loss has shape"),
        ({"train": {"loss": np.zeros((SEEDS + 1, UPDATES))}}, "number of seeds"),
        ({"probe": {"a/b": np.zeros((SEEDS, 3))}}, "probe/a/b has shape"),
        ({"train": {"loss": np.full((SEEDS, UPDATES), "x")}}, "holds numbers"),
    ],
)
def test_wrong_shapes_are_refused_when_written(run: pathlib.Path, change: dict, message: str) -> None:
    with pytest.raises(layout.RecordError, match=message):
        layout.write_segment(run, 0, segment(0.0)._replace(**change), host(0))


def test_segments_that_do_not_fit_are_refused(run: pathlib.Path) -> None:
    with pytest.raises(layout.RecordError, match="'task'"):
        layout.write_segment(run, 0, segment(0.0), {"clock": 0, "length": UPDATES})
    layout.write_segment(run / "records" / "reset", 0, segment(0.0), {**host(2), "task": 0})
    with pytest.raises(layout.RecordError, match="updates 2 to 6 are not inside task 0"):
        labelled.read_run(run)


def test_start_run_and_resume(tmp_path: pathlib.Path) -> None:
    directory = layout.start_run(tmp_path / "run", CONFIG)
    assert layout.read_json(directory / "config.json") == {**CONFIG, "format": layout.FORMAT}
    first = layout.read_json(directory / "environment.json")
    assert first["python"] == platform.python_version()
    assert first["versions"]["jax"] == jax.__version__
    assert len(first["devices"]) == jax.device_count()
    layout.start_run(directory, CONFIG)
    assert len(layout.read_json(directory / "environment.json")["resumed"]) == 1
    arms = CONFIG["settings"] | {"methods": ["backprop", "other"]}
    with pytest.raises(layout.RecordError, match=r"calls its arms otherwise \(reset\)"):
        layout.start_run(directory, {**CONFIG, "settings": arms})
    with pytest.raises(layout.RecordError, match="another run"):
        layout.start_run(directory, {**CONFIG, "hash": "other"})
    layout.write_json(directory / "config.json", {**CONFIG, "format": layout.FORMAT + 1})
    with pytest.raises(layout.RecordError, match=f"format {layout.FORMAT + 1}"):
        layout.start_run(directory, CONFIG)


def test_json(tmp_path: pathlib.Path) -> None:
    layout.write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": tmp_path, "d": (1, 2)})
    plain = {"a": 0.5, "b": [0, 1], "c": str(tmp_path), "d": [1, 2]}
    assert layout.read_json(tmp_path / "x.json") == plain
    assert json.loads((tmp_path / "x.json").read_text()).items() >= plain.items()
    with pytest.raises(TypeError, match="set"):
        layout.write_json(tmp_path / "y.json", {1, 2})
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(layout.RecordError, match=r"x\.json is not valid JSON"):
        layout.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_archive_is_read_as_numpy_reads_it(dtype: type) -> None:
    rng = np.random.default_rng(0)
    shapes = {"host/number": (), "train/none": (3, 0), "train/some": (3, 4), "probe/deep": (2, 2, 3, 5)}
    given = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    given["probe/by_columns"] = np.asfortranarray(given["probe/deep"])
    file = io.BytesIO()
    np.savez(file, **given)
    found, expected = files.arrays(file.getvalue()), np.load(io.BytesIO(file.getvalue()))
    assert list(found) == expected.files
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name])
        array[...] = 0


def test_an_archive_that_would_unpack_to_more_than_it_is_is_refused() -> None:
    packed, lying = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, zeros=np.zeros(1000))
    with zipfile.ZipFile(lying, "w") as archive, archive.open("zeros.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"shape": (10**12,), "fortran_order": False, "descr": "<f8"})
    for file in (packed, lying):
        with pytest.raises(ValueError, match=r"bad content|reshape"):
            files.arrays(file.getvalue())
