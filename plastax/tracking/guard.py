"""Sinks that cannot stop a run, and cannot slow it down."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from plastax.records.layout import PathLike
from plastax.tracking.base import Metric, Sink

logger = logging.getLogger(__name__)


class Guarded:
    """A sink that cannot stop a run: if it raises, it logs one warning and is not called again.

    Args:
      sink: any sink.
    """

    def __init__(self, sink: Sink | None):
        self._sink = sink

    def _call(self, name: str, *args: Any) -> None:
        if self._sink is None:
            return
        try:
            getattr(self._sink, name)(*args)
        # Anything, even rich's way to end a process whose pipe is closed: hours of training are worth more.
        except (Exception, SystemExit) as error:
            logger.warning("%s.%s failed, continuing without it: %r", type(self._sink).__name__, name, error)
            self._sink = None

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """See `Sink.start`."""
        self._call("start", config, directory, method)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """See `Sink.log`."""
        self._call("log", metrics, step)

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._call("finish")

    def fork(self) -> Guarded:
        """See `Sink.fork`. The fork of a sink that has raised is not called either."""
        return Guarded(self._sink and self._sink.fork())


class Background:
    """A sink in a thread of its own, with a bounded queue: it may be slow, hang or raise without stopping the run.

    While the queue is full, calls of `log` are dropped, which is logged once; the records have everything. The sink is
    abandoned with one warning if it raises, or if it is not done within ``patience`` seconds after the end of an arm.

    Args:
      sink: any sink. Only that thread calls it.
      capacity: calls that may wait; one is a segment's metrics, about 100 kB.
      patience: seconds that the end of an arm waits for the sink.
      give_up: called when the sink is abandoned, with whether it hangs; otherwise it has raised.
    """

    def __init__(
        self,
        sink: Sink,
        capacity: int = 64,
        patience: float = 30.0,
        give_up: Callable[[bool], object] = lambda hung: None,
    ):
        self._sink = sink
        self._name = type(sink).__name__
        self._patience = patience
        self._give_up = give_up
        self._calls: queue.Queue[tuple[str, tuple[Any, ...], threading.Event]] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._left = False
        self._full = False

    def _work(self) -> None:
        while not self._left:
            name, args, done = self._calls.get()
            try:
                getattr(self._sink, name)(*args)
            except (Exception, SystemExit) as error:
                self._leave(f"{name} failed", error)
            done.set()

    def _leave(self, why: str, error: BaseException | None = None) -> None:
        if not self._left:
            self._left = True
            because = "" if error is None else f": {error!r}"
            logger.warning("%s: %s, continuing without it; the records are complete%s", self._name, why, because)
            self._give_up(error is None)

    def _put(self, name: str, *args: Any) -> threading.Event | None:
        """Queues a call of the sink; None if it is abandoned or the queue is full."""
        if self._left:
            return None
        if self._thread is None:
            # A daemon, because a hanging sink must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name=f"plastax-{self._name}", daemon=True)
            self._thread.start()
        done = threading.Event()
        try:
            self._calls.put_nowait((name, args, done))
        except queue.Full:
            return None
        return done

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """See `Sink.start`."""
        if self._put("start", config, directory, method) is None:
            self._leave("it is too slow")

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """See `Sink.log`."""
        if self._put("log", metrics, step) is None and not (self._left or self._full):
            self._full = True
            logger.warning("%s is too slow: it lacks some tasks, the records lack none", self._name)

    def finish(self) -> None:
        """Waits for queued calls, at most ``patience`` seconds. See `Sink.finish`."""
        if self._left:
            return
        done = self._put("finish")
        if done is None or not (done.wait(self._patience) or self._left):
            self._leave(f"it is still busy after {self._patience:g} s" if done else "it is too slow")

    def fork(self) -> Background:
        """See `Sink.fork`."""
        return Background(self._sink.fork(), self._calls.maxsize, self._patience, self._give_up)


def within(
    patience: float, name: str, action: Callable[[], Any], give_up: Callable[[bool], object] = lambda hung: None
) -> bool:
    """Runs something that may fail or hang, and logs a warning if it does.

    Args:
      patience: seconds to wait.
      name: of the action, for the log.
      action: runs in a thread of its own.
      give_up: see `Background`.

    Returns:
      Whether the action succeeded in time.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except (Exception, SystemExit) as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=f"plastax-{name}", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        logger.warning("%s is still busy after %g s, continuing without it", name, patience)
    elif failed:
        logger.warning("%s failed, continuing without it: %r", name, failed[0])
    done = not thread.is_alive() and not failed
    if not done:
        give_up(thread.is_alive())
    return done
