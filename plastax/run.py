"""The host loop: walks a program from segment to segment; records, checkpoints and shows while the device computes."""

from __future__ import annotations

import contextlib
import errno
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import compilation, memory, record, runs
from plastax.checkpoint import Checkpoints, from_host, to_host
from plastax.record import Segment
from plastax.shares import ProbeCosts, Shares
from plastax.stopping import Stopping
from plastax.tracking import Sink, reduce_segment
from plastax.types import ConfigError, Key, Program, Record, RunError, Stopped, Tree


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


class Saving(NamedTuple):
    """When a method's state goes to disk, beside after its last segment and where it is asked to stop.

    Attributes:
      every: segments from one checkpoint to the next; 0: as ``minutes`` says.
      minutes: from one checkpoint to the next border of segments that gets one; 0: as ``every`` says.
      keep: newest checkpoints that are kept; at least two, for one may be damaged.
    """

    every: int = 0
    minutes: float = 5.0
    keep: int = 2

    @property
    def enabled(self) -> bool:
        """Whether there are checkpoints at all."""
        return bool(self.every or self.minutes)

    def due(self, segment: int, seconds: float) -> bool:
        """Whether it is time, ``segment`` segments into the run and so many seconds after the last one."""
        return bool(self.every and segment % self.every == 0) or bool(self.minutes and seconds >= 60 * self.minutes)


