"""What a run leaves behind: its files, written whole or not at all. `plastax.labelled` makes one data set of them.

A run directory holds one study: several methods, each a batch of vmapped seeds; of a sweep (``arms`` in the
configuration) the label of an arm, ``l2@l2=0.1``, stands where otherwise the method's name does::

    config.json                      experiment, run_id, hash, settings, dims, coords (of an arm that has fewer labels:
                                     own_coords); of a sweep: arms
    environment.json                 versions, devices, precision, git revision
    records/<method>/000000.npz      one immutable file per segment

A record file holds ``train/<name>`` ``[S, length]``, ``probe/<probe>/<value>`` ``[S, 2, ...]`` (axis 1: start and end
of the segment) and ``host/<name>`` scalars. Every file appears under its final name only when it is complete and on
disk, so a run that was killed at any moment reads as the segments that it finished.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plastax.environment import environment

if TYPE_CHECKING:
    from plastax.types import Record

PathLike = str | os.PathLike[str]

MARKS = ("init", "end")
"""Labels of the mark axis: right after a task switch, and right before the next one."""

FORMAT = 1
"""Of the layout of a run directory and its checkpoints. Raise it where a run cannot be gone on with across a change; 0
is what was written before there were numbers."""

REQUIRED_HOST = ("clock", "length", "task")
"""Host scalars that `labelled.read_run` needs to place a segment: its first update, its number of updates, its task."""


class RecordError(ValueError):
    """A record file that cannot be used; the message names the file."""


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


def _write_atomic(path: pathlib.Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Lets ``write`` fill a file that appears under ``path`` complete and durable, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same directory, because os.replace is atomic only within one file system.
    # Processes on several machines may write one file at the same time, and have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is in the directory: without this a power cut may lose it.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _jsonable(value: Any) -> Any:
    """The ``default`` of `json.dumps`: dataclasses, paths and NumPy values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    message = f"{type(value).__name__} {value!r} cannot be written to JSON"
    raise TypeError(message)


