"""The host loop: walks a program from segment to segment; records, checkpoints and shows while the device computes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import record
from plastax.checkpoint import Checkpoints, to_host
from plastax.record import Segment
from plastax.tracking import Sink, reduce_segment
from plastax.types import ConfigError, Key, Program, Record, Tree


class Plan(NamedTuple):
    """How a run is cut into segments.

    Attributes:
      tasks: number of tasks.
      updates_per_task: updates in each.
      updates_per_segment: updates in one call of the compiled program; divides ``updates_per_task``.
      steps_per_update: environment steps (or examples) of all seeds together in one update.
    """

    tasks: int
    updates_per_task: int
    updates_per_segment: int
    steps_per_update: int

    @property
    def segments(self) -> int:
        """Segments in the whole run."""
        return self.tasks * self.updates_per_task // self.updates_per_segment

    def check(self) -> None:
        """Raises `ConfigError` unless segments fit into tasks."""
        if self.updates_per_segment < 1 or self.updates_per_task % self.updates_per_segment:
            raise ConfigError(
                f"updates_per_segment: {self.updates_per_segment} does not divide the {self.updates_per_task} updates "
                "of a task"
            )


class _Compilations:
    """Counts what XLA compiles: programs asked for, and those of them that the persistent cache did not have."""

    def __init__(self) -> None:
        self.asked = self.missed = 0
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        self.asked += event == "/jax/core/compile/backend_compile_duration"

    def _event(self, event: str, **_: Any) -> None:
        self.missed += event == "/jax/compilation_cache/cache_misses"


_compilations = _Compilations()


def use_compilation_cache() -> Path:
    """Keeps compiled programs in the user's cache directory, keyed by program, jaxlib and machine; returns it."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "plastax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Everything: a second start should compile nothing, not even what compiles fast.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def train(
    directory: Path,
    config: Mapping[str, Any],
    method: str,
    program: Program,
    keys: Key,
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    checkpoint_every: int = 1,
) -> None:
    """Runs one method's program to its end, from its newest checkpoint if there is one.

    Every segment leaves ``records/<method>/<segment>.npz`` before the checkpoint that goes on behind it, so a run that
    is killed at any moment repeats at most ``checkpoint_every`` segments, and repeats them bit for bit.

    Args:
      directory: the run directory.
      config: the content of its ``config.json``.
      method: name of the method, of its folders and of its curves.
      program: over seeds, see `parallel.over_seeds`.
      keys: PRNG keys ``[S]``.
      plan: how many updates, and how many at a time.
      sinks: what else gets to see each segment; see `tracking`.
      checkpoint_every: segments between checkpoints; 0: none.
    """
    plan.check()
    folder = directory / "records" / method
    checkpoints = Checkpoints(directory / "checkpoints" / method) if checkpoint_every else None
    first = (checkpoints.latest() if checkpoints else None) or 0
    # The last record alone does not end a run: one killed between it and the last checkpoint still lacks its state.
    if (folder / f"{plan.segments - 1:06d}.npz").exists() and (not checkpoints or first == plan.segments):
        return
    asked, missed, started = _compilations.asked, _compilations.missed, time.perf_counter()
    # On the device once, beside the state and never donated: all segments read the same arrays.
    data = jax.device_put(program.data)
    init = jax.jit(program.init).lower(keys, data).compile()
    state = init(keys, data)
    step = jax.jit(program.segment, static_argnums=3, donate_argnums=0)
    segment = step.lower(state, data, jnp.int32(0), plan.updates_per_segment).compile()
    compiled = {
        "compile_seconds": time.perf_counter() - started,
        "compilations": _compilations.asked - asked,
        "compilations_uncached": _compilations.missed - missed,
    }
    if checkpoints and first:
        state = checkpoints.restore(first, state)
    for sink in sinks:
        sink.start(config, directory, method)

    def finish(index: int, values: Record, leaves: Mapping[str, np.ndarray] | None, seconds: float) -> None:
        """Everything that the host does about a finished segment, while the device is in the next one."""
        clock = index * plan.updates_per_segment
        task = clock // plan.updates_per_task
        host: dict[str, float] = {
            "clock": clock,
            "length": plan.updates_per_segment,
            "task": task,
            "train_seconds": seconds,
            "env_steps": plan.steps_per_update * plan.updates_per_segment,
        }
        if index == first:
            host |= compiled
        record.write_segment(folder, index, values, host)
        if checkpoints and leaves is not None:
            checkpoints.save(index + 1, dict(leaves))
        on_host = jax.tree.map(np.asarray, values)
        metrics = reduce_segment(Segment(on_host.train, on_host.probe, host), config)
        for sink in sinks:
            sink.log(metrics, task)

    pending: tuple[int, Record, Any, float] | None = None
    for index in range(first, plan.segments):
        started = time.perf_counter()
        state, values = segment(state, data, jnp.int32(index * plan.updates_per_segment))
        if pending:
            finish(*pending)
        jax.block_until_ready(values)
        due = checkpoints and ((index + 1) % checkpoint_every == 0 or index + 1 == plan.segments)
        leaves = to_host(state) if due else None
        pending = (index, values, leaves, time.perf_counter() - started)
    if pending:
        finish(*pending)
    if checkpoints:
        checkpoints.close()
    for sink in sinks:
        sink.finish()


def study(
    directory: Path,
    config: Mapping[str, Any],
    programs: Mapping[str, Program],
    keys: Key,
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    checkpoint_every: int = 1,
) -> None:
    """Runs one program a method, one after another, into one run directory.

    Args:
      directory: the run directory; ``config.json`` and ``environment.json`` are written there first.
      config: ``experiment``, ``run_id``, ``hash`` and ``settings``; the labels of the record's axes are added.
      programs: method -> program over seeds.
      keys: PRNG keys ``[S]``.
      plan: the same for every method.
      sinks: see `train`.
      checkpoint_every: see `train`.
    """
    labels: dict[str, Tree] = {"dims": {}, "coords": {}}
    for program in programs.values():
        labels["dims"] |= {name: list(axes) for name, axes in program.dims.items()}
        labels["coords"] |= {axis: list(names) for axis, names in program.coords.items()}
    config = {**config, **labels}
    record.start_run(directory, config)
    for method, program in programs.items():
        train(directory, config, method, program, keys, plan, sinks, checkpoint_every=checkpoint_every)
