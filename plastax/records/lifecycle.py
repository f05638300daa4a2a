"""The state of a run, and which process may change it.

A run is in one of these states. `status` reads the state from the files alone, however the process ended:

- begun: its directory exists; nothing is recorded yet.
- running: a process works on it.
- stopped: it was asked to end, and ended after a checkpoint.
- failed: it ended with an error.
- killed: it ended without writing how.
- recorded: everything is trained and recorded; the report is missing or incomplete.
- finished: the report is written too.

::

    begun --> running --> stopped, failed, killed --> running --> ... --> recorded --> running --> recorded, finished

The same command continues a run in every state but running and finished. If nothing is recorded, it begins: it writes
``config.json`` and ``environment.json``, whatever is left of them. If something is recorded, both files must be
undamaged, and it continues from the newest checkpoint. If everything is recorded, it only writes the report.

The process that works on the run holds ``lock`` (see `locks`); ``status.json`` says how that process began and, if it
could still write, how it ended. Both are in the run directory; those of a shard are in ``shards/<i>-of-<n>``. A whole
run and shards exclude each other, and so do shards of different numbers. ``.begin.lock`` is held while a process
begins, so that of several that begin at once each sees the locks of the others.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plastax import locks
from plastax.errors import ConfigError, RecordError, RunError, Stopped
from plastax.records import layout
from plastax.records.files import entries, read_json, write_json

REPORT = "report.html"
"""The file that a finished run has."""


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], asides: Container[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Dotted settings that differ, except the ``asides``, with both values; None for a missing one."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in (*old, *(name for name in new if name not in old)):
        a, b = old.get(name), new.get(name)
        if name in asides or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(a, b).items()}
        else:
            found[name] = (a, b)
    return found


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """`differences` in words."""
    return "; ".join(f"{name}: {old!r} there, {new!r} here" for name, (old, new) in differing.items())


class Status(NamedTuple):
    """The state of a run.

    Attributes:
      state: one of those above.
      done: recorded segments of all arms.
      total: planned segments of all arms; 0 if unknown.
      left: seconds that a running one still needs at its speed so far; None if unknown.
      detail: the error of a failed run, the process of a running one.
    """

    state: str
    done: int
    total: int
    left: float | None
    detail: str


def status(run: Path) -> Status:
    """The state of a run of any version; a damaged ``status.json`` counts as missing."""
    shards = _shards(run)
    if not shards:
        return _status(run, run)
    parts = {place: _status(run, place) for place in shards}
    states = [part.state for part in parts.values()]
    missing = max(count for _, count in shards.values()) - len({index for index, _ in shards.values()})
    state = next((s for s in ("running", "failed", "killed", "stopped", "begun") if s in states), "finished")
    left = max((part.left for part in parts.values() if part.left is not None), default=None)
    detail = [f"shard {place.name}: {part.detail}" for place, part in parts.items() if part.detail]
    if missing > 0:
        detail.append(f"{missing} shards have not begun")
        state = "stopped" if state == "finished" else state
    elif state == "finished" and "recorded" in states:
        # Each shard has recorded its part; the whole run has one report.
        report = _status(run, run)
        state = report.state if report.state in ("running", "finished") else "recorded"
        detail += [report.detail] * bool(report.detail)
    done, total = sum(part.done for part in parts.values()), sum(part.total for part in parts.values())
    return Status(state, done, total, left, "; ".join(detail))


def _status(run: Path, place: Path) -> Status:
    """The state of a run, or of its shard whose lock and ``status.json`` are in ``place``."""
    stored = _word(place)
    done, total = _done(run, stored.get("segments", "*")), sum(stored.get("segments", {}).values())
    if owner := locks.holder(place / "lock"):
        seconds, new = time.time() - _time(stored.get("started", "")), done - stored.get("done", 0)
        left = seconds / new * (total - done) if new > 0 and total else None
        return Status("running", done, total, left, owner)
    state = stored.get("state")
    if not state:
        # Runs of earlier versions have no status.json; one with a summary is finished.
        state = "finished" if (run / "summary.csv").exists() else "killed" if done else "begun"
    elif state == "running":
        state = "killed"
    elif state == "finished" and stored.get("report") and not _filled(run / REPORT):
        state = "recorded"
    return Status(state, done, total, None, stored.get("error", ""))


def _word(place: Path) -> dict[str, Any]:
    """The content of ``status.json``, from the last process that worked on a run or shard; {} if it cannot be used."""
    shape = {"state": str, "started": str, "segments": {...: int}, "done": int, "error": str, "report": bool}
    try:
        return read_json(place / "status.json", shape)
    except (OSError, RecordError):
        return {}


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _done(run: Path, arms: Iterable[str]) -> int:
    """Number of recorded segments of some arms, or of all for "*"."""
    folders = (run / "records").glob("*") if arms == "*" else (run / "records" / arm for arm in arms)
    return sum(len(layout.segment_files(folder)) for folder in folders)


def _time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; 0 for anything else."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def blank(run: Path) -> bool:
    """Whether a run has neither a record nor a checkpoint, so that nothing could be lost.

    Raises:
      Unreadable: a folder cannot be opened.
    """
    folders = [folder for top in ("records", "checkpoints") for folder in entries(run / top)]
    return not any(path.name[0].isdecimal() for folder in folders for path in entries(folder))


def unfinished(directory: Path, identity: str, *, or_finished: bool = False) -> list[Path]:
    """The unfinished runs of a configuration in an experiment's directory, beginning with the most recent.

    Args:
      directory: of the experiment's runs.
      identity: see `plastax.study.settings.identity`.
      or_finished: finished runs, too.
    """

    def last(run: Path) -> float:
        try:
            began = layout.read_environment(run).get("time", "")
        except (OSError, RecordError):
            began = ""
        return _time(_word(run).get("started", "")) or _time(began) or run.stat().st_mtime

    there = (run for run in directory.glob(f"*-{identity}*") if run.is_dir())
    found = [run for run in there if or_finished or status(run).state != "finished"]
    return sorted(found, key=lambda run: (last(run), run.name), reverse=True)


def lasted(directory: Path, identity: str) -> float | None:
    """Seconds that the newest finished run of a configuration took, of those that were never interrupted; or None."""
    found = []
    for place in directory.glob(f"*{identity}*"):
        word = _word(place)
        if word.get("state") == "finished" and word.get("done") == 0 and (began := _time(word.get("started", ""))):
            found.append((began, (place / "status.json").stat().st_mtime - began))
    return max(found)[1] if found else None


def shard_numbers(shard: str) -> tuple[int, int]:
    """The numbers i and n of a shard ``i/n``, with or without leading zeros.

    Raises:
      ConfigError: it is not a shard.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"shard: {shard!r} is not allowed; give i/n, from 0/n to (n-1)/n")
    return int(index), int(count)


