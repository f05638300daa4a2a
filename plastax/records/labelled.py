"""The segments of a run as one labelled data set, NaN where nothing was measured."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plastax.errors import RecordError
from plastax.records.files import PathLike
from plastax.records.layout import (
    MARKS,
    Segment,
    arm_labels,
    coords_of,
    read_arm,
    read_config,
    records_folder,
    segment_files,
)  # fmt: skip

if TYPE_CHECKING:
    import xarray as xr


class _Plan(NamedTuple):
    """Sizes of the planned study: an unfinished run has the shape of a finished one."""

    arms: list[str]
    seeds: int
    first_seed: int
    tasks: int
    updates_per_task: int


def _plan(directory: pathlib.Path, config: Mapping[str, Any], arms: list[str]) -> _Plan:
    settings = config.get("settings", {})
    missing = [name for name in ("tasks", "updates_per_task") if name not in settings]
    if missing:
        raise RecordError(f"{directory / 'config.json'}: settings {missing} are missing")
    first = int(settings.get("first_seed", 0))
    seeds = int(settings.get("seeds", 1))
    return _Plan(arms, seeds, first, int(settings["tasks"]), int(settings["updates_per_task"]))


MOST, MOST_TIMES = 1 << 30, 1000
"""Largest size of a data set: this many bytes, or this multiple of what is recorded."""


def _check_size(directory: pathlib.Path, plan: _Plan, widths: Mapping[str, int], recorded: int) -> None:
    """Raises `RecordError` if a damaged configuration asks for far more memory than is recorded.

    Args:
      directory: the run.
      plan: its sizes, as configured.
      widths: variable -> bytes of an arm and seed.
      recorded: bytes of all records.
    """
    if plan.tasks < 1 or plan.updates_per_task < 1 or plan.seeds < 1:
        raise RecordError(f"{directory / 'config.json'}: seeds, tasks and updates_per_task must be 1 or more")
    updates = plan.tasks * plan.updates_per_task
    needed = len(plan.arms) * plan.seeds * sum(widths.values()) + 16 * updates + 8 * plan.seeds
    if needed > max(MOST, MOST_TIMES * recorded):
        raise RecordError(
            f"{directory}: {plan.tasks} tasks of {plan.updates_per_task} updates, {plan.seeds} seeds and "
            f"{len(plan.arms)} methods, as configured, take {needed / 2**30:.3g} GiB, but only "
            f"{recorded / 2**20:.3g} MiB have been recorded"
        )


def _widths(plan: _Plan, segments: Sequence[Segment]) -> dict[str, int]:
    """Variable -> bytes that it takes of an arm and seed."""
    updates = plan.tasks * plan.updates_per_task
    train = {name: array for segment in segments for name, array in segment.train.items()}
    probe = {name: array for segment in segments for name, array in segment.probe.items() if len(array)}
    found = {f"train/{name}": updates * array.itemsize for name, array in train.items()}
    return found | {f"probe/{name}": plan.tasks * array[:1].nbytes for name, array in probe.items()}


def _whole(out: dict[str, np.ndarray], name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """``out[name]``, which starts as NaN."""
    if name not in out:
        out[name] = np.full(shape, np.nan, np.result_type(dtype, np.float32))
    if out[name].shape != shape:
        raise RecordError(f"{name} has shape {shape} here and {out[name].shape} elsewhere")
    return out[name]


def _spread(value: np.ndarray, name: str, config: Mapping[str, Any], arm: str) -> np.ndarray:
    """A probe's values ``[S, segments, 2, ...]``, with NaN for the layers that only other arms have."""
    dims = config.get("dims", {}).get(name, ())
    own, every = coords_of(config, arm), config.get("coords", {})
    for axis, dim in enumerate(dims if len(dims) == value.ndim - 3 else (), start=3):
        if dim in own and own[dim] != every[dim]:
            shape = (*value.shape[:axis], len(every[dim]), *value.shape[axis + 1 :])
            if value.shape[axis] != len(own[dim]):
                raise RecordError(f"{arm}: {name} has {value.shape[axis]} entries along {dim}, not {len(own[dim])}")
            wide = np.full(shape, np.nan, np.result_type(value.dtype, np.float32))
            places = [every[dim].index(label) for label in own[dim]]
            np.moveaxis(wide, axis, 0)[places] = np.moveaxis(value, axis, 0)
            value = wide
    return value


