"""Runs that are killed, stopped, starved and damaged end as if nothing had happened, or say what has."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

import plastax
from plastax import __main__ as cli
from plastax.errors import ConfigError, RunError
from plastax.program import parallel
from plastax.records import files, lifecycle
from plastax.records.layout import read_json, write_json
from plastax.runs import checkpoint
from plastax.study import listing, settings, starting
from tests import killing
from tests.lacking import lacking

ROOT = pathlib.Path(__file__).parent.parent
SEGMENTS = killing.PLAN.segments


def keys_and_data() -> tuple[jax.Array, Any]:
    return parallel.seed_keys(range(killing.SEEDS)), ()


class Server:
    """Forks children on order; see `tests.killing`."""

    def __init__(self, folder: pathlib.Path, *modules: str):
        self.folder, self.kills = folder, 0
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing", *modules],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, directory: pathlib.Path, where: str = "", when: float = 0.0, **more: Any) -> dict[str, Any]:
        """Runs a child; its ``status``, ``seconds`` and what it printed (``log``)."""
        assert self.process.stdin
        assert self.process.stdout
        log = self.folder / "log"
        more = {"cache": str(self.folder / "cache")} | more
        order = killing.Order(str(directory), log=str(log), where=where, when=when, **more)
        self.process.stdin.write(json.dumps(order._asdict()) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline()) | {"log": log.read_text()}
        self.kills += answer["status"] == -9
        return answer


@pytest.fixture(scope="module")
def serve() -> Iterator[Server]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="plastax-survival-"))
    folder.chmod(0o777)
    (folder / "cache").mkdir()
    server = Server(folder)
    yield server
    server.process.communicate()
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(serve: Server) -> tuple[pathlib.Path, float]:
    """An uninterrupted run, and the seconds that such a run takes once everything is compiled."""
    for name in ("cold", "whole"):
        done = serve(serve.folder / name)
        assert done["status"] == 0, done["log"]
    for path in (serve.folder / "cache").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)  # For a child that is nobody.
    return serve.folder / "whole", done["seconds"]


def contents(directory: pathlib.Path, last: int = SEGMENTS) -> dict[str, np.ndarray]:
    """Every recorded number, and every leaf of the last checkpoints, before segment ``last``."""
    found: dict[str, np.ndarray] = {}
    for path in sorted((directory / "records").glob("*/*")):
        if path.name == files.ASIDE:
            continue
        assert path.suffix in ("", ".npz"), path
        if path.is_file():
            with np.load(path) as arrays:
                found |= {f"{path.parent.name}/{path.stem}/{k}": arrays[k] for k in arrays if k[:5] != "host/"}
    for method in killing.OPTIMIZERS:
        with ocp.CheckpointManager((directory / "checkpoints" / method).absolute()) as manager:
            assert manager.latest_step() == last
            state = manager.restore(last, args=ocp.args.StandardRestore())
        found |= {f"{method}/{name}": np.asarray(leaf) for name, leaf in state.items()}
    return found


def assert_same(one: pathlib.Path, other: pathlib.Path) -> int:
    """Bit for bit; the bytes compared."""
    a, b = contents(one), contents(other)
    assert a.keys() == b.keys()
    assert len(a) > 2 * SEGMENTS * 2
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert lifecycle.status(other)[:3] == ("finished", 2 * SEGMENTS, 2 * SEGMENTS)
    return sum(array.nbytes for array in b.values())


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_killed_at_random_moments(serve, whole, kills):
    """So many kills, over as many runs as that takes: each ends like the one that nobody killed."""
    draw, before, number, same = random.Random(kills), serve.kills, 0, 0
    while serve.kills - before < kills:
        directory = serve.folder / f"random-{kills}-{number}"
        number += 1
        for _ in range(3):
            serve(directory, "time", draw.uniform(0.2, 1.0) * whole[1])
        done = serve(directory)
        assert done["status"] == 0, done["log"]
        same += assert_same(whole[0], directory)
    print(f"{serve.kills - before} kills in {number} runs, {same} bytes of records and states the same, none lost")


def test_killed_in_the_middle_of_writes(serve, whole):
    """Torn records, records without a checkpoint after them, torn checkpoints, checkpoints without a manifest."""
    directory, before, torn = serve.folder / "writes", serve.kills, 0
    plan = [("record", 1), ("checkpoint", 1), ("record", 3), ("renamed", 1), ("manifest", 1), ("checkpoint", 2)]
    plan += [("manifest", 2), ("checkpoint", 1), ("checkpoint", 2)]
    for seed, (where, when) in enumerate(plan):
        done = serve(directory, where, when, seed=seed)
        assert done["status"] in (-9, 0), done["log"]
        torn += len(list(directory.glob("checkpoints/*/*.orbax-checkpoint-tmp*")))
        assert lifecycle.status(directory).state == ("killed" if done["status"] else "finished")
    assert serve(directory)["status"] == 0
    assert_same(whole[0], directory)
    assert serve.kills - before >= 7
    assert torn >= 1


@pytest.fixture
def copy(whole: tuple[pathlib.Path, float], tmp_path: pathlib.Path) -> pathlib.Path:
    """A finished run of one's own."""
    return pathlib.Path(shutil.copytree(whole[0], tmp_path / "run"))


