"""The compiled programs of a batch of networks, which the host calls segment by segment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from plastax.errors import ConfigError
from plastax.program.parallel import Batch
from plastax.runs import compilation, memory
from plastax.runs.memory import OutOfMemory
from plastax.types import Record, Tree


class Counts(NamedTuple):
    """What compilation took: seconds, programs that were asked for, and those that the cache did not have."""

    seconds: float = 0.0
    asked: int = 0
    missed: int = 0

    def also(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(self.seconds + other.seconds, self.asked + other.asked, self.missed + other.missed)


class Training(NamedTuple):
    """The compiled functions that change a state.

    Attributes:
      init: ``(start, data) -> state``.
      begin: ``(state, data, clock) -> state``.
      segment: ``(state, data, clock) -> (state, train)``.
    """

    init: jax.stages.Compiled
    begin: jax.stages.Compiled
    segment: jax.stages.Compiled


Measuring = jax.stages.Compiled | None
"""``(view, data, border) -> values``; None where nothing is measured."""


class Ran(NamedTuple):
    """What a segment left.

    Attributes:
      state: after it.
      record: of the networks, without padding; NumPy arrays.
      training: seconds of wall time.
      measuring: seconds of wall time.
    """

    state: Tree
    record: Record
    training: float
    measuring: float


class Compiled(NamedTuple):
    """The compiled programs of a batch.

    Attributes:
      batch: the networks.
      length: updates of a segment.
      training: the functions that change a state.
      measuring: the function that measures it.
      counts: of its compilation.
    """

    batch: Batch
    length: int
    training: Training
    measuring: Measuring
    counts: Counts

    def start(self, data: Tree) -> Tree:
        """The state before the first segment."""
        return self.training.init(self.batch.start, data)

    def run(self, state: Tree, data: Tree, clock: int, meanwhile: Callable[[], Any] = lambda: None) -> Ran:
        """A segment: its switch of tasks, updates and measurements, as far as they are due.

        Args:
          state: before it; it is donated.
          data: `Program.data`, as `Batch.place` places it.
          clock: number of its first update.
          meanwhile: what the host does while the device trains.
        """
        begun = time.perf_counter()
        if clock % self.batch.program.updates_per_task == 0:
            state = jax.block_until_ready(self.training.begin(state, data, np.int32(clock)))
        started = time.perf_counter()
        start = self._measured(state, data, clock, ending=False)
        measured = time.perf_counter()
        # JAX returns at once: the host works while the device trains.
        state, train = self.training.segment(state, data, np.int32(clock))
        meanwhile()
        jax.block_until_ready(train)
        trained = time.perf_counter()
        end = self._measured(state, data, clock + self.length, ending=True)
        probe: dict[str, Any] = {name: np.stack([value, end[name]], 1) for name, value in start.items()}
        ended = time.perf_counter()
        measuring = ended - trained + measured - started
        return Ran(state, Record(self.batch.real(train), probe), ended - begun - measuring, measuring)

    def _measured(self, state: Tree, data: Tree, done: int, ending: bool) -> dict[str, np.ndarray]:
        """What is measured after ``done`` updates, NaN where no measurement is due."""
        if self.measuring is None:
            return {}
        program = self.batch.program
        if program.due(done, ending):
            return self.batch.real(self.measuring(program.view(state), data, np.int32(2 * done + ending)))
        rows = self.batch.networks
        return {name: np.full((rows, *x.shape[1:]), np.nan, x.dtype) for name, x in self.measuring.out_info.items()}


def compile_training(batch: Batch, length: int, settings: Mapping[str, Any]) -> tuple[Training, Counts]:
    """Compiles the functions of a batch that change its state, for segments of ``length`` updates; runs nothing.

    Raises:
      OutOfMemory: a loop of the program keeps more than is free; this is known before it is compiled.
    """

    def segment(state: Tree, data: Tree, clock: Any) -> Any:
        return program.segment(state, data, clock, length)

    program, clock = batch.program, np.int32(0)
    state, data = _shapes(batch)
    with memory.explained(batch.name, settings), _Counting() as counting:
        training = Training(
            _compile(program.init, batch.start, data),
            _compile(program.begin, state, data, clock, donate=(0,)),
            _compile(segment, state, data, clock, donate=(0,)),
        )
    return training, counting.counts


def compile_measuring(batch: Batch, settings: Mapping[str, Any]) -> tuple[Measuring, Counts]:
    """Compiles the function that measures a batch's networks; raises as `compile_training`."""
    program, border = batch.program, np.int32(0)
    state, data = _shapes(batch)
    with memory.explained(batch.name, settings), _Counting() as counting:
        view = program.view(state)
        nothing = not jax.eval_shape(program.measure, view, data, border)
        measuring = None if nothing else _compile(program.measure, view, data, border)
    return measuring, counting.counts


