"""Compiled programs: cached on disk, counted, and with random numbers that compile fast."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import logging
import os
import platform
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compilation_cache
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

from plastax.types import Array

logger = logging.getLogger(__name__)


class _Compilations:
    """Counts what XLA compiles in each thread: programs asked for, and those that the persistent cache did not have."""

    def __init__(self) -> None:
        self._asked: collections.Counter[int] = collections.Counter()
        self._missed: collections.Counter[int] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    @property
    def asked(self) -> int:
        """Programs that this thread has asked for."""
        return self._asked[threading.get_ident()]

    @property
    def missed(self) -> int:
        """Those of `asked` that the cache did not have."""
        return self._missed[threading.get_ident()]

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        self._asked[threading.get_ident()] += event == "/jax/core/compile/backend_compile_duration"

    def _event(self, event: str, **_: Any) -> None:
        self._missed[threading.get_ident()] += event == "/jax/compilation_cache/cache_misses"


counts = _Compilations()
"""The compilations of this process so far."""


@functools.cache
def unroll_threefry() -> None:
    """Lets JAX's random numbers compile to straight code on CPU, in this process from now on; the numbers are the same.

    JAX's own rule is a loop, of which XLA makes about twenty kernels for every draw and every folded key: a third of
    the time that a program of plastax takes to compile. Straight code is one kernel. Where XLA is told not to optimise
    (`jax_disable_most_optimizations`) it takes longer than the loop, which stays.
    """
    if jax.config.read("jax_disable_most_optimizations"):
        return
    mlir.register_lowering(threefry2x32_p, mlir.lower_fun(threefry2x32, multiple_results=True), platform="cpu")


def threefry2x32(key1: Array, key2: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """The hash of counts (x, y) under a key, all uint32.

    References:
      Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3: 20 rounds.
    """
    keys = key1, key2, key1 ^ key2 ^ np.uint32(0x1BD11BDA)
    x, y = x + key1, y + key2
    for i in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = x ^ (y << np.uint32(bits) | y >> np.uint32(32 - bits))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


LIMIT = 2**30
"""Bytes that cached programs may take, of all machines that share the folder, unless JAX's option
``jax_compilation_cache_max_size`` is set. The least recently used are deleted first."""
UNUSED = 30
"""Days after which an unused program is deleted: an update of jaxlib orphans all programs of the old one."""
_DIGEST = hashlib.sha256().digest_size


class Cache:
    """A cache of compiled programs, shared by processes that may be killed at any time.

    JAX's own cache writes entries in place and never replaces them: a truncated entry would cost every later process a
    compilation. Here an entry appears atomically, with a checksum. A damaged entry counts as missing and is replaced.

    JAX's key covers program, jaxlib, flags and device, but not the instruction set of a CPU, for which XLA compiles.
    Each instruction set therefore has its own folder: machines may share a home directory.

    Args:
      root: the folder; by default ``plastax/xla`` in JAX's option ``jax_compilation_cache_dir``, or else in the user's
        cache directory.
      limit: bytes, by default `LIMIT`.

    Raises:
      OSError: the folder cannot be made or written.
      RuntimeError: the user has no home directory.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None) -> None:
        self._root = root or _folder() / "plastax" / "xla"
        self._path = self.directory = self._root / _instruction_set()
        own = jax.config.values["jax_compilation_cache_max_size"]
        self._limit = limit if limit is not None else LIMIT if own < 0 else own
        self._silent = False
        self.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.directory).close()
        self._size = 0
        self._sweep()

    def get(self, key: str) -> bytes | None:
        """The program of a key; None if it is missing or damaged."""
        entry = self.directory / f"{key}-cache"
        try:
            content = entry.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # The time of its last use.
        value = content[_DIGEST:]
        return value if content[:_DIGEST] == hashlib.sha256(value).digest() else None

    def put(self, key: str, value: bytes) -> None:
        """Stores or replaces the program of a key; the first failure is a warning."""
        size = _DIGEST + len(value)
        if size > self._limit:
            return
        if self._size + size > self._limit:
            self._sweep(size)
        part = self.directory / f"{uuid.uuid4().hex}.part"
        try:
            try:
                part.write_bytes(hashlib.sha256(value).digest() + value)
                part.replace(self.directory / f"{key}-cache")
                self._size += size
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            if not self._silent:
                logger.warning("compiled programs are not cached: %s", error)
            self._silent = True

    def _sweep(self, more: int = 0) -> None:
        """Deletes unused programs, then the least recently used until ``more`` bytes fit within the limit."""
        files = []
        for path in self._root.rglob("*"):
            with contextlib.suppress(OSError):  # Another process may delete it first.
                stat = path.stat()
                age = time.time() - stat.st_mtime
                if path.is_dir():
                    continue
                # A .part exists for a moment only, unless its process was killed.
                if age > UNUSED * 86400 or (path.suffix == ".part" and age > 3600):
                    path.unlink()
                else:
                    files.append((stat.st_mtime, stat.st_size, path))
        self._size = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self._size + more <= self._limit:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                self._size -= size


def _folder() -> Path:
    """The user's cache directory."""
    own = jax.config.values["jax_compilation_cache_dir"] or os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path.home() / ".cache"


def _instruction_set() -> str:
    """Eight hexadecimal digits that identify the CPU's instruction set."""
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines += sorted({line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


_cache: Cache | None = None


def use_cache() -> None:
    """Caches compiled programs on disk from now on, see `Cache`; a warning if that is not possible."""
    global _cache
    if _cache or "://" in (jax.config.values["jax_compilation_cache_dir"] or ""):
        return  # A URL, which JAX handles itself.
    try:
        _cache = cache = Cache()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory.
        jax.config.update("jax_compilation_cache_dir", None)
        logger.warning("compiled programs are not cached: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache.directory))
    # Every program, however fast it compiles: a second start should compile nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA writes its own caches in place.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # JAX has no public way to set a cache.
    compilation_cache.get_file_cache = lambda path: (cache, path)  # type: ignore[assignment, return-value]
    compilation_cache.reset_cache()
