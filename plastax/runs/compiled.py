"""The compiled programs of a batch of networks, which the host calls segment by segment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from plastax import tree
from plastax.errors import ConfigError
from plastax.program.parallel import Batch
from plastax.runs import compilation, memory
from plastax.runs.memory import OutOfMemory
from plastax.types import Record, Tree

Each = Callable[[Callable[[Tree], Any], Sequence[Tree]], Iterable[Any]]
"""``(fn, parts)`` -> ``fn(part)`` of all parts, in their order. All calls have begun, or ended, when it returns."""


def in_turn(fn: Callable[[Tree], Any], parts: Sequence[Tree]) -> list[Any]:
    """An `Each` in this thread. JAX returns before a call has ended, on devices where it can."""
    return [fn(part) for part in parts]


class Counts(NamedTuple):
    """What compilation took: seconds, programs that were asked for, and those that the cache did not have."""

    seconds: float = 0.0
    asked: int = 0
    missed: int = 0

    def beside(self, other: Counts) -> Counts:
        """Both together, at the same time."""
        return Counts(max(self.seconds, other.seconds), self.asked + other.asked, self.missed + other.missed)


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
      state: after it, for each call.
      record: of the networks, without padding; NumPy arrays.
      training: seconds of wall time.
      measuring: seconds of wall time.
      waited: seconds for the program that measures.
    """

    state: list[Tree]
    record: Record
    training: float
    measuring: float
    waited: float


class Compiled(NamedTuple):
    """The compiled programs of a batch.

    Attributes:
      batch: the networks.
      length: updates of a segment.
      training: the functions that change a state.
      measuring: the function that measures it, which may compile still, and what its compilation took.
      counts: of the compilation of ``training``.
      shared: whether the compilation of ``measuring`` counts for another batch.
      each: makes the calls that train or measure all networks.
    """

    batch: Batch
    length: int
    training: Training
    measuring: Future[tuple[Measuring, Counts]]
    counts: Counts
    shared: bool = False
    each: Each = in_turn

    @property
    def counted(self) -> Counts:
        """What compilation of all of them took for this batch."""
        return self.counts if self.shared else self.counts.beside(self.measuring.result()[1])

    def start(self, data: Tree) -> list[Tree]:
        """The state before the first segment, for each call."""
        return self._all(lambda start: self.training.init(start, data), self.batch.starts)

    def run(
        self,
        state: Sequence[Tree],
        data: Tree,
        clock: int,
        meanwhile: Callable[[], Any] = lambda: None,
        waiting: Callable[[float], contextlib.AbstractContextManager[Any]] = lambda _: contextlib.nullcontext(),
    ) -> Ran:
        """A segment: its switch of tasks, updates and measurements, as far as they are due.

        The first segment does not wait for the program that measures: what it is to measure at the start is kept.

        Args:
          state: before it, for each call; it is donated.
          data: `Program.data`, as `Batch.place` places it.
          clock: number of its first update.
          meanwhile: what the host does while the device trains.
          waiting: seconds of training -> context in which it waits for the program that measures, once it has trained.
        """
        begun = time.perf_counter()
        if clock % self.batch.program.updates_per_task == 0:
            state = self._all(lambda part: self.training.begin(part, data, np.int32(clock)), state)
        started, late = time.perf_counter(), not self.measuring.done()
        view = [*map(self.batch.program.view, state)]
        # The segment donates the state. (`jnp.copy` would compile a program for every shape.)
        kept = jax.device_put(view, may_alias=False) if late else []
        start = {} if late else self._measured(view, data, clock, ending=False)
        measured = time.perf_counter()
        training = self.each(lambda part: self.training.segment(part, data, np.int32(clock)), state)
        meanwhile()  # The host works while the device trains.
        state, train = zip(*jax.block_until_ready([*training]))
        trained = time.perf_counter()
        spent = trained - measured + started - begun
        if late:
            with waiting(spent):
                self.measuring.result()
        waited = time.perf_counter() - trained
        if late:
            start = self._measured(kept, data, clock, ending=False)
        end = self._measured([*map(self.batch.program.view, state)], data, clock + self.length, ending=True)
        probe: dict[str, Any] = {name: np.stack([value, end[name]], 1) for name, value in start.items()}
        measuring = time.perf_counter() - begun - spent - waited
        return Ran([*state], Record(self.batch.real(*train), probe), spent, measuring, waited)

    def _all(self, fn: Callable[[Tree], Any], parts: Sequence[Tree]) -> list[Any]:
        """``fn(part)`` of all parts, once they have ended."""
        return jax.block_until_ready([*self.each(fn, parts)])

    def _measured(self, view: Sequence[Tree], data: Tree, done: int, ending: bool) -> dict[str, np.ndarray]:
        """What is measured after ``done`` updates, NaN where no measurement is due."""
        measuring, _ = self.measuring.result()
        if measuring is None:
            return {}
        if self.batch.program.due(done, ending):
            border = np.int32(2 * done + ending)
            return self.batch.real(*self._all(lambda part: measuring(part, data, border), view))
        rows = self.batch.networks
        return {name: np.full((rows, *x.shape[1:]), np.nan, x.dtype) for name, x in measuring.out_info.items()}


