"""SIGINT and SIGTERM: the first asks a run to stop after its segment, the second ends the process.

In an interactive session, such as a notebook, the second raises `KeyboardInterrupt` instead, as soon as Python can.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from plastax.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

TWICE = 0.2
"""Seconds within which a second signal is the first one: ``timeout`` sends it to the process and to its group."""


class Stopping:
    """A context in which `asked` is the name of the signal that has asked to stop, "" before that.

    Python runs signal handlers in the main thread, which may wait for the device for minutes. Python's C handler also
    writes a byte to a pipe, and another thread reads that at once. Outside the main thread, where Python cannot set
    handlers, the context does nothing.
    """

    asked = ""
    _doing = ""

    @contextlib.contextmanager
    def at_once(self, doing: str) -> Iterator[None]:
        """A context in which a first signal, or one that came before, raises `Stopped` at once.

        Args:
          doing: when that is, for the message.
        """
        self._doing = doing
        try:
            self._raise(self.asked)
            yield
            self._raise(self.asked)  # The body may have caught the first one.
        finally:
            self._doing = ""

    def _raise(self, name: str) -> None:
        if name and self._doing:
            raise Stopped(f"stopped by {name} {self._doing}")

    def _handle(self, number: int, _: object) -> None:
        if self._interactive and self.asked and time.monotonic() - self._since >= TWICE:
            raise KeyboardInterrupt
        self._raise(signal.Signals(number).name)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._interactive, self._since = hasattr(sys, "ps1"), 0.0
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._write)
        self._watcher.join()
        os.close(self._read)

    def _watch(self) -> None:
        while byte := os.read(self._read, 1):
            if byte[0] not in _SIGNALS:
                continue
            if self.asked and (self._interactive or time.monotonic() - self._since < TWICE):
                continue
            if self.asked:
                # Show the cursor, which a progress bar has hidden. Files are intact at every moment.
                print("\x1b[?25h" * sys.stderr.isatty() + "stopped at once", file=sys.stderr, flush=True)
                os._exit(128 + byte[0])
            # In this order: the handler reads both.
            self._since, self.asked = time.monotonic(), signal.Signals(byte[0]).name
            if not self._doing:
                print(f"{self.asked}: stopping after this segment (again: at once)", file=sys.stderr, flush=True)
