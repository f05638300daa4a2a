"""What a run leaves behind, and how it is read back as one labelled data set.

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
    import xarray as xr

    from plastax.types import Record

PathLike = str | os.PathLike[str]

MARKS = ("init", "end")
"""Labels of the mark axis: right after a task switch, and right before the next one."""

FORMAT = 1
"""Of the layout of a run directory and its checkpoints. Raise it where a run cannot be gone on with across a change; 0
is what was written before there were numbers."""

REQUIRED_HOST = ("clock", "length", "task")
"""Host scalars that `read_run` needs to place a segment: its first update, its number of updates, its task."""


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


class _Plan(NamedTuple):
    """Full sizes of the study, so that an unfinished run has the shape of the finished one."""

    methods: list[str]
    seeds: int
    first_seed: int
    tasks: int
    updates_per_task: int


def labels(config: Mapping[str, Any]) -> list[str]:
    """What records and curves of a run are called: its methods, or of a sweep its arms."""
    return [str(label) for label in config.get("arms", config.get("settings", {}).get("methods", []))]


def _plan(directory: pathlib.Path, config: Mapping[str, Any], found: Mapping[str, list[Segment]]) -> _Plan:
    settings = config.get("settings", {})
    missing = [name for name in ("tasks", "updates_per_task") if name not in settings]
    if missing:
        message = f"{directory / 'config.json'}: settings {missing} are missing"
        raise RecordError(message)
    methods = labels(config)
    methods += [method for method in found if method not in methods]
    sizes = {
        method: {len(array) for segment in segments for array in (*segment.train.values(), *segment.probe.values())}
        for method, segments in found.items()
    }
    seeds = set().union(*sizes.values()) or {int(settings.get("seeds", 1))}
    if len(seeds) > 1:
        message = f"{directory}: the number of seeds differs between records: {sizes}"
        raise RecordError(message)
    first = int(settings.get("first_seed", 0))
    return _Plan(methods, seeds.pop(), first, int(settings["tasks"]), int(settings["updates_per_task"]))


def _fill(target: dict[str, np.ndarray], name: str, where: tuple, value: np.ndarray, shape: tuple[int, ...]) -> None:
    """Puts ``value`` into the NaN array ``target[name]``, made here when first seen."""
    if name not in target:
        target[name] = np.full(shape, np.nan, np.result_type(value.dtype, np.float32))
    if target[name].shape != shape:
        message = f"{name} has trailing shape {value.shape} here and {target[name].shape} elsewhere"
        raise RecordError(message)
    target[name][where] = value


def coords_of(config: Mapping[str, Any], arm: str) -> Mapping[str, Sequence[Any]]:
    """Axis name -> its labels in what this arm records, in order."""
    return {**config.get("coords", {}), **config.get("own_coords", {}).get(arm, {})}


def _spread(value: np.ndarray, name: str, config: Mapping[str, Any], arm: str) -> np.ndarray:
    """A probe's value ``[S, 2, ...]`` with the places that only other arms have (a layer), NaN."""
    dims = config.get("dims", {}).get(name, ())
    own = config.get("own_coords", {}).get(arm, {})
    for axis, dim in enumerate(dims, start=2):
        if dim in own and len(dims) == value.ndim - 2:
            every = config["coords"][dim]
            shape = (*value.shape[:axis], len(every), *value.shape[axis + 1 :])
            wide = np.full(shape, np.nan, np.result_type(value.dtype, np.float32))
            np.moveaxis(wide, axis, 0)[[every.index(label) for label in own[dim]]] = np.moveaxis(value, axis, 0)
            value = wide
    return value


