"""Runs as they lie in a directory: at most one process works on each, and what has become of it can be told.

``<run>/lock`` is locked by the process that works on the run, names it, and is touched by it every few seconds: the
lock goes with the process, however it ends. ``<run>/status.json`` says how the last process began and, if it could
still say so, how it ended. Progress is the number of records.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO as File
from typing import Any, NamedTuple

from plastax.record import RecordError, read_json, write_json
from plastax.types import RunError, Stopped

IO = (
    "checkpoint_every", "checkpoint_minutes", "checkpoint_keep", "runs_dir", "resume", "fresh", "wandb",
    "compilation_cache", "auto_chunk", "devices", "preset", "data_path", "data_card",
)  # fmt: skip
"""Settings that do not change a run's numbers and are not part of its identity."""

HEARTBEAT, STALE = 10.0, 60.0
"""Seconds between signs of life of a process, and after which one on another machine counts as gone."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings (dotted) that change numbers and are not equal, with both values; None where there is none."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in (*old, *(name for name in new if name not in old)):
        a, b = old.get(name), new.get(name)
        if name in IO or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(a, b).items()}
        else:
            found[name] = (a, b)
    return found


def listed(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """`differences` in words."""
    return "; ".join(f"{name}: {old!r} there, {new!r} here" for name, (old, new) in differing.items())


class Status(NamedTuple):
    """What has become of a run.

    Attributes:
      state: running | finished | stopped (by a signal, behind a checkpoint) | failed (with an error) | killed (without
        a word).
      done: segments recorded, of all methods.
      total: segments in all; 0 if not known.
      left: seconds that a running one still needs at its speed so far; None if not known.
      detail: the error of a failed run, the process of a running one.
    """

    state: str
    done: int
    total: int
    left: float | None
    detail: str


def status(run: Path) -> Status:
    """What has become of a run, whatever wrote it; a damaged ``status.json`` counts as none."""
    try:
        stored = read_json(run / "status.json")
    except (OSError, RecordError):
        stored = {}
    done = len(list((run / "records").glob("*/[0-9]*.npz")))
    total = sum(stored.get("segments", {}).values())
    if owner := _owner(run):
        seconds = time.time() - datetime.datetime.fromisoformat(stored["started"]).timestamp() if stored else 0.0
        new = done - stored.get("done", 0)
        left = seconds / new * (total - done) if new > 0 and total else None
        return Status("running", done, total, left, owner)
    # Runs of earlier versions have no status.json; whoever has a summary came to the end.
    state = stored.get("state") or ("finished" if (run / "summary.csv").exists() else "killed")
    return Status("killed" if state == "running" else state, done, total, None, stored.get("error", ""))


def _owner(run: Path) -> str:
    """The process that works on a run, in words; "" if none does."""
    try:
        with (run / "lock").open() as file:
            owner = _named(file)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return owner or "another process"
            # Not every shared file system carries locks from one machine to another; signs of life it does.
            alive = owner and socket.gethostname() not in owner.split() and _age(run / "lock") < STALE
            return owner if alive else ""
    except OSError:
        return ""


def _named(file: File[str]) -> str:
    """``process <pid> on <host>`` of a lock file."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


@contextlib.contextmanager
def hold(run: Path, segments: Mapping[str, int]) -> Iterator[None]:
    """Makes this the one process that works on a run, and leaves word of how it ended.

    Args:
      run: the run directory.
      segments: method -> its number of segments.

    Raises:
      RunError: another process works on it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a+") as file:
        _lock(run, file)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        over = threading.Event()
        threading.Thread(target=_beat, args=(run / "lock", over), name="heartbeat", daemon=True).start()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        done = len(list((run / "records").glob("*/[0-9]*.npz")))
        word: dict[str, Any] = {"state": "running", "started": now, "segments": dict(segments), "done": done}
        write_json(run / "status.json", word)
        try:
            yield
            word["state"] = "finished"
        except Stopped:
            word["state"] = "stopped"
            raise
        except Exception as error:
            word |= {"state": "failed", "error": f"{error}".strip().partition("\n")[0] or repr(error)}
            raise
        except BaseException:
            word["state"] = "killed"
            raise
        finally:
            over.set()
            # The disk that a run failed on may be too full for this as well.
            with contextlib.suppress(OSError):
                write_json(run / "status.json", word)
                file.truncate(0)


def _lock(run: Path, file: File[str]) -> None:
    for attempt in range(5):
        owner = _named(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Whoever asks for a run's state holds its lock for an instant.
            time.sleep(0.1 * attempt)
            continue
        except OSError:
            pass  # A file system without locks.
        if owner and socket.gethostname() not in owner.split() and _age(run / "lock") < STALE:
            raise RunError(
                f"{run} is being worked on: {owner} gave a sign of life {_age(run / 'lock'):.0f} s ago; "
                f"if it is gone, try again in {STALE:.0f} s"
            )
        return
    raise RunError(f"{run} is being worked on by {owner or 'another process'}; stop that one first")


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def newest(directory: Path, identity: str) -> Path | None:
    """The newest run of a configuration among those of an experiment; None without one."""
    found = [path for path in directory.glob(f"*-{identity}*") if (path / "config.json").exists()]
    return max(found, key=lambda path: path.name, default=None)
