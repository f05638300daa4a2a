"""The trained networks of a run: its parameters at the ends of tasks, for the host and for other programs.

They are in two places, and readable without plastax::

    params/<arm>/000003.npz       after task 3, where --keep-params asks for it: arrays params/dense_0/kernel [S, ...]
    checkpoints/<arm>/<n>/default          the state after n segments, by orbax: a flat dict, params.dense_0.kernel
    checkpoints/<arm>/<n>/manifest.json    names, shapes and types of its arrays

Axis 0 are the seeds of an arm. A checkpoint of arms that are trained together has all seeds of the first arm, then
those of the second, and so on, in the order of ``arms`` in its manifest. Beside ``params`` are ``stats``, the running
statistics of batch normalisation, and ``statistics``, those of the observations of an agent, where there are any.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from plastax.errors import ConfigError, RecordError
from plastax.records import files, layout
from plastax.runs import checkpoint
from plastax.types import Tree

Part = Literal["params", "stats", "statistics"]
Leaves = Mapping[str, np.ndarray]
"""``params/dense_0/kernel`` -> array ``[S, ...]``, and so on."""
PARTS: tuple[Part, ...] = ("params", "stats", "statistics")


class TaskEnd(NamedTuple):
    """What a callback gets at the end of a task. The records of the task are on disk.

    Attributes:
      directory: the run's.
      arm: label of the arm: its method, and in a sweep its values.
      task: number of the task, from 0.
      params: parameters after the task, a nested dict of NumPy arrays ``[S, ...]``: a network for each seed.
      stats: running statistics of its batch normalisation, alike; {} without.
      statistics: of the observations of an agent, alike; {} without.
    """

    directory: Path
    arm: str
    task: int
    params: Tree
    stats: Tree
    statistics: Tree


Callback = Callable[[TaskEnd], Any]
"""Called for every arm after every task, between its records and its checkpoint.

It gets copies, so it changes no number. They take host memory of the size of the networks, and the next task waits for
them; then the device computes that task while the callback runs. What it raises ends the run as ``failed``. With a
callback, arms train in turn; where several are asked for (``arms_at_once``), each calls it from its own thread.
A resumed run repeats the tasks since its last checkpoint, and their calls."""


def holds(name: str) -> bool:
    """Whether a leaf of a state, by its name in a checkpoint, belongs to the networks."""
    return name.removeprefix("network.").partition(".")[0] in PARTS


def of_state(leaves: Leaves) -> dict[str, np.ndarray]:
    """The networks in a state's leaves, see `checkpoint.to_host`."""
    return {name.removeprefix("network.").replace(".", "/"): leaf for name, leaf in leaves.items() if holds(name)}


def nested(leaves: Leaves) -> dict[str, Tree]:
    """``{"params/dense_0/kernel": array}`` as nested dicts, one for each of `PARTS`."""
    out: dict[str, Any] = {part: {} for part in PARTS}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        inner = out
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return out


class Keeping(NamedTuple):
    """What happens to the networks after a task.

    Attributes:
      every: those of every ``every``-th task are written; 0: of none.
      callback: gets those of every task.
    """

    every: int = 0
    callback: Callback | None = None

    def wants(self, task: int) -> bool:
        """Whether anything happens after a task."""
        return self.callback is not None or self._writes(task)

    def _writes(self, task: int) -> bool:
        return bool(self.every) and (task + 1) % self.every == 0

    def take(self, run: Path, config: Mapping[str, Any], task: int, trained: Mapping[str, Leaves]) -> None:
        """Writes the networks of some arms, or shows them; a file appears when it is complete."""
        for arm, leaves in trained.items():
            if self._writes(task):
                # NumPy has no bfloat16; single precision holds it exactly.
                plain: dict[str, Any] = {
                    name: x.astype(np.float32) if x.dtype.kind == "V" else x for name, x in leaves.items()
                }
                path = run / "params" / layout.arm_folder(config, arm) / f"{task:06d}.npz"
                files.write_atomic(path, functools.partial(np.savez, allow_pickle=False, **plain))
            if self.callback is not None:
                self.callback(TaskEnd(run, arm, task, **nested(leaves)))


class Kept(NamedTuple):
    """Networks of an arm on disk.

    Attributes:
      tasks: tasks that they were trained on; between whole numbers for a checkpoint within a task.
      path: the file, or the folder of the checkpoint.
      arms: the arms that it holds.
    """

    tasks: float
    path: Path
    arms: tuple[str, ...]


def kept(run: Path, config: Mapping[str, Any], arm: str) -> list[Kept]:
    """What is kept of an arm's networks, beginning with the least trained; damaged checkpoints are left out."""
    folder, settings = layout.arm_folder(config, arm), config.get("settings", {})
    found = []
    for place in files.entries(run / "checkpoints"):
        for segment, path in checkpoint.folders(place).items():
            try:
                manifest = checkpoint.manifest(path)
            except (FileNotFoundError, RecordError):
                continue
            # Earlier versions named neither.
            arms = manifest.get("arms", [arm] if place.name == folder else [])
            if arm in arms:
                length = manifest.get("segments_per_task", settings.get("segments_per_task", 1))
                found.append(Kept(segment / length, path, tuple(arms)))
    for path in files.entries(run / "params" / folder):
        if re.fullmatch(r"[0-9]{6,}\.npz", path.name):
            found.append(Kept(int(path.stem) + 1, path, (arm,)))
    return sorted(found, key=lambda one: one.tasks)


def read(run: Path, config: Mapping[str, Any], arm: str, task: int | None = None) -> dict[str, Tree]:
    """The networks of an arm after a task, as `nested` dicts of arrays ``[S, ...]``.

    Args:
      run: its directory.
      config: the content of its ``config.json``.
      arm: its label.
      task: its number, from 0; None: the newest that are kept, which may be within a task.

    Raises:
      ConfigError: they are not kept; the message says which are.
      RecordError: the file or checkpoint is damaged.
    """
    there = kept(run, config, arm)
    chosen = [one for one in there if task is None or one.tasks == task + 1]
    if not chosen:
        tasks = ", ".join(dict.fromkeys(f"{one.tasks - 1:g}" for one in there if one.tasks % 1 == 0)) or "none"
        raise ConfigError(
            f"task: the networks of {arm} after {'any task' if task is None else f'task {task}'} are not kept (kept: "
            f"{tasks}); --keep-params 1 keeps them after every task"
        )
    path, arms = chosen[-1].path, chosen[-1].arms
    if path.suffix != ".npz":
        size, index = len(arms), arms.index(arm)
        leaves = of_state(checkpoint.read(path))
        return nested({name: leaf.reshape(size, -1, *leaf.shape[1:])[index] for name, leaf in leaves.items()})
    raw = files.read_bytes(path)
    try:
        return nested(files.arrays(raw))
    # Depending on the damaged byte, nearly anything is raised.
    except Exception as error:
        raise RecordError(f"{path} is damaged: {error}") from error
