"""Runs whose files are damaged, missing, unreadable, out of place or a stranger's: nothing good is ever lost."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import plastax
from plastax.errors import ConfigError, RecordError, RunError, Unreadable
from plastax.program import parallel
from plastax.records import files, layout, lifecycle
from plastax.runs import loop
from plastax.runs.plan import Saving
from plastax.study import listing, settings, starting
from plastax.types import Record
from tests import killing
from tests.damage.common import (
    ARMS,
    SEGMENTS,
    assert_refused,
    assert_same,
    flip,
    restored,
    start,
    unreadable,
)


def test_what_cannot_be_read_is_not_damaged(killed: Path, whole: Path) -> None:
    data = next(path for path in (killed / "checkpoints/adam/5").rglob("d/*") if path.is_file())
    for name in ("checkpoints/adam/5/manifest.json", "records/adam/000002.npz", "config.json"):
        undo = unreadable(killed / name)
        assert_refused(killed, rf"{name} cannot be read \(Input/output error\)")
        undo()
    data.chmod(0)
    if not os.access(data, os.R_OK):  # nothing is closed to root
        assert_refused(killed, rf"{data} cannot be read \(Permission denied\)")
    data.chmod(0o600)
    for folder in (killed / "records", killed / "records" / "adam", killed / "checkpoints"):
        folder.chmod(0)
        if not os.access(folder, os.R_OK):
            with pytest.raises(Unreadable, match=r"cannot be read \(Permission denied\)"):
                lifecycle.blank(killed)
        folder.chmod(0o700)
    assert not lifecycle.blank(killed)
    assert (found := restored(killed, "adam"))
    assert found.segment == SEGMENTS - 1


def test_what_is_damaged_is_kept_and_made_again(copy: Path, whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A flipped byte among the numbers of a checkpoint, which orbax itself would read back as a number; of a record."""
    folder, bad = copy / "checkpoints" / "adam", copy / "records" / "momentum" / f"{SEGMENTS - 1:06d}.npz"
    victim = max(
        (path for path in (folder / str(SEGMENTS)).rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    flip(victim, victim.stat().st_size // 2)
    flip(bad, 100)
    damaged = victim.read_bytes(), bad.read_bytes()
    killing.study(copy)
    out, err = capfd.readouterr()
    assert "adam/6 is damaged" in out
    assert f"{bad} is truncated or corrupt" in out
    assert out.count(f"continuing after segment {SEGMENTS - 1} of {SEGMENTS}") == 2
    assert "Traceback" not in err
    kept = folder / files.ASIDE / victim.relative_to(folder), bad.parent / files.ASIDE / bad.name
    assert tuple(path.read_bytes() for path in kept) == damaged
    assert_same(copy, whole)


def test_where_no_checkpoint_is_left_every_start_is_refused(copy: Path) -> None:
    for step in (SEGMENTS, SEGMENTS - 1):
        next((copy / "checkpoints" / "adam" / str(step)).rglob("manifest.ocdbt")).unlink()
    message = "no checkpoint is left to continue from: .*adam/6 is damaged.*adam/5 is damaged"
    assert_refused(copy, message, killing.study)
    assert lifecycle.status(copy).state == "failed"


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/adam", "checkpoints/adam/5/manifest.json"])
def test_records_without_a_checkpoint_are_not_made_again(killed: Path, name: str) -> None:
    """As a copy of a run without its largest files leaves them."""
    (shutil.rmtree if (killed / name).is_dir() else os.unlink)(killed / name)
    assert_refused(killed, "no checkpoint is left to continue from: .*checkpoints/adam lacks the checkpoint before")


def resealed(path: Path, seal: Mapping[str, Any]) -> None:
    """Writes a record again, under another seal."""
    segment = layout.read_segment(path)
    path.unlink()
    layout.write_segment(path.parent, int(path.stem), Record(segment.train, segment.probe), segment.host, seal)


def test_a_run_killed_before_its_first_checkpoint_begins_again_and_keeps_its_records(killed: Path, whole: Path) -> None:
    records, seen = killed / "records" / "adam", []
    shutil.rmtree(killed / "checkpoints" / "adam")
    for path in records.iterdir():
        resealed(path, layout.owner(killing.config(), "adam"))
    (records / f"{SEGMENTS - 1:06d}.npz").unlink()

    class Count(killing.Hook):
        def log(self, metrics: Any, step: int) -> None:
            seen.append(len(list(records.glob("*.npz"))))

    killing.study(killed, (Count(killing.Order("", "", "")),))
    assert min(seen) >= SEGMENTS - 1
    assert not (records / files.ASIDE).exists()
    assert_same(killed, whole)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: flip(path, 100),
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "another segment": lambda path: shutil.copy(path.with_name("000001.npz"), path),
    "another arm": lambda path: shutil.copy(path.parent.parent / "momentum" / path.name, path),
    "another run": lambda path: resealed(path, layout.owner(killing.config(), "adam") | {"run": "y"}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_record_is_found_before_anything_is_trained(copy: Path, damage: str) -> None:
    DAMAGE[damage](copy / "records" / "adam" / "000002.npz")
    assert_refused(copy, r"adam/000002\.npz (is|holds) .*from a copy, or start over with --fresh")
    with pytest.raises(RecordError, match=r"adam/000002\.npz (is|holds) "):
        plastax.load(copy)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_record_after_a_checkpoint_is_recorded_again(copy: Path, damage: str) -> None:
    DAMAGE[damage](copy / "records" / "adam" / f"{SEGMENTS - 1:06d}.npz")
    found = restored(copy, "adam")
    assert found
    assert found.segment == SEGMENTS - 1
    assert len(found.notes) == 1


def test_a_record_that_goes_missing_while_it_trains_is_missed_at_its_end(tmp_path: Path) -> None:
    class Thief(killing.Hook):
        def log(self, metrics: Any, step: int) -> None:
            (tmp_path / "run" / "records" / "adam" / "000001.npz").unlink(missing_ok=True)

    with pytest.raises(RunError, match=r"adam/000001\.npz is missing; put it back"):
        killing.study(tmp_path / "run", (Thief(killing.Order("", "", "")),))
    assert lifecycle.status(tmp_path / "run").state == "failed"


def test_another_record_in_the_place_of_one_is_moved_aside(tmp_path: Path) -> None:
    host = {"clock": 0, "length": 2, "task": 0}
    for value in (1.0, 1.0, 2.0, 3.0):
        path = layout.write_segment(tmp_path, 0, Record({"loss": np.full((1, 2), value)}, {}), host)
    values = [layout.read_segment(p).train["loss"][0, 0] for p in (path, *sorted((tmp_path / "aside").iterdir()))]
    assert values == [3.0, 2.0, 1.0]


def test_stray_files_do_no_harm(killed: Path, whole: Path) -> None:
    """What synchronising, copying and looking at a run leaves beside its files."""
    for arm in ARMS:
        records, checkpoints = killed / "records" / arm, killed / "checkpoints" / arm
        for name in ("000003 (1).npz", "000003-conflict.npz", "3.npz", "000003.npz~", "٠٠٠٠٠٣.npz"):
            shutil.copy(records / "000003.npz", records / name)
        shutil.copytree(checkpoints / "5", checkpoints / "5 (1)")
        shutil.copytree(checkpoints / "5", checkpoints / "007")
        (checkpoints / "7").write_text("a file")
        (records / "old").mkdir()
        for folder in (records, checkpoints, checkpoints / "5"):
            (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
            (folder / "._000003.npz").write_bytes(b"\0\5\26\7")
    shutil.copytree(killed / "records" / "adam", killed / "records" / "adam (1)")
    shutil.copytree(killed / "checkpoints" / "adam", killed / "checkpoints" / "adam (1)")
    killing.study(killed)
    assert_same(killed, whole)
    assert listing._row(killed)[3] == listing._row(whole)[3]


ODD = {
    "empty": b"", "list": b"[]", "number": b"7", "null": b"null", "cut": b'{"experiment": "tiny", "sett',
    "no text": b'{"a": "\xff\xfe"}', "deep": b"[" * 100_000, "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "settings": b'{"settings": 3}', "names": b'{"settings": {"methods": "adam"}}',
    "numbers": b'{"settings": {"tasks": "x"}}',
    "types": b'{"state": {}, "done": "x", "started": 5, "error": [], "settings": []}',
    "axes": b'{"dims": {"a": [1]}}', "arms": b'{"arms": ["a"]}', "segments": b'{"segments": [1], "state": "running"}',
    "folder": None, "pipe": None,
}  # fmt: skip


def put(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(ODD[kind] or b"")


@pytest.mark.parametrize("kind", ODD)
def test_one_bad_file_takes_no_other_run_with_it(copy: Path, kind: str) -> None:
    for name in ("config.json", "status.json"):
        other = Path(shutil.copytree(copy, copy.with_name(f"other-{name}")))
        put(other / name, kind)
    with pytest.raises((RecordError, FileNotFoundError), match=r"other-config\.json"):
        plastax.load(copy.with_name("other-config.json"))
    console = Console(file=io.StringIO(), width=500)
    console.print(listing.table(copy.parent))
    # A run's lines begin with its name; what is wrong with it is below.
    of_runs = re.split(r"^(?=\S)", console.file.getvalue(), flags=re.MULTILINE)[1:]
    lines = {lines.split()[0]: lines for lines in of_runs}
    assert "finished" in lines["run"]
    damaged = lines["other-config.json"]
    assert "damaged" in damaged
    assert "config.json" in damaged.split("\n", 1)[1]


def test_a_strangers_manifest_names_no_file_outside_of_its_checkpoint(
    killed: Path, whole: Path, tmp_path: Path
) -> None:
    folder = killed / "checkpoints" / "adam" / "5"
    manifest = files.read_json(folder / "manifest.json")
    data = next(path for path in folder.rglob("d/*") if path.is_file())
    shutil.copy(data, tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    sums = manifest["files"][str(data.relative_to(folder))]
    os.mkfifo(folder / "pipe")
    odd = [
        "/dev/zero",
        "../../../../../../../../../dev/zero",
        "..",
        str(tmp_path / "outside"),
        "link",
        "pipe",
        ".",
        "a\0b",
    ]
    for name in [*odd, "x" * 5000]:
        files.write_json(folder / "manifest.json", manifest | {"files": manifest["files"] | {name: sums}})
        assert_refused(killed, "no checkpoint is left to continue from: .*adam/5 is damaged")
    for wrong in ({"files": []}, {"files": {"x": {}}}, {"files": {"x": []}}, {"leaves": 1}, {"format": "1"}):
        files.write_json(folder / "manifest.json", manifest | wrong)
        assert_refused(killed, "no checkpoint is left to continue from: .*adam/5 is damaged")
    files.write_json(folder / "manifest.json", manifest)
    start(killed)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": 10**7},
        {"tasks": 10**18},
        {"updates_per_task": 10**9},
        {"tasks": 0},
        {"tasks": -3},
        {"updates_per_task": 0},
    ],
)
def test_a_strangers_configuration_eats_no_memory(copy: Path, change: dict[str, int]) -> None:
    config = files.read_json(copy / "config.json")
    files.write_json(copy / "config.json", config | {"settings": config["settings"] | change})
    with pytest.raises(
        RecordError, match=r"take .* GiB, but only .* MiB have been recorded|must be 1 or more|not inside"
    ):
        plastax.load(copy)
    shutil.rmtree(copy / "records")
    files.write_json(
        copy / "config.json", config | {"settings": config["settings"] | {"tasks": 10**7} | change | {"seeds": 10**12}}
    )
    with pytest.raises(RecordError, match=r"take .* GiB, but only 0 MiB have been recorded|must be 1 or more"):
        plastax.load(copy)


def test_labels_longer_than_a_file_name_have_short_folders(tmp_path: Path) -> None:
    arms = {f"adam@{'a-long-setting=' * 30}{i}": {} for i in range(2)}
    chosen = {"methods": ["adam"], "seeds": 2, "tasks": killing.TASKS, "updates_per_task": killing.UPDATES}
    described = {label: {"method": "adam", "settings": {}} for label in arms}
    config = {"experiment": "tiny", "run_id": "x", "hash": "h", "settings": chosen, "arms": described}
    batches = [
        parallel.batch(lambda _: killing.network(killing.OPTIMIZERS["adam"]), {label: {}}, range(2)) for label in arms
    ]
    for _ in range(2):
        loop.study(tmp_path / "run", config, batches, killing.PLAN, saving=Saving(1))
        shutil.rmtree(tmp_path / "run" / "checkpoints" / layout.short(next(iter(arms))) / str(SEGMENTS))
    names = [path.name for top in ("records", "checkpoints") for path in (tmp_path / "run" / top).iterdir()]
    assert len(set(names)) == 2
    assert max(len(name) for name in names) <= layout.LONGEST
    data = plastax.load(tmp_path / "run")
    assert data.arm.values.tolist() == list(arms)
    assert np.isfinite(data["train/loss"]).all()
    assert lifecycle.status(tmp_path / "run")[1:3] == (2 * SEGMENTS, 2 * SEGMENTS)


def test_a_run_that_named_its_folders_by_long_labels_still_has_them(killed: Path, whole: Path) -> None:
    """As earlier versions did, whose records had no seal either."""
    label = "adam" * 30
    config = files.read_json(killed / "config.json")
    config["settings"]["methods"] = [label]
    files.write_json(killed / "config.json", config)
    for top in ("records", "checkpoints"):
        (killed / top / "adam").rename(killed / top / label)
        shutil.rmtree(killed / top / "momentum")
    for path in (killed / "records" / label).iterdir():
        resealed(path, {})
    batch = parallel.batch(lambda _: killing.network(killing.OPTIMIZERS["adam"]), {label: {}}, range(2))
    loop.study(killed, config, [batch], killing.PLAN, saving=Saving(1))
    assert [path.name for path in (killed / "records").iterdir()] == [label]
    loss = plastax.load(killed)["train/loss"][0]
    np.testing.assert_array_equal(loss, plastax.load(whole)["train/loss"].sel({"arm": "adam"}))


def test_a_label_or_folder_of_a_stranger_stays_in_the_run(copy: Path) -> None:
    config = files.read_json(copy / "config.json")
    for name in ("../../run/records/adam", "..", "", "/", "a\0b"):
        files.write_json(copy / "config.json", config | {"folders": {"adam": name}})
        with pytest.raises(RecordError, match="cannot name a folder of records"):
            plastax.load(copy)


def test_a_directory_whose_name_is_no_text_is_refused_first(tmp_path: Path) -> None:
    """As every name with a letter outside of ASCII, where the system's encoding is ASCII."""
    config = dataclasses.replace(settings.Config(), runs_dir=tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(ConfigError, match=r"runs_dir: .* is not valid in this system's file name encoding"):
        starting.check_writable(config, "tiny")
    assert not list(tmp_path.iterdir())
