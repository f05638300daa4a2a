"""The host loop: calls a compiled program segment by segment, and saves and shows results while the device computes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plastax import locks, output, tree
from plastax.errors import RunError, Stopped
from plastax.program.parallel import Batch
from plastax.records import layout, lifecycle
from plastax.records.survey import survey
from plastax.runs import checkpoint, memory, networks
from plastax.runs.ahead import Ahead
from plastax.runs.beside import Room, in_slots
from plastax.runs.checkpoint import Checkpoints, from_host, to_host
from plastax.runs.compiled import Compiled, compiled, need
from plastax.runs.host import Ended, Host
from plastax.runs.networks import Callback, Keeping
from plastax.runs.plan import Plan, Saving
from plastax.runs.signals import Stopping
from plastax.runs.timing import Times
from plastax.tracking import Sink
from plastax.types import Record, Tree

Waiting = Callable[[str], contextlib.AbstractContextManager[Any]]


def train(
    directory: Path,
    config: Mapping[str, Any],
    batch: Batch,
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    saving: Saving | None = None,
    stopping: Stopping | None = None,
    lock: locks.Lock | None = None,
    ahead: Ahead | None = None,
    room: Room | None = None,
    callback: Callback | None = None,
    waiting: Waiting = contextlib.nullcontext,
) -> Times | None:
    """Runs one program to its end, from its newest checkpoint if it has one.

    ``records/<arm>/<segment>.npz`` of every arm is on disk before the checkpoint after that segment. A run that is
    killed at any time therefore repeats, bit for bit, what came after its last checkpoint.

    Args:
      directory: the run directory.
      config: the content of its ``config.json``.
      batch: the program and its networks: the seeds of one or several arms.
      plan: the segments of the run.
      sinks: what else receives each segment; see `tracking`.
      saving: when to make checkpoints, by default `Saving()`. One more follows a segment in which the loss of another
        seed is no longer finite.
      stopping: asked after every segment whether to stop.
      lock: the lock of the run. Nothing is written once it is lost.
      ahead: holds the compiled program of the batch; by default, compile it now.
      room: memory that it shares with what trains beside it; by default, nothing does.
      callback: see `networks.Callback`.
      waiting: text -> context in which a program is compiled, such as `output.waiting` of a console.

    Returns:
      Where the time of this call went; None if nothing was left to do.

    Raises:
      Stopped: a signal asked it to stop.
      RunError: the directory cannot be written, or has no state that this run can continue from.
    """
    plan.check()
    begun = time.perf_counter()
    saving, stopping, settings = saving or Saving(), stopping or Stopping(), config.get("settings", {})
    place = directory / "checkpoints" / layout.arm_folder(config, batch.folder)
    there = survey(directory, config, batch.arms, plan.segments)
    like = jax.eval_shape(batch.program.init, batch.like, batch.program.data)
    # A checkpoint has no copies of networks: the number of devices, and so theirs, may have changed since.
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch.networks, *x.shape[1:]), x.dtype), like)
    restored = checkpoint.restore(place, config, own, there)
    first = restored.segment if restored else 0
    # All records alone do not end a run: one that was killed before its last checkpoint still lacks its final state.
    if first == plan.segments or (not saving.enabled and there.whole == plan.segments):
        return None
    for note in restored.notes if restored else ():
        print(output.plain(f"{note}; continuing after segment {first} of {plan.segments}"))
    if stopping.asked:
        raise Stopped(f"stopped by {stopping.asked} before {batch.name}")
    with contextlib.ExitStack() as ending:
        keeping, per_task = Keeping(saving.params, callback), plan.segments // plan.tasks
        about = {"arms": list(batch.arms), "segments_per_task": per_task}
        if checkpoints := Checkpoints(place, config, saving.keep, first, about) if saving.enabled else None:
            ending.callback(checkpoints.close)
        waited = time.perf_counter()
        with waiting(f"compiling {batch.name}"):
            programs = ahead.take(batch) if ahead else compiled(batch, plan.updates_per_segment, settings)
        waited = time.perf_counter() - waited
        host = Host(directory, config, batch, plan, sinks, checkpoints, first, lock, ending, keeping)
        needed = need(programs)
        ending.enter_context(memory.explained(batch.name, settings, lambda: need(programs)))
        # Data are placed on the devices once and never donated: all segments read the same arrays.
        each = ending.enter_context((room or Room()).taken(needed, batch))
        programs = programs._replace(each=each)
        data = batch.place(batch.program.data)
        memory.check_need(batch, data, needed, settings)
        if restored:
            parts = batch.spread(restored.leaves)
            state = [jax.device_put(from_host(part, like), batch.apart) for part in parts]
        else:
            state = programs.start(data)

        @contextlib.contextmanager
        def late(seconds: float) -> Iterator[None]:
            task = f"{config.get('axis', 'task')} {first // per_task + 1}/{plan.tasks}"
            with waiting(f"{batch.name}: {task}  trained for {seconds:.1f} s, compiling its measurements"):
                yield
            if whole := need(programs):  # The state is there already.
                memory.check_need(batch, data, whole._replace(kept=tree.nbytes(data)), settings)

        training, measuring = 0.0, 0.0
        saved, frozen, asked = time.monotonic(), 0, ""
        ended: Ended | None = None
        for index in range(first, plan.segments):
            # While the device trains, the host finishes the previous segment.
            meanwhile = functools.partial(host.finish, ended) if ended else lambda: None
            ran = programs.run(state, data, index * plan.updates_per_segment, meanwhile, late)
            state, training, measuring = ran.state, training + ran.training, measuring + ran.measuring
            waited += ran.waited

            last = index + 1 == plan.segments
            asked = "" if last else stopping.asked
            before, frozen = frozen, num_frozen(ran.record)
            due = last or asked or frozen > before or saving.due(index + 1, time.monotonic() - saved)
            # The next segment donates the state, so the checkpoint's copy is made now.
            leaves = batch.real(*map(to_host, state)) if checkpoints and due else None
            saved = time.monotonic() if due else saved
            ends = (index + 1) % per_task == 0 and keeping.wants(index // per_task)
            trained = batch.real(*(to_host(part, networks.holds) for part in state)) if ends else {}
            ended = Ended(index, ran, leaves, trained, _counted(programs) if index == first else {})
            if asked:
                break
        if ended:
            host.finish(ended)
        if checkpoints:
            checkpoints.wait()
        if asked:
            raise Stopped(f"stopped by {asked} after segment {index + 1} of {plan.segments} of {batch.name}")
    there = survey(directory, config, batch.arms, plan.segments)
    if there.whole < plan.segments:
        lost = there.problem or f"{directory / 'records'} lacks segment {there.whole} of {batch.name}"
        raise RunError(f"{lost}; put it back from a copy, or start over with --fresh")
    return Times(training, measuring, waited, time.perf_counter() - begun - waited - training - measuring)


def _counted(programs: Compiled) -> dict[str, float]:
    """What compilation took, for the record; each arm gets an equal part of the time."""
    seconds, asked, missed = programs.counted
    each = seconds / len(programs.batch.arms)
    return {"compile_seconds": each, "compilations": asked, "compilations_uncached": missed}


def _recorded(directory: Path, config: Mapping[str, Any], arms: Sequence[str], plan: Plan) -> bool:
    """Whether all segments of some arms are on disk and undamaged."""
    return survey(directory, config, arms, plan.segments).whole == plan.segments


def num_frozen(values: Record) -> int:
    """Number of seeds whose loss was not finite at some update so far; see `segments`."""
    return int(np.sum(np.asarray(values.train["alive"])[:, -1] == 0)) if "alive" in values.train else 0


def axes(batches: Sequence[Batch]) -> dict[str, Tree]:
    """The axes of the record, as in ``config.json``: names, labels, and folders of arms with long labels.

    An axis has the labels of all arms (the layers of all networks). ``own_coords`` has the labels of arms that have
    fewer; ``folders`` has the arms, and batches of arms, whose labels are too long for a folder's name.
    """
    labels: dict[str, Tree] = {"dims": {}, "coords": {}, "own_coords": {}, "folders": {}}
    for batch in batches:
        labels["dims"] |= {name: list(dims) for name, dims in batch.program.dims.items()}
        for axis, names in batch.program.coords.items():
            labels["coords"][axis] = list(dict.fromkeys((*labels["coords"].get(axis, ()), *names)))
    for batch in batches:
        own = {axis: list(names) for axis, names in batch.program.coords.items()}
        own = {axis: names for axis, names in own.items() if names != labels["coords"][axis]}
        labels["own_coords"] |= {arm: own for arm in batch.arms if own}
        short = {name: layout.short(name) for name in (*batch.arms, batch.folder)}
        labels["folders"] |= {name: folder for name, folder in short.items() if folder != name}
    return labels


def study(
    directory: Path,
    config: Mapping[str, Any],
    batches: Sequence[Batch],
    plan: Plan,
    sinks: Sequence[Sink] = (),
    *,
    beside: Sequence[Sequence[Sink]] = (),
    saving: Saving | None = None,
    shard: str = "",
    here: Mapping[str, Any] | None = None,
    same: bool = False,
    report: Callable[[], Any] | None = None,
    callback: Callback | None = None,
    waiting: Waiting = contextlib.nullcontext,
) -> dict[str, Times]:
    """Runs programs into one run directory, one after another or some of them side by side, see `beside.in_slots`.

    See `lifecycle` for the states of a run.

    Args:
      directory: the run directory; ``config.json`` and ``environment.json`` are written there first.
      config: ``experiment``, ``run_id``, ``hash``, ``settings`` and, for a sweep, ``arms``. What `axes` returns is
        added, unless it is there.
      batches: the programs; see `parallel.batch`.
      plan: the segments of every program.
      sinks: see `train`.
      beside: sinks of a second program that trains beside the first, of a third, and so on; () for none.
      saving: see `train`.
      shard: see `lifecycle.hold`.
      here: see `layout.start_run`.
      same: see `layout.start_run`.
      report: writes the report, once all shards are recorded; None: there is no report.
      callback: see `train`.
      waiting: see `train`.

    Returns:
      Method -> where its time went, for methods that had something left to do.

    Raises:
      Stopped: SIGINT or SIGTERM came; every finished segment is on disk.
      RunError: see `train`; or another process works on this run.
    """
    plan.check()
    config = {**axes(batches), **config}
    with contextlib.suppress(FileNotFoundError, layout.RecordError):
        # Earlier versions used long labels as folders.
        config["folders"] = layout.read_config(directory).get("folders", {})
    own = [arm for batch in batches for arm in batch.arms]
    others = [arm for arm in layout.arm_labels(config) if arm not in own]
    again = f"continue with --resume {directory}{f' --shard {shard}' * bool(shard)}"
    times: dict[str, Times | None] = {}
    try:
        with Stopping() as stopping:
            ended = lifecycle.status(directory).state in (("recorded", "finished") if shard else ("recorded",))
            ended = ended and (directory / "config.json").exists() and _recorded(directory, config, own, plan)
            if not (report and ended):
                segments = {layout.arm_folder(config, arm): plan.segments for arm in own}
                begin = functools.partial(layout.start_run, directory, config, here, same=same)
                end = "recorded" if report else "finished"
                holding = lifecycle.hold(directory, segments, shard, begin=lambda blank: begin(blank=blank), end=end)
                with holding as lock:
                    due = [batch for batch in batches if not _recorded(directory, config, batch.arms, plan)]
                    room, slots = Room(), (sinks, *beside)
                    with Ahead(due, plan.updates_per_segment, config.get("settings", {})) as ahead:

                        def one(sinks: Sequence[Sink], batch: Batch) -> Times | None:
                            return train(
                                directory, config, batch, plan, sinks,
                                saving=saving, stopping=stopping, lock=lock, ahead=ahead, room=room, callback=callback,
                                waiting=waiting,
                            )  # fmt: skip

                        times = dict(zip((batch.name for batch in batches), in_slots(one, batches, slots)))
            if report and _recorded(directory, config, others, plan):
                with stopping.at_once("before the report was written"):
                    lifecycle.conclude(directory, report)
    except Stopped as stop:
        raise Stopped(f"{stop}; start the same study again, or {again}") from stop
    except layout.RecordError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(
            f"{error.filename or directory}: {error.strerror or error}; what {directory} holds is intact: fix that and "
            f"{again}"
        ) from error
    return {name: spent for name, spent in times.items() if spent}