def begun(run: Path, shard: str) -> bool:
    """Whether a process has ever worked on a shard of a run."""
    return shard_numbers(shard) in _shards(run).values()


def _place(run: Path, shard: str) -> Path:
    """The folder of the lock and ``status.json`` of a run, or of its shard ``i/n``."""
    return run / "shards" / "{}-of-{}".format(*shard_numbers(shard)) if shard else run


def _shards(run: Path) -> dict[Path, tuple[int, int]]:
    """The folders of the shards that have begun, and their numbers."""
    found = {path: re.fullmatch(r"(\d+)-of-(\d+)", path.name) for path in sorted((run / "shards").glob("*-of-*"))}
    return {
        path: (int(name[1]), int(name[2]))
        for path, name in found.items()
        if name and ((path / "lock").exists() or (path / "status.json").exists())
    }


@contextlib.contextmanager
def hold(
    run: Path,
    segments: Mapping[str, int],
    shard: str = "",
    *,
    begin: Callable[[bool], Any] = lambda blank: None,
    end: str = "finished",
) -> Iterator[locks.Lock]:
    """Makes this the only process that works on a run or shard, and records in ``status.json`` how it ended.

    Args:
      run: the run directory, made if it is missing.
      segments: folder of an arm's records -> its number of segments.
      shard: ``i/n``: the i-th of n parts of the arms; "": all.
      begin: called while no other process can begin and before anything is changed. Its argument says whether nothing
        is recorded yet and no shard is running. If it raises, nothing is changed.
      end: the state after a context that ends without an error.

    Raises:
      RunError: another process works on the run, or the run was begun as a whole or in another number of shards.
    """
    place = _place(run, shard)
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as ending:
        with locks.hold(run / ".begin.lock", wait=True):
            running = _refuse_others(run, shard)
            begin(not running and blank(run))
            place.mkdir(parents=True, exist_ok=True)
            try:
                lock = ending.enter_context(locks.hold(place / "lock"))
            except locks.Held as held:
                raise _busy(run, f"{held}") from held
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            word = {"state": "running", "started": now, "segments": dict(segments), "done": _done(run, segments)}
            write_json(place / "status.json", word)
        try:
            yield lock
            word["state"] = end
        except Stopped:
            word["state"] = "stopped"
            raise
        except Exception as error:
            word |= {"state": "failed", "error": _line(error)}
            if lock.lost:
                raise RunError(moved(run)) from error
            raise
        except BaseException:
            word["state"] = "killed"
            raise
        finally:
            # A full disk may be why the run failed. A run that was moved must not be made again at its old place.
            if not lock.lost:
                with contextlib.suppress(OSError):
                    write_json(place / "status.json", word)


