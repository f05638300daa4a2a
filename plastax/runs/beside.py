"""Training side by side: a small network keeps one core of a CPU busy, and another arm trains on the next."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

import jax

from plastax import machine, platforms
from plastax.errors import ConfigError
from plastax.runs import memory

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
    """The memory that batches share while they train side by side."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, needed: memory.Need | None) -> Iterator[None]:
        """A context that begins once programs of this need fit beside those that run, or nothing runs."""
        own = needed.total if needed else 0

        def fits() -> bool:
            # What runs has some of its memory already, so this counts some of it twice.
            there = memory.available()
            return not self._held or there is None or sum(self._held) + own <= memory.USABLE * there

        with self._changed:
            self._changed.wait_for(fits)
            self._held.append(own)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(own)
                self._changed.notify_all()


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
