"""Records of a run and the files that describe them. `labelled` makes one data set of them.

A run directory holds one study: several methods, each a batch of vmapped seeds. In a sweep (``arms`` in the
configuration) an arm has its label, ``l2@l2=0.1``, where otherwise the method has its name::

    config.json                      experiment, run_id, hash, settings, asides, dims, coords (own_coords: of arms with
                                     fewer labels); of a sweep: arms; folders: of labels too long to name one;
                                     own: what one's own objects were made of
    environment.json                 versions, devices, precision, git revision
    records/<method>/000000.npz      one immutable file per segment
    checkpoints/, params/            states and trained networks, see `plastax.runs.networks`

A record file holds ``train/<name>`` ``[S, length]``, ``probe/<probe>/<value>`` ``[S, 2, ...]`` (axis 1: start and end
of the segment) and ``host/<name>`` scalars. Its last bytes, the archive's comment, are its seal: a checksum of all
other bytes, and which record it is. A file gets its final name only when it is complete and on disk. So a run that was
killed at any moment can be read, up to its last finished segment.
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
"""Number of the layout of run directories and checkpoints. Raise it with a change that runs cannot be continued across;
0 was written before layouts had numbers."""

REQUIRED_HOST = ("clock", "length", "task")
"""Host scalars that say where a segment belongs: its first update, its number of updates, its task."""

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
    "asides": [str], "own": {...: {...: str}},
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
      probe: ``<probe>/<value>`` -> ``[S, 2, ...]``, NaN where no measurement was due.
      host: name -> number from the host: seconds, counts, where in the run the segment belongs.
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
    """Makes the run directory and writes ``config.json`` and ``environment.json``; a resumed run keeps its config.

    Args:
      directory: ``runs/<experiment>/<run id>``.
      config: ``experiment``, ``run_id``, ``hash``, ``settings``, ``dims``, ``coords``.
      here: the environment, by default `environment`.
      blank: nothing is recorded yet: writes both, whatever an earlier start has left of them.
      same: refuse to continue in another environment.

    Returns:
      The directory.

    Raises:
      RecordError: the directory holds a run of another configuration (``hash``), other arms or another `FORMAT`; or
        one of the two files is damaged and something is recorded.
      RunError: code, versions or device are not the ``same``.
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
    """The content of a file of an earlier start; None without one."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def _as_float(name: str, value: Any) -> np.ndarray:
    """An array that `numpy.load` reads without ml_dtypes: float64 stays as it is, everything else becomes float32."""
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
    """Writes one segment of one arm, atomically and durably; moves aside a file of other numbers in its place.

    Args:
      directory: ``records/<arm>`` in the run directory; made if it is missing.
      index: number of the segment, from 0; names the file.
      record: ``train`` arrays ``[S, length]`` and ``probe`` arrays ``[S, 2, ...]``, on the host or on a device.
      host: scalars from the host, `REQUIRED_HOST` among them. Others in use: ``train_seconds`` (with probes),
        ``probe_seconds``, ``compile_seconds``, ``compilations``, ``env_steps`` (of all seeds together).
      owner: goes into the seal, see `owner`.

    Returns:
      The file.

    Raises:
      RecordError: a host scalar is missing, or an array has the wrong shape or is not numeric.
    """
    path = pathlib.Path(directory) / f"{index:06d}.npz"
    arrays = {f"train/{name}": _as_float(name, value) for name, value in record.train.items()}
    arrays |= {f"probe/{name}": _as_float(name, value) for name, value in record.probe.items()}
    # float64 holds every count exactly, float32 only up to 2**24.
    arrays |= {f"host/{name}": np.asarray(value, np.float64) for name, value in {"segment": index, **host}.items()}
    _check(path, arrays)
    # A segment that is computed again has the same numbers, except on another machine.
    if os.path.lexists(path) and not _same(path, arrays):
        files.aside(path)
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **arrays)
    content = _sealed(archive.getvalue(), {**(owner or {}), "segment": index})
    files.write_atomic(path, lambda file: file.write(content))
    return path


def _same(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a record has these numbers, without those of the host."""
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
    """An archive without a comment gets its seal as the comment."""
    body, text = archive[:-2], json.dumps(seal).encode()  # the last two bytes are the length of the comment
    comment = _SEAL + b"%08x " % zlib.crc32(body + text) + text
    return body + struct.pack("<H", len(comment)) + comment


