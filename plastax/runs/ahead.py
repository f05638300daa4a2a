"""The compiled program of a batch, ready when its turn comes: while one batch trains, a thread compiles the next."""

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
      counts: scalars for the record: an arm's share of the seconds, programs that were compiled, and those of them that
        the cache did not have.
    """

    init: jax.stages.Compiled
    segment: jax.stages.Compiled
    counts: Mapping[str, float]


def compiled(batch: Batch, length: int, settings: Mapping[str, Any]) -> Compiled:
    """Compiles a batch's program for segments of ``length`` updates; runs nothing.

    Raises:
      OutOfMemory: the program cannot fit; the message has the settings to lower.
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
    """Compiles the programs of batches in the order of their turns, at most one ahead. A context.

    XLA compiles without Python's lock, so training goes on meanwhile. A program that does not compile raises in its own
    turn: the batches before it lose nothing.

    Args:
      batches: that will be asked for.
      length: updates in a segment.
      settings: of the run, for messages.
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
        """The program of a batch, whose turn it is; the next one's compilation begins."""
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] is batch else self._begin(batch)
        program = future.result()
        self._due = [other for other in self._due if other is not batch]
        if self._due:
            self._next = (self._due[0], self._begin(self._due[0]))
        return program

    def _begin(self, batch: Batch) -> concurrent.futures.Future[Compiled]:
        return self._thread.submit(compiled, batch, self._length, self._settings)
