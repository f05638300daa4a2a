"""Locks: files that one process at a time holds, on every file system.

The holder locks the file, signs it and touches it every few seconds. The system's lock decides where there is one: it
goes with its process, however that ends. It may not be there (a file system without locks, Windows), and it may not
reach other machines. Then the signature decides: on the same machine a lock is held as long as the process that signed
it lives, on another one as long as the file was touched within the last `STALE` seconds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plastax.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEARTBEAT, STALE = 10.0, 60.0
"""Seconds between two touches, and after which an untouched lock of another machine counts as given up."""

SETTLE = 0.2
"""Seconds after which, without a system's lock, the last one of several that sign at once has the lock."""


class Held(RunError):
    """A lock that another process has; the message names that process."""


class Lock(NamedTuple):
    """A lock that this process has.

    Attributes:
      path: its file.
      descriptor: the file, open.
    """

    path: Path
    descriptor: int

    @property
    def lost(self) -> bool:
        """Whether the file is no longer where it was: its directory was moved, removed or replaced."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return True
        except OSError:
            return False  # Out of reach for now is not lost.


@contextlib.contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[Lock]:
    """Holds a lock as long as the context lasts.

    Args:
      path: its file, made if need be in a directory that is there.
      wait: for whoever has it, instead of raising `Held`.

    Raises:
      Held: another process (or another part of this one) has it.
      OSError: the file cannot be made or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        lock = Lock(path, descriptor)
        while other := _take(lock):
            if not wait:
                raise Held(other)
            time.sleep(SETTLE)
        over = threading.Event()
        threading.Thread(target=_beat, args=(lock, over), name="heartbeat", daemon=True).start()
        try:
            yield lock
        finally:
            over.set()
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(path: Path) -> str:
    """The process that has a lock, in words; "" if none has, or there is no such file."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return _other(Lock(path, descriptor), _system_lock(descriptor, exclusive=False))
        finally:
            os.close(descriptor)
    return ""


def _take(lock: Lock) -> str:
    """Locks and signs the file; "" then, or else the process that has it."""
    for attempt in range(5):
        locked = _system_lock(lock.descriptor, exclusive=True)
        if locked is not False:
            break
        time.sleep(0.05 * attempt)  # Whoever asks for the holder has the lock for an instant.
    if other := _other(lock, locked):
        if locked:
            fcntl.flock(lock.descriptor, fcntl.LOCK_UN)
        return other
    signature = {**_machine(), "pid": os.getpid(), "start": _start(os.getpid()), "nonce": os.urandom(4).hex()}
    line = json.dumps(signature).encode() + b"\n"
    # In place, for the lock is the file's; a reader who comes in between still finds one whole line.
    os.lseek(lock.descriptor, 0, os.SEEK_SET)
    os.write(lock.descriptor, line)
    os.ftruncate(lock.descriptor, len(line))
    if locked is None:
        time.sleep(SETTLE)
        if (last := _signature(lock.descriptor)) != signature:
            return _words(last)
    return ""


def _system_lock(descriptor: int, *, exclusive: bool) -> bool | None:
    """Takes the system's lock; False: another process has it; None: there are no locks here.

    The one meaning of "no locks here": every error but "another has it" (ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL ...).
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _other(lock: Lock, locked: bool | None) -> str:
    """The process that has a lock, in words, given what `_system_lock` said; "" if none has."""
    signature = _signature(lock.descriptor)
    if locked is False:
        return _words(signature)
    if not signature:
        return ""
    here = all(signature.get(name, own) == own for name, own in _machine().items())
    if here and (locked or signature.get("start")):
        alive = not locked and _start(signature["pid"]) == signature["start"]
    else:
        alive = _now(lock.path.parent) - os.fstat(lock.descriptor).st_mtime < STALE
    return _words(signature) if alive else ""


def _signature(descriptor: int) -> dict[str, str | int]:
    """Who signed a lock last; {} if nobody has since it was given up, or the file holds something else."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, 4096).partition(b"\n")[0])
        return {**found, "pid": int(found["pid"]), "host": str(found["host"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _words(signature: dict[str, str | int]) -> str:
    return f"process {signature['pid']} on {signature['host']}" if signature else "another process"


@functools.cache
def _machine() -> dict[str, str]:
    """What tells this machine, and this container of it, from others and from itself before a reboot."""
    found = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        found["pids"] = os.readlink("/proc/self/ns/pid")
    return found


def _start(pid: str | int) -> str:
    """When a process of this machine began, in ticks since the boot; "" if there is none, or no telling."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]


def _now(folder: Path) -> float:
    """The time by the clock that touches of files in ``folder`` go by, as far as this process may ask for it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _beat(lock: Lock, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(lock.descriptor if os.utime in os.supports_fd else lock.path)