def compiled(batch: Batch, length: int, settings: Mapping[str, Any]) -> Compiled:
    """Compiles all programs of a batch; see `compile_training`."""
    training, one = compile_training(batch, length, settings)
    measuring, other = compile_measuring(batch, settings)
    return Compiled(batch, length, training, measuring, one.also(other))


def need(programs: Compiled) -> memory.Need | None:
    """What the programs of a batch need according to XLA, the largest at a time; None if XLA does not say."""
    parts = [memory.need(one) for one in (*programs.training[1:], programs.measuring) if one is not None]
    if any(part is None for part in parts):
        return None
    return memory.Need(*(max(sizes) for sizes in zip(*(part for part in parts if part), strict=True)))


def _shapes(batch: Batch) -> tuple[Tree, Tree]:
    """Shapes of a batch's state and data, and where they lie. What all networks share is placed at the batch's turn."""
    program = batch.program
    data = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type, sharding=batch.shared),
        jax.eval_shape(lambda x: x, program.data),
    )
    state = jax.eval_shape(program.init, batch.like, data)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch.apart), state), data


def _compile(fn: Callable[..., Any], *args: Any, donate: Sequence[int] = ()) -> jax.stages.Compiled:
    compilation.unroll_threefry()
    traced = jax.jit(fn, donate_argnums=tuple(donate)).trace(*args)
    memory.check_loops(traced.jaxpr.jaxpr)
    return traced.lower().compile()


class _Counting:
    """A context that counts the compilations of this thread."""

    def __enter__(self) -> _Counting:
        self._before = (time.perf_counter(), compilation.counts.asked, compilation.counts.missed)
        return self

    def __exit__(self, *_: object) -> None:
        began, asked, missed = self._before
        counts = compilation.counts
        self.counts = Counts(time.perf_counter() - began, counts.asked - asked, counts.missed - missed)


def fitting_chunk(
    build: Callable[[int], Sequence[Batch]],
    seeds: int,
    length: int,
    settings: Mapping[str, Any],
    limit: int | None = None,
) -> int:
    """The largest ``seed_chunk`` with which every method's programs fit into device memory.

    Each candidate is compiled and compared with what is free, and its first segment is run.

    Args:
      build: ``seed_chunk -> programs``.
      seeds: number of seeds.
      length: updates per segment.
      settings: the settings of the run, for the message.
      limit: bytes that may be used; by default the fraction `memory.USABLE` of what is free after compilation.

    Raises:
      OutOfMemory: not even one seed at a time fits.
    """
    for chunk in [n for n in range(seeds, 0, -1) if seeds % n == 0]:
        try:
            for batch in build(chunk):
                _try(batch, length, {**settings, "seed_chunk": chunk}, limit)
        except OutOfMemory:
            if chunk == 1:
                raise
        else:
            return chunk % seeds  # All at once is 0.
    raise ConfigError(f"seeds: {seeds} is not allowed; give 1 or more")


def _try(batch: Batch, length: int, settings: Mapping[str, Any], limit: int | None) -> None:
    """Raises `OutOfMemory` unless the programs of a batch fit."""
    needed: memory.Need | None = None
    with memory.explained(batch.name, settings, lambda: needed):
        data = batch.place(batch.program.data)
        programs = compiled(batch, length, settings)
        needed = need(programs)
        memory.check_need(batch, data, needed, settings, memory.USABLE, limit)
        programs.run(programs.start(data), data, 0)
