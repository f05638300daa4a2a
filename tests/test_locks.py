"""A lock is held by one living process and by none that is gone, whatever the file system makes of locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from plastax import locks
from plastax.locks import Held
from plastax.records import lifecycle

HOLD = """
import errno, fcntl, sys, time, pathlib
from plastax import locks
def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "ENOLCK": fcntl.flock = refuse
if sys.argv[2] == "Windows": locks.fcntl = None
with locks.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["locks", "ENOLCK", "Windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system has instead of locks, if it has none."""

    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    if request.param == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    elif request.param != "locks":
        monkeypatch.setattr("fcntl.flock", refuse)
    return request.param


@pytest.mark.parametrize("name", ["locks", "ENOLCK", "Windows"])
def test_it_is_held_as_long_as_its_process_lives(tmp_path, monkeypatch, name):
    """Here by a second process, which is then killed: nobody has to wait for a sign of life to get old."""
    path = tmp_path / "lock"
    if name == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    elif name == "ENOLCK":
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    with subprocess.Popen([sys.executable, "-c", HOLD, path, name], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == "held\n"
            assert locks.holder(path).startswith(f"process {other.pid} on ")
            with pytest.raises(Held, match=f"process {other.pid} on "), locks.hold(path):
                pass
        finally:
            other.kill()
    assert locks.holder(path) == ""
    with locks.hold(path):
        assert locks.holder(path).startswith(f"process {os.getpid()} on ")
    assert locks.holder(path) == ""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else signs a lock at the same moment, so there is little to wait for."""
    monkeypatch.setattr(locks, "SETTLE", 0.01)


def test_within_a_process_too(tmp_path, system, alone):
    path = tmp_path / "lock"
    for _ in range(2):
        with locks.hold(path), pytest.raises(Held, match=f"process {os.getpid()} on "), locks.hold(path):
            pass
    assert locks.holder(path) == ""


def test_one_of_several_that_begin_at_once_has_it(tmp_path, system):
    ready, had = threading.Barrier(6), []

    def start() -> None:
        ready.wait()
        with contextlib.suppress(Held), locks.hold(tmp_path / "lock"):
            had.append(threading.get_ident())
            time.sleep(0.5)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 1


def test_who_waits_has_it_next(tmp_path, system):
    path, order = tmp_path / "lock", []

    def wait() -> None:
        with locks.hold(path, wait=True):
            order.append("second")

    with locks.hold(path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_on_another_machine_signs_of_life_count(tmp_path, system, alone):
    """By the file system's clock, even where the system's lock could be taken: it may not reach that machine."""
    path = tmp_path / "lock"
    for signature in ({"pid": 1, "host": "elsewhere"}, {"pid": os.getpid(), "host": "elsewhere", "boot": "x"}):
        path.write_text(json.dumps(signature))
        assert "on elsewhere" in locks.holder(path)
        with pytest.raises(Held, match="on elsewhere"), locks.hold(path):
            pass
        os.utime(path, (0, 0))
        assert locks.holder(path) == ""
        with locks.hold(path):
            pass


def test_a_number_that_another_process_has_got_since_is_no_sign_of_life(tmp_path, system, alone):
    path = tmp_path / "lock"
    with locks.hold(path):
        signature = json.loads(path.read_text())
    path.write_text(json.dumps({**signature, "pid": os.getppid(), "start": "1"}))
    if signature["start"]:
        assert locks.holder(path) == ""


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"3", b'{"pid": "x", "host": 1}', b"\x00" * 9000])
def test_what_is_no_signature_holds_nothing(tmp_path, content, system, alone):
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert locks.holder(path) == ""
    with locks.hold(path):
        assert locks.holder(path)


def test_what_is_no_lock_has_no_holder(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "folder", "pipe", "missing/lock"):
        assert locks.holder(tmp_path / name) == ""
    with pytest.raises(OSError, match="folder"), locks.hold(tmp_path / "folder"):
        pass


def test_a_lock_whose_directory_is_moved_is_lost(tmp_path):
    (tmp_path / "run").mkdir()
    with locks.hold(tmp_path / "run" / "lock") as lock:
        assert not lock.lost
        (tmp_path / "run").rename(tmp_path / "moved")
        assert lock.lost
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "lock").touch()
        assert lock.lost
        # Who looks for the run where it is now finds it held.
        assert locks.holder(pathlib.Path(tmp_path / "moved" / "lock"))


def test_runs_have_one_notion_of_it(tmp_path, system, alone):
    """A run's state and the right to work on it follow from the same lock; ended runs are not running."""
    with lifecycle.hold(tmp_path, {"a": 1}):
        assert lifecycle.status(tmp_path).state == "running"
        with (
            pytest.raises(lifecycle.RunError, match=f"worked on by process {os.getpid()}"),
            lifecycle.hold(tmp_path, {"a": 1}),
        ):
            pass
    assert lifecycle.status(tmp_path).state == "finished"