def _collect(plan: _Plan, found: Mapping[str, list[Segment]], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Lays all segments out as arrays of the full size, NaN where there is nothing yet."""
    out: dict[str, np.ndarray] = {}
    leading = (len(plan.methods), plan.seeds)
    updates = plan.tasks * plan.updates_per_task
    most = max((len(segments) for segments in found.values()), default=0)
    for method, segments in found.items():
        m = plan.methods.index(method)
        for s, segment in enumerate(segments):
            task, start = int(segment.host["task"]), int(segment.host["clock"])
            stop = start + int(segment.host["length"])
            first, last = task * plan.updates_per_task, (task + 1) * plan.updates_per_task
            if not (first <= start < stop <= last <= updates):
                message = (
                    f"{method}, segment {int(segment.host['segment'])}: updates {start} to {stop} are not inside "
                    f"task {task} (updates {first} to {last}) of {plan.tasks} tasks"
                )
                raise RecordError(message)
            for name, value in segment.train.items():
                _fill(out, f"train/{name}", np.s_[m, :, start:stop], value, (*leading, updates))
            probe = {name: _spread(value, name, config, method) for name, value in segment.probe.items()}
            # Several segments may make up a task. A mark is the task's own only if the segment touches the task's
            # edge: a measurement in the middle of a killed run's last task must not pass for its end.
            for mark, due in enumerate((start == first, stop == last)):
                for name, value in probe.items() if due else ():
                    shape = (*leading, plan.tasks, len(MARKS), *value.shape[2:])
                    _fill(out, f"probe/{name}", np.s_[m, :, task, mark], value[:, mark], shape)
            for name, number in segment.host.items():
                _fill(out, f"host/{name}", np.s_[m, s], np.asarray(number, np.float64), (len(plan.methods), most))
    return out


def _trailing(name: str, sizes: Sequence[int], config: Mapping[str, Any], used: dict[str, int]) -> list[str]:
    """Names for the axes of a probe's value behind the mark.

    Two probes may share an axis name and differ in its size (two Lanczos orders): the later one's gets the probe's
    name in front.
    """
    key = name.removeprefix("probe/")
    dims = list(config.get("dims", {}).get(key, config.get("dims", {}).get(name, ())))
    if len(dims) != len(sizes):
        dims = [f"{key}/axis{i}" for i in range(len(sizes))]
    for i, size in enumerate(sizes):
        if used.setdefault(dims[i], size) != size:
            dims[i] = f"{key.partition('/')[0]}_{dims[i]}"
            used.setdefault(dims[i], size)
    return dims


def _swept(arms: Mapping[str, Any], labels: Sequence[str]) -> dict[str, list[Any]]:
    """The coordinates of a sweep along the axis of the methods."""
    if not arms:
        return {}
    out: dict[str, list[Any]] = {"base": [arms.get(label, {}).get("method", label) for label in labels]}
    for name in dict.fromkeys(name for arm in arms.values() for name in arm["settings"]):
        values = [arms.get(label, {}).get("settings", {}).get(name) for label in labels]
        if all(value is None or isinstance(value, int | float) for value in values):
            out[name] = [np.nan if value is None else value for value in values]
        else:
            out[name] = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    return out


def read_run(path: PathLike) -> xr.Dataset:
    """Reads a run directory as one labelled data set, whether the run finished, was killed or still goes on.

    Variables: ``train/<name>`` (method, seed, update), with the coordinate ``update_task`` along ``update``;
    ``probe/<probe>/<value>`` (method, seed, task, mark, ...), mark ``init`` right after the switch to the task and
    ``end`` at its last update, other axes as named and labelled in ``config.json``; ``host/<name>`` (method, segment).
    What has not been measured is NaN. Pick variables before ``.to_dataframe()``: a table of all of them has the
    product of all axes as its rows. Names hold slashes, so it is ``data["train/episode_return"]``. One method is
    ``data.sel({"method": "reset"})``: ``data.sel(method=...)`` is xarray's own argument and selects nothing.

    Of a sweep, ``method`` has the labels of the arms, and beside them the coordinates ``base`` (the method's name) and
    the swept settings by their names: ``data.sel({"method": data["method.l2"] == 0.1})``. What an arm's method does not
    have is NaN, or "" where the values are no numbers.

    Args:
      path: the run directory.

    Returns:
      The data set; attributes ``experiment``, ``run_id`` and ``hash``.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      RecordError: a file is corrupt, or does not fit the configuration; the message names it.
    """
    # Here and not on top: a run only writes, and xarray with pandas takes most of a second to import.
    import xarray as xr

    directory = pathlib.Path(path)
    config = read_json(directory / "config.json")
    folders = sorted(folder for folder in (directory / "records").glob("*") if folder.is_dir())
    found = {folder.name: segments for folder in folders if (segments := read_method(folder))}
    plan = _plan(directory, config, found)
    try:
        arrays = _collect(plan, found, config)
    except RecordError as error:
        message = f"{directory}: {error}"
        raise RecordError(message) from error
    updates = np.arange(plan.tasks * plan.updates_per_task)
    used = {"method": len(plan.methods), "seed": plan.seeds, "task": plan.tasks, "mark": 2, "update": len(updates)}
    variables = {}
    # In the order of the probes: the first one's axes keep their names where a later one's are of another size.
    order = {f"probe/{name}": place for place, name in enumerate(config.get("dims", {}))}
    for name in sorted(arrays, key=lambda name: order.get(name, -1)):
        array = arrays[name]
        match name.partition("/")[0]:
            case "train":
                dims = ["method", "seed", "update"]
            case "host":
                dims = ["method", "segment"]
            case _:
                dims = ["method", "seed", "task", "mark", *_trailing(name, array.shape[4:], config, used)]
        variables[name] = (dims, array)
    coords: dict[str, Any] = {
        "method": plan.methods,
        "seed": plan.first_seed + np.arange(plan.seeds),
        "task": np.arange(plan.tasks),
        "mark": list(MARKS),
        "update": updates,
        "update_task": ("update", updates // plan.updates_per_task),
    }
    coords |= {name: ("method", values) for name, values in _swept(config.get("arms", {}), plan.methods).items()}
    for name, labels in config.get("coords", {}).items():
        if name not in coords and used.get(name) == len(labels):
            coords[name] = list(labels)
    attributes = {name: config[name] for name in ("experiment", "run_id", "hash") if name in config}
    return xr.Dataset(variables, coords, attributes)