def _spans(plan: _Plan, arm: str, segments: Sequence[Segment]) -> np.ndarray:
    """``[segments, 3]``: task, first update and end of each."""
    spans = []
    for segment in segments:
        task, start = int(segment.host["task"]), int(segment.host["clock"])
        stop = start + int(segment.host["length"])
        first, last = task * plan.updates_per_task, (task + 1) * plan.updates_per_task
        if not (first <= start < stop <= last <= plan.tasks * plan.updates_per_task):
            raise RecordError(
                f"{arm}, segment {int(segment.host['segment'])}: updates {start} to {stop} are not inside "
                f"task {task} (updates {first} to {last}) of {plan.tasks} tasks"
            )
        spans.append((task, start, stop))
    return np.array(spans, int).reshape(-1, 3)


def _collect(
    out: dict[str, np.ndarray], plan: _Plan, arm: str, segments: Sequence[Segment], config: Mapping[str, Any], most: int
) -> None:
    """Puts an arm's segments into arrays of the full size, with ``most`` segments an arm; the rest is NaN."""
    m, leading = plan.arms.index(arm), (len(plan.arms), plan.seeds)
    updates = plan.tasks * plan.updates_per_task
    tasks, starts, stops = _spans(plan, arm, segments).T
    # A task may have several segments. Only the first holds the task's init, and only the last its end: a measurement
    # in the middle of a killed run's last task is not of its end.
    due = starts == tasks * plan.updates_per_task, stops == (tasks + 1) * plan.updates_per_task
    for name in dict.fromkeys(name for one in segments for name in one.train):
        for one, start, stop in zip(segments, starts, stops):
            if (value := one.train.get(name)) is not None:
                _whole(out, f"train/{name}", value.dtype, (*leading, updates))[m, :, start:stop] = value
    for name in dict.fromkeys(name for one in segments for name in one.probe):
        there = np.array([s for s, one in enumerate(segments) if name in one.probe])
        values = [segments[s].probe[name] for s in there]
        if len(shapes := {value.shape[2:] for value in values}) > 1:
            raise RecordError(f"{arm}: {name} has trailing shapes {' and '.join(map(str, shapes))}")
        stacked = _spread(np.stack(values, 1), name, config, arm)  # [S, segments, marks, ...]
        shape = (*leading, plan.tasks, *stacked.shape[2:])
        whole = _whole(out, f"probe/{name}", stacked.dtype, shape)[m]
        for mark in range(len(MARKS)):
            some = due[mark][there]
            whole[:, tasks[there[some]], mark] = stacked[:, some, mark]
    for s, segment in enumerate(segments):
        for name, number in segment.host.items():
            _whole(out, f"host/{name}", np.dtype(np.float64), (len(plan.arms), most))[m, s] = number


def _read(directory: pathlib.Path, config: Mapping[str, Any], arms: list[str]) -> tuple[_Plan, dict[str, np.ndarray]]:
    """The records of all arms as arrays of the full size. Only those of one arm are in memory twice."""
    files = {arm: segment_files(records_folder(directory, config, arm)) for arm in arms}
    recorded = sum(path.stat().st_size for of_arm in files.values() for path in of_arm.values())
    most = max(map(len, files.values()), default=0)
    plan = _plan(directory, config, arms)
    out: dict[str, np.ndarray] = {}
    widths: dict[str, int] = {}
    known = False
    for arm in arms:
        segments = read_arm(directory, config, arm)
        for seeds in {len(array) for one in segments for array in (*one.train.values(), *one.probe.values())}:
            if known and seeds != plan.seeds:
                raise RecordError(f"{directory}: {arm} has records of {seeds} seeds, other records are of {plan.seeds}")
            plan, known = plan._replace(seeds=seeds), True
        widths |= _widths(plan, segments)
        if known:
            _check_size(directory, plan, widths, recorded)
        try:
            _collect(out, plan, arm, segments, config, most)
        except RecordError as error:
            raise RecordError(f"{directory}: {error}") from error
    _check_size(directory, plan, widths, recorded)
    return plan, out