def newest(directory: pathlib.Path, method: str = "momentum") -> pathlib.Path:
    return max((directory / "checkpoints" / method).glob("[0-9]*"), key=lambda path: int(path.name))


def test_killed_between_the_last_record_and_its_checkpoint(whole, copy):
    """Every record is there, the final state is not: a run that goes on must still make it."""
    shutil.rmtree(newest(copy))
    killing.study(copy)
    assert_same(whole[0], copy)


def test_damage_anywhere_is_found(whole, copy):
    """Truncation, a flipped byte, a missing file: of every file of the newest checkpoint."""
    files = [path for path in newest(copy).rglob("*") if path.is_file()]
    assert len(files) > 5
    like = jax.eval_shape(killing.program(killing.OPTIMIZERS["momentum"]).init, *keys_and_data())
    for path in files:
        raw = path.read_bytes()
        for harm in (raw[: len(raw) // 2], bytes([raw[0] ^ 1]) + raw[1:], None):
            folder = newest(copy)
            backup = shutil.copytree(folder, copy / "backup")
            (path.write_bytes(harm) if harm is not None else path.unlink())
            restored = checkpoint.restore(folder.parent, killing.config(), like)
            assert restored is not None
            assert restored.segment == SEGMENTS - 1, path
            assert len(restored.notes) == (path.name != "manifest.json" or harm is not None)
            shutil.rmtree(folder)
            shutil.move(backup, folder)


def test_checkpoints_of_another_configuration_or_model_are_refused_by_name(copy):
    (copy / "config.json").unlink()
    with pytest.raises(RunError, match=r"another configuration \(width: None there, 4 here\)"):
        killing.study(copy, width=4)
    like = jax.eval_shape(killing.program(killing.OPTIMIZERS["adam"], width=4).init, *keys_and_data())
    with pytest.raises(RunError, match=r"another model .*params\.kernel: float32\[2, 3\] there, float32\[2, 4\] here"):
        checkpoint.restore(copy / "checkpoints" / "adam", killing.config(), like)


def unpacked(name: str, directory: pathlib.Path) -> pathlib.Path:
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / f"{name}.zip") as archive:
        archive.extractall(directory)
    return directory


def test_a_run_of_format_0_is_refused_and_still_read(tmp_path):
    """What plastax wrote before runs had a format: one of its checkpoints would be taken for one never finished."""
    directory = unpacked("format-0", tmp_path)
    with pytest.raises(RunError, match="is of format 0, and this plastax continues format 1 only"):
        killing.study(directory)
    config = dataclasses.replace(settings.Config(), resume=directory)
    with pytest.raises(ConfigError, match=r"resume: .* is of format 0 .* continue with the version that began it"):
        starting.run_directory(config, "tiny", read_json(directory / "config.json")["settings"])
    assert list((directory / "checkpoints" / "adam").iterdir())
    assert np.isfinite(plastax.load(directory)["train/loss"]).all()


def test_a_run_of_format_1_is_gone_on_with(tmp_path):
    """Stored in tests/fixtures: its last segment is recorded, but the checkpoint after it is missing."""
    directory = unpacked("format-1", tmp_path)
    kept = {path: path.read_bytes() for path in (directory / "records").rglob("*.npz") if path.stem != "000005"}
    state = contents(directory, last=SEGMENTS - 1)
    killing.study(directory)
    assert all(path.read_bytes() == old for path, old in kept.items())
    assert lifecycle.status(directory)[:3] == ("finished", 2 * SEGMENTS, 2 * SEGMENTS)
    final = contents(directory)
    assert final.keys() == state.keys()
    # To the last bits: this may be another machine than the one that wrote the first part.
    for name in ("adam/000005/train/loss", "momentum/000005/train/loss"):
        np.testing.assert_allclose(final[name], state[name], rtol=1e-4)


def test_a_run_that_is_running_is_never_joined(copy):
    with lifecycle.hold(copy, {"adam": SEGMENTS}):
        assert lifecycle.status(copy).state == "running"
        assert f"process {os.getpid()} on" in lifecycle.status(copy).detail
        with pytest.raises(RunError, match=f"being worked on by process {os.getpid()}"):
            killing.study(copy)
    assert lifecycle.status(copy).state == "finished"


def test_a_sign_of_life_from_another_machine_counts(copy):
    """Where a shared file system does not carry locks across machines."""
    (copy / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert lifecycle.status(copy).state == "running"
    with pytest.raises(RunError, match="process 1 on elsewhere"):
        killing.study(copy)
    os.utime(copy / "lock", (0, 0))
    assert lifecycle.status(copy).state == "finished"
    killing.study(copy)


def test_runs_are_listed_with_what_has_become_of_them(whole, tmp_path, capsys):
    """One of each kind, one without ``status.json``, and a running one half-way with its time left."""
    state = read_json(whole[0] / "status.json")
    for name in ("finished", "stopped", "failed", "killed", "old"):
        directory = pathlib.Path(shutil.copytree(whole[0], tmp_path / "tiny" / name))
        word = {**state, "state": name.replace("killed", "running"), "error": "no luck" if name == "failed" else ""}
        write_json(directory / "status.json", word)
    (directory / "status.json").unlink()
    shutil.rmtree(tmp_path / "tiny" / "killed" / "records" / "momentum")
    running = pathlib.Path(shutil.copytree(tmp_path / "tiny" / "killed", tmp_path / "tiny" / "running"))
    for index in range(3, SEGMENTS):
        (running / "records" / "adam" / f"{index:06d}.npz").unlink()
    with lifecycle.hold(running, dict.fromkeys(killing.OPTIMIZERS, SEGMENTS)):
        (running / "records" / "adam" / "000003.npz").touch()
        ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=100)
        write_json(running / "status.json", {**read_json(running / "status.json"), "started": ago.isoformat()})
        shutil.copy(running / "records" / "adam" / "000002.npz", running / "records" / "adam" / "000003.npz")
        status = lifecycle.status(running)
        table = listing.table(tmp_path)
    assert status[:3] == ("running", 4, 2 * SEGMENTS)
    assert status.left == pytest.approx(800, abs=100)  # one new segment in 100 s, eight to go
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    # A run's lines begin with its name.
    of_runs = re.split(r"^(?=tiny/)", console.file.getvalue(), flags=re.MULTILINE)[1:]
    lines = {lines.split()[0]: lines for lines in of_runs}
    assert list(lines) == [f"tiny/{name}" for name in ("failed", "finished", "killed", "old", "running", "stopped")]
    for name, parts in {
        "failed": ("failed", "100 % (12/12)", "no luck"), "killed": ("killed", "50 % (6/12)"),
        "finished": ("finished", "100 % (12/12)", "momentum (online loss"), "stopped": ("stopped",),
        "old": ("killed", "12 segments"), "running": ("running", "33 % (4/12)", f"process {os.getpid()} on"),
    }.items():  # fmt: skip
        for part in parts:
            assert part in lines[f"tiny/{name}"]
    cli.main(["runs", str(tmp_path / "tiny" / "failed")])
    assert "no luck" in capsys.readouterr().out


def test_asked_to_stop_it_stops_after_a_checkpoint(serve, whole):
    directory = serve.folder / "asked"
    for where, name in (("term", "SIGTERM"), ("int", "SIGINT")):
        done = serve(directory, where)
        assert done["status"] == 75, done["log"]
        assert f"{name}: stopping after this segment" in done["log"]
        assert re.search(f"stopped by {name} (after segment [0-9]+ of|before) ", done["log"])
        assert lifecycle.status(directory).state == "stopped"
        # Nothing is lost: a checkpoint follows the last record.
        segments = len(list((directory / "records" / "adam").iterdir()))
        assert newest(directory, "adam").name == str(segments)
    assert serve(directory)["status"] == 0
    assert_same(whole[0], directory)


@pytest.mark.slow  # a segment has to outlast two signals
def test_asked_twice_it_stops_at_once(serve):
    """While the main thread waits for the device: a segment of this one takes seconds."""
    done = serve(serve.folder / "twice", "int int", steps=30_000_000)
    assert done["status"] == 130, done["log"]
    assert "stopped at once" in done["log"]
    assert lifecycle.status(serve.folder / "twice").state == "killed"


@pytest.mark.parametrize(("where", "why"), [("small", "File too large"), ("closed", "Permission denied")])
def test_where_it_cannot_write_it_says_so_and_keeps_what_it_has(serve, whole, where, why):
    directory = serve.folder / where
    done = serve(directory, where)
    assert done["status"] == 1, done["log"]
    assert done["log"].count("error: ") == 1
    assert why in done["log"]
    assert f"--resume {directory}" in done["log"]
    assert "Traceback" not in done["log"]
    assert lifecycle.status(directory).state in ("failed", "killed")
    for folder in (directory / "records").iterdir():
        folder.chmod(0o777)
    assert len(list((directory / "checkpoints").glob("*/*/manifest.json"))) >= 1
    done = serve(directory)
    assert done["status"] == 0, done["log"]
    assert_same(whole[0], directory)


def test_a_run_that_is_moved_while_it_is_trained_stops(serve, whole):
    """It is not made again under its old name, and goes on under the new one."""
    directory = serve.folder / "here"
    done = serve(directory, "moved")
    assert done["status"] == 1, done["log"]
    assert done["log"].splitlines()[-1] == (
        f"error: {directory} was moved or removed meanwhile; its files are whole: continue with --resume <where it "
        "is now>"
    )
    assert not directory.exists()
    done = serve(serve.folder / "here-moved")
    assert done["status"] == 0, done["log"]
    assert_same(whole[0], serve.folder / "here-moved")


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 10, 30, 100])
def test_a_run_that_is_moved_while_a_checkpoint_is_written_is_not_made_again(tmp_path, milliseconds):
    """orbax makes the folders that it misses: they are the run's, wherever it is by then."""
    run, moved = tmp_path / "here", tmp_path / "moved"
    run.mkdir()
    checkpoints = checkpoint.Checkpoints(run / "checkpoints" / "sgd", {"hash": "x"})
    leaves = {f"{number}": np.ones(100_000) for number in range(20)}
    checkpoints.save(1, leaves)
    checkpoints.wait()
    checkpoints.save(2, leaves)
    time.sleep(milliseconds / 1000)
    run.rename(moved)
    checkpoints.close()
    assert not run.exists()
    assert len(list(moved.glob("checkpoints/sgd/*/manifest.json"))) == 2


def test_a_full_disk(serve, whole):
    """A file system that fills up, and has room again."""
    disk = serve.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        lacking(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        done = serve(disk / "run", "full")
        assert done["status"] == 1, done["log"]
        assert "No space left on device" in done["log"]
        # Threads of orbax may have told of the same before; what is said last is one clear line.
        last = done["log"].splitlines()[-1]
        assert last.startswith("error: ")
        assert f"--resume {disk / 'run'}" in last
        assert list((disk / "run" / "checkpoints").glob("*/*/manifest.json"))
        (disk / "filling").unlink()
        done = serve(disk / "run")
        assert done["status"] == 0, done["log"]
        assert_same(whole[0], disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