def _unsealed(path: pathlib.Path, raw: bytes, owner: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record's seal, {} of earlier versions' records; `RecordError` if broken or of another record."""
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
    """Number of a segment -> its record file, in order; other files are ignored."""
    found = [path for path in files.entries(pathlib.Path(directory)) if re.fullmatch(r"[0-9]{6,}\.npz", path.name)]
    return {int(path.stem): path for path in sorted(found, key=lambda path: int(path.stem))}


def check_segment(path: pathlib.Path, owner: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record's seal; errors as of `read_segment`. Reads every array of a record without a seal."""
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
            raise RecordError(f"{path}: host/{name} is {value}, not a whole number")
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
      owner: what its seal must say, see `owner`.

    Raises:
      FileNotFoundError: the file does not exist.
      Unreadable: it exists and cannot be read now.
      RecordError: it is truncated, corrupt, not a record or another record; the message names it.
    """
    path = pathlib.Path(path)
    raw = read_bytes(path)
    _unsealed(path, raw, owner or {})
    return _parsed(path, raw)


def _parsed(path: pathlib.Path, raw: bytes) -> Segment:
    try:
        arrays = files.arrays(raw)
    # Depending on the damaged byte, nearly anything is raised: errors of zipfile, zlib, struct, the tokenizer ...
    except Exception as error:
        raise RecordError(f"{path} is truncated or corrupt: {error}") from error
    _check(path, arrays)
    parts: dict[str, dict[str, Any]] = {"train": {}, "probe": {}, "host": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = float(array) if kind == "host" else array
    segment = Segment(**parts)
    # Records of earlier versions have no seal: only this tells one from a copy of another.
    if path.stem.isdecimal() and segment.host.get("segment", int(path.stem)) != int(path.stem):
        raise RecordError(f"{path} holds another record: segment {segment.host['segment']:.0f}")
    return segment


def read_arm(run: PathLike, config: Mapping[str, Any], arm: str) -> list[Segment]:
    """All finished segments of an arm, in the order of the run; other files are ignored.

    Args:
      run: the run directory.
      config: the content of its ``config.json``.
      arm: its label.

    Raises:
      RecordError: a record cannot be used, belongs elsewhere, or is missing between others.
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
      FileNotFoundError: it does not exist.
      Unreadable: it exists and cannot be read now.
      RecordError: it is damaged, or not the configuration of a run; the message names it.
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
    """Reads the ``environment.json`` of a run directory; errors as of `read_config`."""
    return read_json(pathlib.Path(directory) / "environment.json", _ENVIRONMENT)


def owner(config: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Which run and arm a record belongs to: a part of its seal."""
    return {"run": config.get("run_id", ""), "hash": config.get("hash", ""), "arm": arm}


def short(label: str, most: int = LONGEST) -> str:
    """A label of at most ``most`` bytes; a longer one is cut and gets a digest of the whole."""
    if len(label.encode()) <= most:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{label.encode()[: most - 9].decode(errors='ignore')}-{digest}"


def arm_folder(config: Mapping[str, Any], arm: str) -> str:
    """The name of an arm's folders in a run directory: its label, unless ``config.json`` names another."""
    return config.get("folders", {}).get(arm, arm)


def records_folder(run: PathLike, config: Mapping[str, Any], arm: str) -> pathlib.Path:
    """The folder of an arm's records."""
    return pathlib.Path(run) / "records" / arm_folder(config, arm)


def arm_labels(config: Mapping[str, Any]) -> list[str]:
    """The labels of a run's arms: its methods, or of a sweep its arms."""
    return [str(label) for label in config.get("arms", config.get("settings", {}).get("methods", []))]


def coords_of(config: Mapping[str, Any], arm: str) -> Mapping[str, Sequence[Any]]:
    """Axis -> its labels in the records of this arm, in order."""
    return {**config.get("coords", {}), **config.get("own_coords", {}).get(arm, {})}
