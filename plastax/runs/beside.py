"""Training side by side: a small network keeps one core of a CPU busy, and others train on the next.

An arm's networks are trained by several calls of its program (`parallel.batch`), and several arms can train at a time.
All calls share the cores, so none idles while a call is left, whichever arm it is of.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from plastax import machine, platforms
from plastax.errors import ConfigError
from plastax.program.parallel import Batch
from plastax.runs import memory
from plastax.runs.compiled import Each, in_turn
from plastax.types import Tree

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")


MOST = 4
"""The most that train side by side where nobody says how many: each has a line of the terminal."""


def count(asked: int, called: bool) -> int:
    """How many arms train side by side.

    Args:
      asked: the setting ``arms_at_once``; 0: one for each core, where networks are trained on them.
      called: whether something is called after every task, which then happens in this thread alone.

    Raises:
      ConfigError: several are asked for on several hosts, which must all train the same one.
    """
    hosts = jax.process_count()
    if asked > 1 and hosts > 1:
        raise ConfigError(f"arms_at_once: {asked} is not allowed on {hosts} hosts: all train the same arm; give 1")
    several = platforms.chosen().arms_beside and hosts == 1 and not called
    return asked or (min(machine.cores(), MOST) if several else 1)


class Room:
    """The memory and the cores that batches share while they train side by side.

    Args:
      cores: how many there are; by default as many as this process may use.
    """

    def __init__(self, cores: int | None = None) -> None:
        self._most = cores or machine.cores()
        self._held: list[int] = []
        self._changed = threading.Condition()
        self._cores = threading.Semaphore(self._most)

    @contextlib.contextmanager
    def taken(self, needed: memory.Need | None, batch: Batch) -> Iterator[Each]:
        """A context that begins once programs of this need fit beside those that run, or nothing runs.

        Args:
          needed: all that the networks keep, and what one call works in.
          batch: the networks.

        Yields:
          What makes the calls: one on each core of a CPU, as far as they fit into memory; elsewhere one after another.
        """
        count = self._count(needed, batch)
        own = needed.kept + count * needed.working if needed else 0

        def fits() -> bool:
            # What runs has some of its memory already, so this counts some of it twice.
            there = memory.available()
            return not self._held or there is None or sum(self._held) + own <= memory.USABLE * there

        with self._changed:
            self._changed.wait_for(fits)
            self._held.append(own)
        try:
            with ThreadPoolExecutor(count, "call") as threads:
                yield in_turn if count == 1 else lambda fn, parts: threads.map(functools.partial(self._call, fn), parts)
        finally:
            with self._changed:
                self._held.remove(own)
                self._changed.notify_all()

    def _count(self, needed: memory.Need | None, batch: Batch) -> int:
        """The most calls at the same time. Devices of a mesh share the cores already."""
        if not platforms.chosen().arms_beside or batch.mesh is not None:
            return 1
        most, there = min(batch.calls, self._most), memory.available()
        if needed and there is not None:
            most = min(most, int(memory.USABLE * there - needed.kept) // max(1, needed.working))
        return max(1, most)

    def _call(self, fn: Callable[[Tree], Any], part: Tree) -> Any:
        with self._cores:
            return jax.block_until_ready(fn(part))


def in_slots(fn: Callable[[S, T], R], items: Sequence[T], slots: Sequence[S]) -> list[R]:
    """``fn(slot, item)`` of all items, in their order; each slot has one item at a time.

    A single slot is this thread; several are threads of their own. If one raises, no other item begins, and those that
    have begun come to their ends. Then the first error, in the order of the items, is raised here.
    """
    if len(slots) == 1:
        return [fn(slots[0], item) for item in items]
    free: queue.SimpleQueue[S] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    ending = threading.Event()

    def one(item: T) -> R:
        if ending.is_set():
            raise CancelledError
        slot = free.get()
        try:
            return fn(slot, item)
        except BaseException:
            ending.set()
            raise
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots), "train") as pool:
        running = [pool.submit(one, item) for item in items]
        try:
            return [future.result() for future in running]
        finally:
            ending.set()