def compile_segment(batch: Batch, length: int, settings: Mapping[str, Any]) -> tuple[jax.stages.Compiled, Counts]:
    """Compiles a segment of ``length`` updates; runs nothing.

    Raises:
      OutOfMemory: a loop of the program keeps more than is free; this is known before it is compiled.
    """

    def segment(state: Tree, data: Tree, clock: Any) -> Any:
        return batch.program.segment(state, data, clock, length)

    state, data = _shapes(batch)
    with memory.explained(batch.name, settings), _Counting() as counting:
        found = _compile(segment, state, data, np.int32(0), donate=(0,))
    return found, counting.counts


def compile_starting(
    batch: Batch, settings: Mapping[str, Any]
) -> tuple[tuple[jax.stages.Compiled, jax.stages.Compiled], Counts]:
    """Compiles ``init`` and ``begin`` of `Training`; raises as `compile_segment`."""
    program = batch.program
    (start, *_), (state, data) = batch.starts, _shapes(batch)
    with memory.explained(batch.name, settings), _Counting() as counting:
        init = _compile(program.init, start, data)
        begin = _compile(program.begin, state, data, np.int32(0), donate=(0,))
    return (init, begin), counting.counts


def compile_measuring(batch: Batch, settings: Mapping[str, Any]) -> tuple[Measuring, Counts]:
    """Compiles the function that measures a batch's networks; raises as `compile_segment`."""
    program, border = batch.program, np.int32(0)
    state, data = _shapes(batch)
    with memory.explained(batch.name, settings), _Counting() as counting:
        view = program.view(state)
        nothing = not jax.eval_shape(program.measure, view, data, border)
        measuring = None if nothing else _compile(program.measure, view, data, border)
    return measuring, counting.counts


def compiled(batch: Batch, length: int, settings: Mapping[str, Any]) -> Compiled:
    """Compiles all programs of a batch; see `compile_segment`."""
    (init, begin), one = compile_starting(batch, settings)
    segment, other = compile_segment(batch, length, settings)
    measuring: Future[tuple[Measuring, Counts]] = Future()
    measuring.set_result(compile_measuring(batch, settings))
    return Compiled(batch, length, Training(init, begin, segment), measuring, one.beside(other))


def need(programs: Compiled) -> memory.Need | None:
    """What the programs of a batch need according to XLA, the largest at a time; None if XLA does not say.

    All networks are kept, and one call works. That of a program that compiles still is left out.
    """
    measuring = programs.measuring.result()[0] if programs.measuring.done() else None
    parts = [memory.need(one) for one in (*programs.training[1:], measuring) if one is not None]
    if any(part is None for part in parts):
        return None
    kept, working = (max(sizes) for sizes in zip(*(part for part in parts if part), strict=True))
    data = tree.nbytes(programs.batch.program.data)
    return memory.Need(data + programs.batch.calls * (kept - data), working)


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
