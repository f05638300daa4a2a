"""Compiles the program of the next batch in a thread while one trains."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from plastax.program.parallel import Batch
from plastax.runs import compilation, memory


class Compiled(NamedTuple):
    """A batch's compiled program.

    Attributes:
      init: ``(start, data) -> state``.
      segment: ``(state, data, clock) -> (state, Record)``.
      counts: scalars for the record: seconds per arm, programs that were compiled, and those that the cache did not
        have.
    """

    init: jax.stages.Compiled
    segment: jax.stages.Compiled
    counts: Mapping[str, float]


def compiled(batch: Batch, length: int, settings: Mapping[str, Any]) -> Compiled:
    """Compiles a batch's program for segments of ``length`` updates; runs nothing.

    Raises:
      OutOfMemory: the program does not fit into memory.
    """
    asked, missed, started = compilation.counts.asked, compilation.counts.missed, time.perf_counter()
    with memory.explained(batch.name, settings):
        init, segment = memory.compile_segment(batch, length)
    counts = {
        "compile_seconds": (time.perf_counter() - started) / len(batch.arms),
        "compilations": compilation.counts.asked - asked,
        "compilations_uncached": compilation.counts.missed - missed,
    }
    return Compiled(init, segment, counts)


class Ahead:
    """A context that compiles the programs of batches in order, at most one ahead.

    XLA compiles without Python's lock, so training continues meanwhile. A program that does not compile raises when it
    is taken, so the batches before it are not affected.

    Args:
      batches: the batches that will be taken, in order.
      length: updates per segment.
      settings: the settings of the run, for messages.
    """

    def __init__(self, batches: Sequence[Batch], length: int, settings: Mapping[str, Any]) -> None:
        self._due, self._length, self._settings = list(batches), length, settings
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compile")
        self._next: tuple[Batch, concurrent.futures.Future[Compiled]] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def take(self, batch: Batch) -> Compiled:
        """The program of a batch. The next program starts to compile."""
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] is batch else self._begin(batch)
        program = future.result()
        self._due = [other for other in self._due if other is not batch]
        if self._due:
            self._next = (self._due[0], self._begin(self._due[0]))
        return program

    def _begin(self, batch: Batch) -> concurrent.futures.Future[Compiled]:
        return self._thread.submit(compiled, batch, self._length, self._settings)
