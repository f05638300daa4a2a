"""Compiled programs: kept from one process to the next, and counted."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)


class _Compilations:
    """Counts what XLA compiles: programs asked for, and those of them that the persistent cache did not have."""

    def __init__(self) -> None:
        self.asked = self.missed = 0
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        self.asked += event == "/jax/core/compile/backend_compile_duration"

    def _event(self, event: str, **_: Any) -> None:
        self.missed += event == "/jax/compilation_cache/cache_misses"


counts = _Compilations()
"""Of this process so far."""


class Cache:
    """The compiled programs of a machine, shared by processes that may be killed at any moment.

    JAX writes an entry in place and never again: one that was cut short would be read, refused and compiled anew for
    ever. So every process has a folder of its own, of links to the shared entries, and `share` links what is new, and
    complete, back in one step. JAX's own key has program, jaxlib, flags and device; XLA compiles for the very CPU at
    hand, so the folder is that of its instruction set: a home directory may be shared between different machines.

    Args:
      root: where; by default ``plastax/xla`` in the user's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plastax" / "xla"
        self.directory = (root or base) / _instruction_set()
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("process-*"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > 7 * 86400:  # Of a process that was killed.
                    shutil.rmtree(old, ignore_errors=True)
        self._own = Path(tempfile.mkdtemp(prefix="process-", dir=self.directory))
        for entry in self.directory.glob("*-cache"):
            _link(entry, self._own / entry.name)
        atexit.register(self._leave)
        jax.config.update("jax_compilation_cache_dir", str(self._own))
        # Everything: a second start should compile nothing, not even what compiles fast.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # XLA's caches of parts of a compilation are written in place as well.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

    def share(self) -> None:
        """Lets other processes have what this one has compiled so far; call it while none is being compiled."""
        for entry in self._own.glob("*-cache"):
            _link(entry, self.directory / entry.name)

    def _leave(self) -> None:
        self.share()
        shutil.rmtree(self._own, ignore_errors=True)


def _link(entry: Path, name: Path) -> None:
    try:
        os.link(entry, name)
    except FileExistsError:
        pass
    except OSError:
        # A file system without links: a copy that appears in one step.
        part = name.with_name(f"{name.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            shutil.copyfile(entry, part)
            part.replace(name)


def _instruction_set() -> str:
    """Eight hexadecimal digits of what the CPU can do."""
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines += sorted({line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


_cache: Cache | None = None


def use_cache() -> None:
    """Keeps compiled programs in the user's cache directory from now on; a warning where it cannot be written."""
    global _cache
    try:
        _cache = _cache or Cache()
    except OSError as error:
        logger.warning("compiled programs are not kept: %s", error)


def share() -> None:
    """`Cache.share`, where there is a cache."""
    if _cache is not None:
        _cache.share()