def _trailing(name: str, sizes: Sequence[int], config: Mapping[str, Any], used: dict[str, int]) -> list[str]:
    """Names of the axes of a probe's value that follow the mark.

    Two probes may share the name of an axis and differ in its size (two Lanczos orders): the later one's begins with
    the name of the probe.
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


ABOUT = {
    "train/episode_return": "mean return of the episodes that ended in an update; over updates, a mean over time",
    "train/episode_return_sum": "sum of the returns of the episodes that ended in an update; over updates, divided by "
    "the sum of train/episodes, the mean return per episode",
    "train/episodes": "number of episodes that ended in an update",
    "train/accuracy": "accuracy on the batch of an update, before its step",
    "train/token_accuracy": "accuracy on the counted labels of the batch of an update, before its step",
    "probe/evaluation/reference": "smallest mean loss that any predictor can have: the entropy of the task's source",
    "probe/evaluation/test_excess": "held-out loss minus the reference",
    "probe/evaluation/train_excess": "training loss minus the reference",
    "train/loss": "loss on the batch of an update, before its step",
    "host/env_steps": "environment steps, or examples of supervised learning, of all seeds together",
}
"""Variable -> its attribute ``long_name``, where its name does not say all."""


def _about(name: str) -> dict[str, str]:
    """The attributes of a variable."""
    units = {"units": "s"} if name.endswith("_seconds") else {}
    return ({"long_name": ABOUT[name]} if name in ABOUT else {}) | units


def _of_arms(arms: Mapping[str, Any], labels: Sequence[str]) -> dict[str, list[Any]]:
    """The coordinates along ``arm``: its method, and in a sweep its settings."""
    out: dict[str, list[Any]] = {"method": [arms.get(label, {}).get("method", label) for label in labels]}
    for name in dict.fromkeys(name for arm in arms.values() for name in arm["settings"]):
        values = [arms.get(label, {}).get("settings", {}).get(name) for label in labels]
        if all(value is None or isinstance(value, int | float) for value in values):
            out[name] = [np.nan if value is None else value for value in values]
        else:
            out[name] = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    return out


def read_run(path: PathLike) -> xr.Dataset:
    """Reads a finished, killed or running run as one labelled data set.

    Variables: ``train/<name>`` (arm, seed, update), with the coordinate ``update_task`` along ``update``;
    ``probe/<probe>/<value>`` (arm, seed, task, mark, ...), mark ``init`` right after the switch to the task and ``end``
    at its last update, other axes as in ``config.json``; ``host/<name>`` (arm, segment). What was not measured is NaN.
    The attribute ``long_name`` says what a variable is where its name does not. `plastax.table` makes data frames:
    ``.to_dataframe()`` of all variables has a row for every combination of all axes.

    An arm is a method, or in a sweep a method with certain settings: ``data.sel(arm="reset")``. The coordinate
    ``method`` along ``arm`` is the arm's method: ``data.where(data.method == "l2_er", drop=True)``. The settings of a
    sweep are coordinates too: ``data.sel(arm=data["method.l2"] == 0.1)``; a method without the setting has NaN, or ""
    where the values are not numbers.

    Args:
      path: the run directory.

    Returns:
      The data set; attributes ``experiment``, ``run_id``, ``hash`` and ``tables``, a hint.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      RecordError: a file is corrupt, or does not fit the configuration; the message names it.
    """
    # Not imported at the top: a run only writes, and xarray with pandas takes most of a second.
    import xarray as xr

    directory = pathlib.Path(path)
    config = read_config(directory)
    places = (directory / "records").glob("*")
    arms = arm_labels(config) or sorted(place.name for place in places if place.is_dir())
    plan, arrays = _read(directory, config, arms)
    updates = np.arange(plan.tasks * plan.updates_per_task)
    used = {"arm": len(plan.arms), "seed": plan.seeds, "task": plan.tasks, "mark": 2, "update": len(updates)}
    variables = {}
    # In the order of the probes: where sizes differ, the first probe's axes keep their names.
    order = {f"probe/{name}": place for place, name in enumerate(config.get("dims", {}))}
    for name in sorted(arrays, key=lambda name: order.get(name, -1)):
        array = arrays[name]
        match name.partition("/")[0]:
            case "train":
                dims = ["arm", "seed", "update"]
            case "host":
                dims = ["arm", "segment"]
            case _:
                dims = ["arm", "seed", "task", "mark", *_trailing(name, array.shape[4:], config, used)]
        variables[name] = (dims, array, _about(name))
    coords: dict[str, Any] = {
        "arm": plan.arms,
        "seed": plan.first_seed + np.arange(plan.seeds),
        "task": np.arange(plan.tasks),
        "mark": list(MARKS),
        "update": updates,
        "update_task": ("update", updates // plan.updates_per_task),
    }
    coords |= {name: ("arm", values) for name, values in _of_arms(config.get("arms", {}), plan.arms).items()}
    for name, along in config.get("coords", {}).items():
        if name not in coords and used.get(name) == len(along):
            coords[name] = list(along)
    attributes: dict[str, Any] = {name: config[name] for name in ("experiment", "run_id", "hash") if name in config}
    attributes["tables"] = 'not .to_dataframe(), which combines all axes, but plastax.table(data, "train" or "probe")'
    try:
        return xr.Dataset(variables, coords, attributes)
    except ValueError as error:
        raise RecordError(f"{directory / 'config.json'} does not fit its records: {error}") from error
