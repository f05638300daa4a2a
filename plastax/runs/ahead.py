"""Compiles the programs of the next batch in threads while one trains."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from plastax.program.parallel import Batch
from plastax.runs.compiled import Compiled, Counts, Measuring, Training, compile_measuring, compile_training


class Ahead:
    """A context that compiles the programs of batches in order, at most one batch ahead.

    XLA compiles without Python's lock, so training continues meanwhile. Batches that are measured alike
    (`Program.alike`) share one program for it. A program that does not compile raises when it is taken, so the batches
    before it are not affected.

    Args:
      batches: the batches that will be taken, in order.
      length: updates per segment.
      settings: the settings of the run, for messages.
    """

    def __init__(self, batches: Sequence[Batch], length: int, settings: Mapping[str, Any]) -> None:
        self._due, self._length, self._settings = list(batches), length, settings
        self._threads, self._lock = ThreadPoolExecutor(2, "compile"), Lock()
        self._training: dict[int, Future[tuple[Training, Counts]]] = {}
        self._measuring: dict[Hashable, Future[tuple[Measuring, Counts]]] = {}
        self._counted: set[Hashable] = set()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def take(self, batch: Batch) -> Compiled:
        """The programs of a batch. Those of the next start to compile. Threads may take different batches."""
        alike = _alike(batch)
        # One batch after another, also where several train side by side: the first trains as early as it can.
        with self._lock:
            self._begin(batch)
            (training, counts), (measuring, others) = (
                self._training.pop(id(batch)).result(), self._measuring[alike].result()
            )  # fmt: skip
            # The compilation counts for the batch that asks first.
            first = alike not in self._counted
            self._counted.add(alike)
            if not batch.program.alike:
                del self._measuring[alike]
            self._due = [other for other in self._due if other is not batch]
            if self._due:
                self._begin(self._due[0])
        # They compiled at the same time.
        if first:
            counts = counts.also(others)._replace(seconds=max(counts.seconds, others.seconds))
        return Compiled(batch, self._length, training, measuring, counts)

    def _begin(self, batch: Batch) -> None:
        if _alike(batch) not in self._measuring:
            self._measuring[_alike(batch)] = self._threads.submit(compile_measuring, batch, self._settings)
        if id(batch) not in self._training:
            own = self._threads.submit(compile_training, batch, self._length, self._settings)
            self._training[id(batch)] = own


def _alike(batch: Batch) -> Hashable:
    return batch.program.alike or id(batch)
