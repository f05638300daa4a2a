"""Compiles the programs of the next batch in threads while one trains."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import jax

from plastax.program.parallel import Batch
from plastax.runs.compiled import (
    Compiled,
    Counts,
    Measuring,
    Training,
    compile_measuring,
    compile_segment,
    compile_starting,
)


class Ahead:
    """A context that compiles the programs of batches in order, at most one batch ahead.

    XLA compiles without Python's lock, so training continues meanwhile. Batches that are measured alike
    (`Program.alike`) share one program for it, which compiles last: training begins without it. A program that does not
    compile raises when it is taken or used, so the batches before it are not affected.

    Args:
      batches: the batches that will be taken, in order.
      length: updates per segment.
      settings: the settings of the run, for messages.
    """

    def __init__(self, batches: Sequence[Batch], length: int, settings: Mapping[str, Any]) -> None:
        self._due, self._length, self._settings = list(batches), length, settings
        self._threads, self._lock = ThreadPoolExecutor(2, "compile"), Lock()
        self._training: dict[int, tuple[Future[Any], Future[Any]]] = {}
        self._measuring: dict[Hashable, Future[tuple[Measuring, Counts]]] = {}
        self._counted: set[Hashable] = set()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def take(self, batch: Batch) -> Compiled:
        """The programs of a batch. Those of the next start to compile. Threads may take different batches."""
        alike = _alike(batch)
        with self._lock:
            self._begin(batch)
            parts, measuring = self._training.pop(id(batch)), self._measuring[alike]
            # The compilation counts for the batch that asks first.
            shared = alike in self._counted
            self._counted.add(alike)
            if not batch.program.alike:
                del self._measuring[alike]
            self._due = [other for other in self._due if other is not batch]
            if self._due:
                self._begin(self._due[0])
        (segment, counts), ((init, begin), others) = [part.result() for part in parts]
        if jax.process_count() > 1:
            # All hosts measure at the same time.
            measuring.result()
        training = Training(init, begin, segment)
        return Compiled(batch, self._length, training, measuring, counts.beside(others), shared)

    def _begin(self, batch: Batch) -> None:
        if id(batch) not in self._training:
            self._training[id(batch)] = (
                self._threads.submit(compile_segment, batch, self._length, self._settings),
                self._threads.submit(compile_starting, batch, self._settings),
            )
        if _alike(batch) not in self._measuring:
            self._measuring[_alike(batch)] = self._threads.submit(compile_measuring, batch, self._settings)


def _alike(batch: Batch) -> Hashable:
    return batch.program.alike or id(batch)
