"""Runs as they lie in a directory: at most one process works on each, and what has become of it can be told.

``<run>/lock`` is held by the process that works on the run (see `locks`). ``<run>/status.json`` says how the last
process began and, if it could still say so, how it ended. Progress is the number of records.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plastax import locks
from plastax.errors import RunError, Stopped
from plastax.record import RecordError, read_json, write_json

IO = (
    "checkpoint_every", "checkpoint_minutes", "checkpoint_keep", "runs_dir", "resume", "fresh", "wandb",
    "compilation_cache", "auto_chunk", "devices", "shard", "preset", "data_path", "data_verify", "data_card",
)  # fmt: skip
"""Settings that do not change a run's numbers and are not part of its identity."""


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
    places = sorted((run / "shards").glob("*-of-*"))
    if not places:
        return _status(run, run)
    parts = [_status(run, place) for place in places]
    states = [part.state for part in parts]
    missing = int(places[0].name.rpartition("-")[2]) - len(places)
    state = next((s for s in ("running", "failed", "killed", "stopped") if s in states), "finished")
    left = max((part.left for part in parts if part.left is not None), default=None)
    detail = "; ".join(f"shard {place.name}: {part.detail}" for place, part in zip(places, parts) if part.detail)
    detail += f"{'; ' * bool(detail)}{missing} shards have not begun" if missing else ""
    state = "stopped" if missing and state == "finished" else state
    return Status(state, sum(part.done for part in parts), sum(part.total for part in parts), left, detail)


def _status(run: Path, place: Path) -> Status:
    """What has become of a run, or of the shard of it whose lock and word are in ``place``."""
    try:
        stored = read_json(place / "status.json")
    except (OSError, RecordError):
        stored = {}
    done = _done(run, stored.get("segments", "*"))
    total = sum(stored.get("segments", {}).values())
    if owner := locks.holder(place / "lock"):
        seconds = time.time() - datetime.datetime.fromisoformat(stored["started"]).timestamp() if stored else 0.0
        new = done - stored.get("done", 0)
        left = seconds / new * (total - done) if new > 0 and total else None
        return Status("running", done, total, left, owner)
    # Runs of earlier versions have no status.json; whoever has a summary came to the end.
    state = stored.get("state") or ("finished" if (run / "summary.csv").exists() else "killed")
    return Status("killed" if state == "running" else state, done, total, None, stored.get("error", ""))


def _done(run: Path, arms: Iterable[str]) -> int:
    """Segments recorded of some arms."""
    return sum(len(list((run / "records").glob(f"{arm}/[0-9]*.npz"))) for arm in arms)


@contextlib.contextmanager
def hold(run: Path, segments: Mapping[str, int], shard: str = "") -> Iterator[None]:
    """Makes this the one process that works on a run, or on a shard of it, and leaves word of how it ended.

    Args:
      run: the run directory.
      segments: arm -> its number of segments.
      shard: ``i/n``: the i-th of n shares of the arms, whose lock and word are in ``shards/<i>-of-<n>``; "": all.

    Raises:
      RunError: another process works on it, or it was begun in another number of shards.
    """
    place = run / "shards" / shard.replace("/", "-of-") if shard else run
    place.mkdir(parents=True, exist_ok=True)
    for other in (run / "shards").glob("*-of-*"):
        if (there := other.name.rpartition("-")[2]) != shard.partition("/")[2]:
            raise RunError(f"{run} was begun in {there} shards; go on with --shard i/{there}, or in another --runs-dir")
    with contextlib.ExitStack() as ending:
        try:
            ending.enter_context(locks.hold(place / "lock"))
        except locks.Held as held:
            raise RunError(
                f"{run} is being worked on by {held}; stop that one first, or, if it is gone, try again in "
                f"{locks.STALE:.0f} s"
            ) from held
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        word: dict[str, Any] = {"state": "running", "started": now, "segments": dict(segments)}
        word["done"] = _done(run, segments)
        write_json(place / "status.json", word)
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
            # The disk that a run failed on may be too full for this as well.
            with contextlib.suppress(OSError):
                write_json(place / "status.json", word)


def newest(directory: Path, identity: str) -> Path | None:
    """The newest run of a configuration among those of an experiment; None without one."""
    found = [path for path in directory.glob(f"*-{identity}*") if (path / "config.json").exists()]
    return max(found, key=lambda path: path.name, default=None)
