"""What a run leaves behind: its records and what is said of them. `labelled` makes one data set of them.

A run directory holds one study: several methods, each a batch of vmapped seeds; of a sweep (``arms`` in the
configuration) the label of an arm, ``l2@l2=0.1``, stands where otherwise the method's name does::

    config.json                      experiment, run_id, hash, settings, dims, coords (of an arm that has fewer labels:
                                     own_coords); of a sweep: arms; of labels too long for a folder: folders
    environment.json                 versions, devices, precision, git revision
    records/<method>/000000.npz      one immutable file per segment

A record file holds ``train/<name>`` ``[S, length]``, ``probe/<probe>/<value>`` ``[S, 2, ...]`` (axis 1: start and end
of the segment) and ``host/<name>`` scalars. Its last bytes, the archive's comment, are its seal: a checksum of all the
others, and whose record it is. Every file appears under its final name only when it is complete and on disk, so a run
that was killed at any moment reads as the segments that it finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plastax.errors import RecordError, RunError
from plastax.records import files
from plastax.records.environment import changes, environment
from plastax.records.files import PathLike, read_bytes, read_json, write_json

if TYPE_CHECKING:
    from plastax.types import Record

MARKS = ("init", "end")
"""Labels of the mark axis: right after a task switch, and right before the next one."""

FORMAT = 1
"""Of the layout of a run directory and its checkpoints. Raise it where a run cannot be gone on with across a change; 0
is what was written before there were numbers."""

REQUIRED_HOST = ("clock", "length", "task")
"""Host scalars that `labelled.read_run` needs to place a segment: its first update, its number of updates, its task."""

LONGEST = 64
"""Bytes of the longest label that names a folder."""

ASIDES = (
    "checkpoint_every", "checkpoint_minutes", "checkpoint_keep", "runs_dir", "resume", "fresh", "wandb",
    "compilation_cache", "auto_chunk", "devices", "shard", "preset", "data_path", "data_verify", "data_card",
)  # fmt: skip
"""Settings that change no number, of the runs whose ``config.json`` does not name them under ``asides``."""

_SEAL = b"\0plastax "
_CONFIG = {
    "format": int, "experiment": str, "run_id": str, "hash": str, "dims": {...: [str]}, "coords": {...: [None]},
    "own_coords": {...: {...: [None]}}, "arms": {...: {"method": str, "settings": {}}}, "folders": {...: str},
    "asides": [str],
    "settings": {"methods": [str], "seeds": int, "first_seed": int, "tasks": int, "updates_per_task": int},
}  # fmt: skip
_ENVIRONMENT = {
    "source": str, "versions": {}, "devices": [{"kind": str}], "backend": str, "own": {}, "jax": {}, "variables": {},
    "time": str, "resumed": [{}],
}  # fmt: skip


class Segment(NamedTuple):
    """One record file in memory.

    Attributes:
      train: name -> ``[S, length]``, one value an update.
      probe: ``<probe>/<value>`` -> ``[S, 2, ...]``, NaN rows where none was due.
      host: name -> number, measured by the host (seconds, counts, the segment's place in the run).
    """

    train: dict[str, np.ndarray]
    probe: dict[str, np.ndarray]
    host: dict[str, float]


def start_run(
    directory: PathLike,
    config: Mapping[str, Any],
    here: Mapping[str, Any] | None = None,
    *,
    blank: bool = False,
    same: bool = False,
) -> pathlib.Path:
    """Makes the run directory and writes ``config.json`` and ``environment.json``; a no-op on the config on resume.

    Args:
      directory: ``runs/<experiment>/<run id>``.
      config: ``experiment``, ``run_id``, ``hash``, ``settings``, ``dims``, ``coords``.
      here: by default `environment`.
      blank: nothing is recorded yet: both are written, whatever is left of them.
      same: refuse to go on in another environment.

    Returns:
      The directory.

    Raises:
      RecordError: the directory holds a run of a different configuration (another ``hash``), other labels or `FORMAT`;
        or one of the files is damaged and there are records.
      RunError: code, versions or device are not the `same`.
    """
    directory = pathlib.Path(directory)
    here = environment() if here is None else here
    old, first = (None if blank else _left(directory / name) for name in ("config.json", "environment.json"))
    if old and old.get("format", 0) != FORMAT:
        raise RecordError(
            f"{directory} is of format {old.get('format', 0)}, and this plastax continues format {FORMAT} only"
        )
    if old and old.get("hash") != config.get("hash"):
        raise RecordError(f"{directory} holds another run: hash {old.get('hash')!r}, not {config.get('hash')!r}")
    if old and not blank and (gone := [arm for arm in arm_labels(old) if arm not in arm_labels(config)]):
        raise RecordError(
            f"{directory} was begun by a version that calls its arms otherwise ({gone[0]}); continue with that version "
            "(environment.json names it), or start over with --fresh"
        )
    if first and same and (other := changes(first, here)):
        raise RunError(
            f"{', '.join(other)} changed since {directory} was begun, and its shards must be alike; to continue all "
            f"the same, give --resume {directory} with this --shard; or start all shards again in another --runs-dir"
        )
    if not old:
        write_json(directory / "config.json", {**config, "format": FORMAT})
    told = dict(here)
    if first:
        # A resumed run may continue on another machine: keep where every part of it ran.
        told = {**first, "resumed": [*first.get("resumed", []), here]}
    elif old:
        told["began"] = "not known: this file was missing when the run went on"
    write_json(directory / "environment.json", told)
    return directory


def _left(path: pathlib.Path) -> dict[str, Any] | None:
    """What an earlier start of a run has left in a file, None where there is none."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def _as_float(name: str, value: Any) -> np.ndarray:
    """``value`` as an array that `numpy.load` reads without ml_dtypes: float64 stays, all else becomes float32."""
    array = np.asarray(value)
    if array.dtype == np.float64:
        return array
    try:
        return array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{name}: a record holds numbers, not {array.dtype}") from error


def write_segment(
    directory: PathLike, index: int, record: Record, host: Mapping[str, float], owner: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Writes one segment of one method, atomically and durably; another record in its place is moved aside.

    Args:
      directory: ``records/<method>`` in the run directory; made if need be.
      index: number of the segment, from 0; names the file.
      record: ``train`` arrays ``[S, length]`` and ``probe`` arrays ``[S, 2, ...]``, on the host or on a device.
      host: scalars from the host; must name `REQUIRED_HOST`. Others in use: ``segment``, ``train_seconds``,
        ``probe_seconds``, ``compile_seconds``, ``compilations``, ``env_steps`` (of all seeds together).
      owner: whose record it is, see `owner`; anything else to be sealed with it.

    Returns:
      The file.

    Raises:
      RecordError: a host scalar is missing, or an array has the wrong shape or is not numeric.
    """
    path = pathlib.Path(directory) / f"{index:06d}.npz"
    if missing := [name for name in REQUIRED_HOST if name not in host]:
        raise RecordError(f"{path}: host scalars {missing} are missing")
    arrays = {f"train/{name}": _as_float(name, value) for name, value in record.train.items()}
    arrays |= {f"probe/{name}": _as_float(name, value) for name, value in record.probe.items()}
    # float64 holds every count exactly, float32 only up to 2**24.
    arrays |= {f"host/{name}": np.asarray(value, np.float64) for name, value in {"segment": index, **host}.items()}
    _check(path, arrays)
    # A segment that is computed again is the same, but on another machine.
    if os.path.lexists(path) and not _same(path, arrays):
        files.aside(path)
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **arrays)
    content = _sealed(archive.getvalue(), {**(owner or {}), "segment": index})
    files.write_atomic(path, lambda file: file.write(content))
    return path


def _same(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a record has these numbers, those of the host aside."""
    try:
        segment = read_segment(path)
    except (RecordError, FileNotFoundError):
        return False
    old = {f"train/{k}": v for k, v in segment.train.items()} | {f"probe/{k}": v for k, v in segment.probe.items()}
    new = {name: array for name, array in arrays.items() if not name.startswith("host/")}
    return old.keys() == new.keys() and all(
        old[k].dtype == v.dtype and old[k].shape == v.shape and old[k].tobytes() == v.tobytes() for k, v in new.items()
    )


def _sealed(archive: bytes, seal: Mapping[str, Any]) -> bytes:
    """An archive without a comment, with its seal as one."""
    body, text = archive[:-2], json.dumps(seal).encode()  # what ends an archive is the length of its comment
    comment = _SEAL + b"%08x " % zlib.crc32(body + text) + text
    return body + struct.pack("<H", len(comment)) + comment


def _unsealed(path: pathlib.Path, raw: bytes, owner: Mapping[str, Any]) -> dict[str, Any]:
    """What a record's seal says, {} of one that earlier versions wrote; `RecordError` if it is broken or another's."""
    start = raw.rfind(_SEAL)
    if start < 0:
        return {}
    checksum, _, text = raw[start + len(_SEAL) :].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(raw[: start - 2] + text):
        raise RecordError(f"{path} is truncated or corrupt: it does not match its checksum")
    try:
        seal = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{path} has a seal that cannot be read: {error}") from error
    if wrong := files.mismatch(seal, {"segment": int, "checkpoint": int}, "its seal"):
        raise RecordError(f"{path}: {wrong}")
    expected = {**owner, "segment": int(path.stem)} if path.stem.isdecimal() else owner
    if others := {name: seal[name] for name, value in expected.items() if seal.get(name, value) != value}:
        told = ", ".join(f"{name} {value}" for name, value in others.items())
        raise RecordError(f"{path} holds another record: {told}")
    return seal


def segment_files(directory: PathLike) -> dict[int, pathlib.Path]:
    """Number of the segment -> record file, in order; whatever else lies beside them is none."""
    found = [path for path in files.entries(pathlib.Path(directory)) if re.fullmatch(r"[0-9]{6,}\.npz", path.name)]
    return {int(path.stem): path for path in sorted(found, key=lambda path: int(path.stem))}


def check_segment(path: pathlib.Path, owner: Mapping[str, Any]) -> dict[str, Any]:
    """What a record's seal says; errors as `read_segment`. Of one without a seal, every array is read."""
    raw = read_bytes(path)
    seal = _unsealed(path, raw, owner)
    if not seal:
        _parsed(path, raw)
    return seal


def _check(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `RecordError` unless the shapes are those of one segment."""
    if missing := [name for name in REQUIRED_HOST if f"host/{name}" not in arrays]:
        raise RecordError(f"{path}: host scalars {missing} are missing")
    seeds = {}
    for name in REQUIRED_HOST:
        value = arrays[f"host/{name}"]
        if value.ndim or value.dtype.kind != "f" or not 0 <= value < 2**53 or value != int(value):
            raise RecordError(f"{path}: host/{name} is {value}, no whole number")
    length = int(arrays["host/length"])
    for name, array in arrays.items():
        kind = name.partition("/")[0]
        if array.dtype.kind != "f":
            raise RecordError(f"{path}: {name} holds {array.dtype}, not numbers")
        good = {
            "host": array.ndim == 0,
            "train": array.ndim == 2 and array.shape[1] == length,
            "probe": array.ndim >= 2 and array.shape[1] == len(MARKS),
        }
        if not good.get(kind, False):
            raise RecordError(f"{path}: {name} has shape {array.shape}, in a segment of {length} updates")
        if kind != "host":
            seeds[name] = array.shape[0]
    if len(set(seeds.values())) > 1:
        raise RecordError(f"{path}: the number of seeds (axis 0) differs between arrays: {seeds}")


def read_segment(path: PathLike, owner: Mapping[str, Any] | None = None) -> Segment:
    """Reads one record file.

    Args:
      path: the file.
      owner: whose record it must be, see `owner`.

    Raises:
      FileNotFoundError: no such file.
      Unreadable: it is there and cannot be read now.
      RecordError: the file is truncated, corrupt, no record or another's; the message names it.
    """
    path = pathlib.Path(path)
    raw = read_bytes(path)
    _unsealed(path, raw, owner or {})
    return _parsed(path, raw)


def _parsed(path: pathlib.Path, raw: bytes) -> Segment:
    try:
        arrays = files.arrays(raw)
    # Damage raises nearly anything (zipfile, zlib, struct, tokenizer errors ...), depending on the byte that it hits.
    except Exception as error:
        raise RecordError(f"{path} is truncated or corrupt: {error}") from error
    _check(path, arrays)
    parts: dict[str, dict[str, Any]] = {"train": {}, "probe": {}, "host": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = float(array) if kind == "host" else array
    segment = Segment(**parts)
    # All that tells a record of earlier versions, which has no seal, from a copy of another one.
    if path.stem.isdecimal() and segment.host.get("segment", int(path.stem)) != int(path.stem):
        raise RecordError(f"{path} holds another record: segment {segment.host['segment']:.0f}")
    return segment


def read_arm(run: PathLike, config: Mapping[str, Any], arm: str) -> list[Segment]:
    """All finished segments of an arm, in the order of the run; whatever else lies beside them is ignored.

    Args:
      run: the run directory.
      config: the content of its ``config.json``.
      arm: its label.

    Raises:
      RecordError: a record cannot be used, is another's, or is missing between others.
    """
    directory = records_folder(run, config, arm)
    found = segment_files(directory)
    if missing := set(range(len(found))) - found.keys():
        path = directory / f"{min(missing):06d}.npz"
        raise RecordError(f"{path} is missing, and later ones are there; put it back from a copy")
    whose = owner(config, arm)
    return sorted((read_segment(path, whose) for path in found.values()), key=lambda segment: segment.host["clock"])


def read_config(directory: PathLike) -> dict[str, Any]:
    """Reads the ``config.json`` of a run directory; of an earlier version's, with its `ASIDES`.

    Raises:
      FileNotFoundError: there is none.
      Unreadable: it is there and cannot be read now.
      RecordError: it is damaged, or no run's configuration; the message names it.
    """
    path = pathlib.Path(directory) / "config.json"
    config = read_json(path, _CONFIG)
    if missing := [name for name in ("experiment", "run_id", "settings") if name not in config]:
        raise RecordError(f"{path} lacks {', '.join(missing)}")
    for name in (arm_folder(config, arm) for arm in arm_labels(config)):
        if pathlib.PurePath(name).name != name or name in ("", "..") or "\0" in name:
            raise RecordError(f"{path}: {name!r:.60} cannot name a folder of records")
    coords = config.get("coords", {})
    for arm, axes in config.get("own_coords", {}).items():
        if wrong := [axis for axis, own in axes.items() if any(one not in coords.get(axis, ()) for one in own)]:
            raise RecordError(f"{path}: own_coords.{arm}.{wrong[0]} is not among coords")
    return {"asides": list(ASIDES), **config}


def read_environment(directory: PathLike) -> dict[str, Any]:
    """Reads the ``environment.json`` of a run directory; errors as `read_config`."""
    return read_json(pathlib.Path(directory) / "environment.json", _ENVIRONMENT)


def owner(config: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Whose record one is that an arm of a run writes: goes into its seal."""
    return {"run": config.get("run_id", ""), "hash": config.get("hash", ""), "arm": arm}


def short(label: str, most: int = LONGEST) -> str:
    """A label of at most ``most`` bytes: itself, or where it is long its beginning and a digest of the whole."""
    if len(label.encode()) <= most:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{label.encode()[: most - 9].decode(errors='ignore')}-{digest}"


def arm_folder(config: Mapping[str, Any], arm: str) -> str:
    """What an arm's folders in a run directory are called: its label, or what ``config.json`` says instead."""
    return config.get("folders", {}).get(arm, arm)


def records_folder(run: PathLike, config: Mapping[str, Any], arm: str) -> pathlib.Path:
    """Where an arm's records are."""
    return pathlib.Path(run) / "records" / arm_folder(config, arm)


def arm_labels(config: Mapping[str, Any]) -> list[str]:
    """What records and curves of a run are called: its methods, or of a sweep its arms."""
    return [str(label) for label in config.get("arms", config.get("settings", {}).get("methods", []))]


def coords_of(config: Mapping[str, Any], arm: str) -> Mapping[str, Sequence[Any]]:
    """Axis name -> its labels in what this arm records, in order."""
    return {**config.get("coords", {}), **config.get("own_coords", {}).get(arm, {})}