def write_json(path: PathLike, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Args:
      path: the file.
      value: JSON types, dataclasses, paths, NumPy arrays and scalars.

    Raises:
      TypeError: for anything else.
    """
    text = json.dumps(value, indent=2, default=_jsonable) + "\n"
    _write_atomic(pathlib.Path(path), lambda file: file.write(text.encode()))


def read_json(path: PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: no such file.
      RecordError: not JSON.
    """
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        message = f"{path} is not valid JSON: {error}"
        raise RecordError(message) from error


def start_run(directory: PathLike, config: Mapping[str, Any]) -> pathlib.Path:
    """Makes the run directory and writes ``config.json`` and ``environment.json``; a no-op on the config on resume.

    Args:
      directory: ``runs/<experiment>/<run id>``.
      config: ``experiment``, ``run_id``, ``hash``, ``settings``, ``dims``, ``coords``.

    Returns:
      The directory.

    Raises:
      RecordError: the directory holds a run of a different configuration (another ``hash``) or `FORMAT`.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    if path.exists():
        old = read_json(path)
        if old.get("format", 0) != FORMAT:
            message = f"{directory} is of format {old.get('format', 0)}, and this plastax goes on with {FORMAT} only"
            raise RecordError(message)
        if old.get("hash") != config.get("hash"):
            message = f"{directory} holds another run: hash {old.get('hash')!r}, not {config.get('hash')!r}"
            raise RecordError(message)
    else:
        write_json(path, {**config, "format": FORMAT})
    path = directory / "environment.json"
    if path.exists():
        # A resumed run may continue on another machine: keep where every part of it ran.
        first = read_json(path)
        write_json(path, {**first, "resumed": [*first.get("resumed", []), environment()]})
    else:
        write_json(path, environment())
    return directory


def _as_float(name: str, value: Any) -> np.ndarray:
    """``value`` as an array that `numpy.load` reads without ml_dtypes: float64 stays, all else becomes float32."""
    array = np.asarray(value)
    if array.dtype == np.float64:
        return array
    try:
        return array.astype(np.float32)
    except (TypeError, ValueError) as error:
        message = f"{name}: a record holds numbers, not {array.dtype}"
        raise RecordError(message) from error


def write_segment(directory: PathLike, index: int, record: Record, host: Mapping[str, float]) -> pathlib.Path:
    """Writes one segment of one method, atomically and durably.

    Args:
      directory: ``records/<method>`` in the run directory; made if need be.
      index: number of the segment, from 0; names the file.
      record: ``train`` arrays ``[S, length]`` and ``probe`` arrays ``[S, 2, ...]``, on the host or on a device.
      host: scalars from the host; must name `REQUIRED_HOST`. Others in use: ``segment``, ``train_seconds``,
        ``probe_seconds``, ``compile_seconds``, ``compilations``, ``env_steps`` (of all seeds together).

    Returns:
      The file.

    Raises:
      RecordError: a host scalar is missing, or an array has the wrong shape or is not numeric.
    """
    path = pathlib.Path(directory) / f"{index:06d}.npz"
    if missing := [name for name in REQUIRED_HOST if name not in host]:
        message = f"{path}: host scalars {missing} are missing"
        raise RecordError(message)
    arrays = {f"train/{name}": _as_float(name, value) for name, value in record.train.items()}
    arrays |= {f"probe/{name}": _as_float(name, value) for name, value in record.probe.items()}
    # float64 holds every count exactly, float32 only up to 2**24.
    arrays |= {f"host/{name}": np.asarray(value, np.float64) for name, value in {"segment": index, **host}.items()}
    _check(path, arrays)
    _write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return path


def cut(directory: PathLike, segments: int) -> None:
    """Removes what a killed run has recorded behind the state that it goes on from: it will be recorded again.

    Args:
      directory: ``records/<method>``.
      segments: how many to keep.

    Raises:
      RecordError: one of these is missing.
    """
    directory = pathlib.Path(directory)
    for index in range(segments):
        if not (path := directory / f"{index:06d}.npz").exists():
            message = f"{path} is missing, and the run is already behind it; start anew with --fresh"
            raise RecordError(message)
    for path in sorted(directory.glob("[0-9]*.npz"), reverse=True):
        if int(path.stem) >= segments:
            path.unlink()
    for path in directory.glob(".*.tmp"):
        path.unlink()


def _check(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `RecordError` unless the shapes are those of one segment."""
    if missing := [name for name in REQUIRED_HOST if f"host/{name}" not in arrays]:
        message = f"{path}: host scalars {missing} are missing"
        raise RecordError(message)
    length = int(arrays["host/length"]) if arrays["host/length"].ndim == 0 else -1
    seeds = {}
    for name, array in arrays.items():
        kind = name.partition("/")[0]
        good = {
            "host": array.ndim == 0,
            "train": array.ndim == 2 and array.shape[1] == length,
            "probe": array.ndim >= 2 and array.shape[1] == len(MARKS),
        }
        if not good.get(kind, False):
            message = f"{path}: {name} has shape {array.shape}, in a segment of {length} updates"
            raise RecordError(message)
        if kind != "host":
            seeds[name] = array.shape[0]
    if len(set(seeds.values())) > 1:
        message = f"{path}: the number of seeds (axis 0) differs between arrays: {seeds}"
        raise RecordError(message)


def read_segment(path: PathLike) -> Segment:
    """Reads one record file.

    Raises:
      RecordError: the file is truncated, corrupt or not a record; the message names it.
    """
    path = pathlib.Path(path)
    try:
        # Opened here: where the archive is damaged, np.load leaves a file open that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    # Damage raises nearly anything (zipfile, zlib, struct, tokenizer errors ...), depending on the byte that it hits.
    except Exception as error:
        message = f"{path} is truncated or corrupt: {error}"
        raise RecordError(message) from error
    _check(path, arrays)
    parts: dict[str, dict[str, Any]] = {"train": {}, "probe": {}, "host": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = float(array) if kind == "host" else array
    return Segment(**parts)


def read_method(directory: PathLike) -> list[Segment]:
    """All finished segments in ``records/<method>``, in the order of the run; unfinished ``*.tmp`` files are ignored.

    Raises:
      RecordError: a file is corrupt.
    """
    segments = [read_segment(path) for path in sorted(pathlib.Path(directory).glob("[0-9]*.npz"))]
    return sorted(segments, key=lambda segment: segment.host["clock"])


def labels(config: Mapping[str, Any]) -> list[str]:
    """What records and curves of a run are called: its methods, or of a sweep its arms."""
    return [str(label) for label in config.get("arms", config.get("settings", {}).get("methods", []))]


def coords_of(config: Mapping[str, Any], arm: str) -> Mapping[str, Sequence[Any]]:
    """Axis name -> its labels in what this arm records, in order."""
    return {**config.get("coords", {}), **config.get("own_coords", {}).get(arm, {})}