def train(
    directory: Path,
    config: Mapping[str, Any],
    method: str,
    program: Program,
    keys: Key,
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    saving: Saving | None = None,
    stopping: Stopping | None = None,
) -> Shares | None:
    """Runs one method's program to its end, from its newest checkpoint if there is one.

    Every segment leaves ``records/<method>/<segment>.npz`` before the checkpoint that goes on behind it, so a run that
    is killed at any moment repeats what came after its last checkpoint, and repeats it bit for bit.

    Args:
      directory: the run directory.
      config: the content of its ``config.json``.
      method: name of the method, of its folders and of its curves.
      program: over seeds, see `parallel.over_seeds`.
      keys: PRNG keys ``[S]``.
      plan: how many updates, and how many at a time.
      sinks: what else gets to see each segment; see `tracking`.
      saving: when to make checkpoints, by default as `Saving` has it; one more follows a segment in which a seed's
        loss was not finite.
      stopping: where to ask, at every border of segments, whether to stop.

    Returns:
      Where the time of this call went; None if there was nothing left to do.

    Raises:
      Stopped: it was asked to.
      RunError: the directory cannot be written any more, or holds no state that this run can go on with.
    """
    plan.check()
    begun = time.perf_counter()
    saving, stopping = saving or Saving(), stopping or Stopping()
    folder = directory / "records" / method
    like = jax.eval_shape(program.init, keys, program.data)
    checkpoints = Checkpoints(directory / "checkpoints" / method, config, saving.keep) if saving.enabled else None
    restored = checkpoints.restore(like) if checkpoints else None
    first = restored.segment if restored else 0
    # The last record alone does not end a run: one killed between it and the last checkpoint still lacks its state.
    if first == plan.segments or (not checkpoints and (folder / f"{plan.segments - 1:06d}.npz").exists()):
        return None
    for note in restored.notes if restored else ():
        print(f"{note}; going on behind segment {first} of {plan.segments}")
    record.cut(folder, first)
    if stopping.asked:
        raise _stopped(stopping.asked, directory, f"before {method}")
    with contextlib.ExitStack() as ending:
        if checkpoints:
            ending.callback(checkpoints.close)
        for sink in sinks:
            sink.start(config, directory, method)
            ending.callback(sink.finish)
        needed: memory.Need | None = None
        ending.enter_context(memory.explained(method, config.get("settings", {}), lambda: needed))
        asked, missed, started = compilation.counts.asked, compilation.counts.missed, time.perf_counter()
        init, segment = memory.compile_segment(program, keys, plan.updates_per_segment)
        needed = memory.need(segment)
        compiled = {
            "compile_seconds": time.perf_counter() - started,
            "compilations": compilation.counts.asked - asked,
            "compilations_uncached": compilation.counts.missed - missed,
        }
        compilation.share()
        # On the device once, beside the state and never donated: all segments read the same arrays.
        data = jax.device_put(program.data)
        state = from_host(restored.leaves, like) if restored else init(keys, data)

        costs, computed, probing = ProbeCosts(), 0.0, 0.0

        def finish(
            index: int, values: Record, leaves: Mapping[str, np.ndarray] | None, seconds: float, probes: float
        ) -> None:
            """Everything that the host does about a finished segment, while the device is in the next one."""
            clock = index * plan.updates_per_segment
            task = clock // plan.updates_per_task
            host: dict[str, float] = {
                "clock": clock,
                "length": plan.updates_per_segment,
                "task": task,
                "train_seconds": seconds,
                "probe_seconds": probes,
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

        def look(clock: int) -> None:
            """What is due at the start of the task of update ``clock``, alone."""
            nonlocal state
            start = clock - clock % plan.updates_per_task
            state, values = segment(state, data, jnp.int32(~start))
            jax.block_until_ready(values)

        pending: tuple[int, Record, Any, float, float] | None = None
        saved, frozen, asked_by = time.monotonic(), 0, ""
        for index in range(first, plan.segments):
            started = time.perf_counter()
            state, values = segment(state, data, jnp.int32(index * plan.updates_per_segment))
            if pending:
                finish(*pending)
            jax.block_until_ready(values)
            seconds = time.perf_counter() - started
            probes = costs.of(values, functools.partial(look, index * plan.updates_per_segment))
            computed, probing = computed + seconds, probing + probes
            last = index + 1 == plan.segments
            asked_by = "" if last else stopping.asked
            before, frozen = frozen, num_frozen(values)
            due = last or asked_by or frozen > before or saving.due(index + 1, time.monotonic() - saved)
            leaves = to_host(state) if checkpoints and due else None
            saved = time.monotonic() if due else saved
            pending = (index, values, leaves, seconds, probes)
            if asked_by:
                break
        if pending:
            finish(*pending)
        if checkpoints:
            checkpoints.wait()
        if asked_by:
            raise _stopped(asked_by, directory, f"behind segment {index + 1} of {plan.segments} of {method}")
    compiling = compiled["compile_seconds"]
    idle = time.perf_counter() - begun - compiling - computed - costs.timing
    return Shares(max(computed - probing, 0.0), probing + costs.timing, compiling, idle)


def num_frozen(values: Record) -> int:
    """Seeds whose loss was not finite at some time up to the end of the segment; see `segments`."""
    return int(np.sum(np.asarray(values.train["alive"])[:, -1] == 0)) if "alive" in values.train else 0


def _stopped(asked_by: str, directory: Path, where: str) -> Stopped:
    return Stopped(f"stopped by {asked_by} {where}; go on with --resume {directory}, or just start the same again")


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def study(
    directory: Path,
    config: Mapping[str, Any],
    programs: Mapping[str, Program],
    keys: Key,
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    saving: Saving | None = None,
) -> dict[str, Shares]:
    """Runs one program a method, one after another, into one run directory.

    Args:
      directory: the run directory; ``config.json`` and ``environment.json`` are written there first.
      config: ``experiment``, ``run_id``, ``hash`` and ``settings``; the labels of the record's axes are added.
      programs: method -> program over seeds.
      keys: PRNG keys ``[S]``.
      plan: the same for every method.
      sinks: see `train`.
      saving: see `train`.

    Returns:
      Method -> where its time went, of those that there was something left to do of.

    Raises:
      Stopped: SIGINT or SIGTERM came; everything up to the next border of segments is on disk.
      RunError: see `train`; or another process works on this run.
    """
    plan.check()
    labels: dict[str, Tree] = {"dims": {}, "coords": {}}
    for program in programs.values():
        labels["dims"] |= {name: list(axes) for name, axes in program.dims.items()}
        labels["coords"] |= {axis: list(names) for axis, names in program.coords.items()}
    config = {**config, **labels}
    try:
        with runs.hold(directory, dict.fromkeys(programs, plan.segments)), Stopping() as stopping:
            record.start_run(directory, config)
            shares = {
                method: train(directory, config, method, program, keys, plan, sinks, saving=saving, stopping=stopping)
                for method, program in programs.items()
            }
            return {method: share for method, share in shares.items() if share}
    except record.RecordError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise RunError(
            f"{directory} cannot be written any more ({error.strerror}); what it holds is whole: "
            f"make room and go on with --resume {directory}"
        ) from error