def conclude(run: Path, write: Callable[[], Any]) -> None:
    """Writes the report of a run, which finishes it; if another process is writing it, waits for that one instead.

    Args:
      run: the run directory, in which everything is recorded.
      write: writes the report.

    Raises:
      RunError: the run was moved in the meantime.
    """
    with locks.hold(run / "lock", wait=True) as lock:
        word = {name: value for name, value in _word(run).items() if name != "error"} | {"report": True}
        if word.get("state") == "finished" and _filled(run / REPORT):
            return
        try:
            write()
            if lock.lost:
                raise RunError(moved(run))
            write_json(run / "status.json", word | {"state": "finished"})
        except Exception as error:
            if not lock.lost and not isinstance(error, Stopped):
                with contextlib.suppress(OSError):
                    write_json(run / "status.json", word | {"state": "recorded", "error": _line(error)})
            raise


def moved(run: Path) -> str:
    """The message for a run that is no longer where it was."""
    return f"{run} was moved or removed meanwhile; its files are whole: continue with --resume <where it is now>"


def _line(error: Exception) -> str:
    return f"{error}".strip().partition("\n")[0] or repr(error)


def _busy(run: Path, owner: str) -> RunError:
    return RunError(
        f"{run} is being worked on by {owner}; stop that process, or, if it is gone, try again in {locks.STALE:.0f} s"
    )


def _refuse_others(run: Path, shard: str) -> bool:
    """Raises `RunError` if another process excludes this one; returns whether another shard is running."""
    place, shards = _place(run, shard), _shards(run)
    for other in (run, place):
        if owner := locks.holder(other / "lock"):
            raise _busy(run, owner)
    count = shard_numbers(shard)[1] if shard else 0
    if others := {there for _, there in shards.values()} - {count}:
        there = max(others)
        raise RunError(f"{run} was begun in {there} shards; continue with --shard i/{there}, or in another --runs-dir")
    if shard and not shards and ((run / "status.json").exists() or not blank(run)):
        raise RunError(f"{run} was begun as a whole; continue without --shard, or in another --runs-dir")
    return any(locks.holder(other / "lock") for other in shards)
