"""Compiled programs: kept from one process to the next, and counted."""

from __future__ import annotations

import collections
import contextlib
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
from jax._src import compilation_cache

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
"""Of this process so far."""


LIMIT = 2**30
"""Bytes that the kept programs may take, of all machines that share the folder, unless JAX's own option
``jax_compilation_cache_max_size`` says otherwise; those that were used longest ago go first."""
UNUSED = 30
"""Days after which a program that nobody used goes: an update of jaxlib orphans every program of the old one."""
_DIGEST = hashlib.sha256().digest_size


class Cache:
    """The compiled programs of a machine, shared by processes that may be killed at any moment.

    It takes the place of JAX's own cache, which writes an entry in place and never replaces it: one that was cut short
    would cost every later process a compilation. Here an entry appears in one step, with its checksum; one that fails
    it counts as missing, and the program that is compiled then replaces it.

    JAX's key has program, jaxlib, flags and device. XLA compiles for the very CPU at hand, so the folder is that of its
    instruction set: a home directory may be shared between different machines.

    Args:
      root: where; by default ``plastax/xla`` in the folder that JAX's option ``jax_compilation_cache_dir`` names, or
        else in the user's cache directory.
      limit: see `LIMIT`.

    Raises:
      OSError: the folder cannot be made or written.
      RuntimeError: there is no home directory.
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
        """The program of this key; None if there is none, or it is damaged."""
        entry = self.directory / f"{key}-cache"
        try:
            content = entry.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # It was used now.
        value = content[_DIGEST:]
        return value if content[:_DIGEST] == hashlib.sha256(value).digest() else None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program under this key in the place of any that is there; where that fails, one warning says so."""
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
                logger.warning("compiled programs are not kept: %s", error)
            self._silent = True

    def _sweep(self, more: int = 0) -> None:
        """Takes away what nobody needs, and of the rest what makes it exceed the limit together with ``more`` bytes."""
        files = []
        for path in self._root.rglob("*"):
            with contextlib.suppress(OSError):  # Other processes sweep as well.
                stat = path.stat()
                age = time.time() - stat.st_mtime
                if path.is_dir():
                    continue
                # A part is there for a moment, unless its process was killed.
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
    """Where a user's caches are."""
    own = jax.config.values["jax_compilation_cache_dir"] or os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path.home() / ".cache"


def _instruction_set() -> str:
    """Eight hexadecimal digits of what the CPU can do."""
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines += sorted({line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


_cache: Cache | None = None


def use_cache() -> None:
    """Keeps compiled programs on disk from now on, see `Cache`; a warning where they cannot be kept."""
    global _cache
    if _cache or "://" in (jax.config.values["jax_compilation_cache_dir"] or ""):
        return  # Not a folder of this machine: JAX keeps them there itself.
    try:
        _cache = cache = Cache()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory.
        jax.config.update("jax_compilation_cache_dir", None)
        logger.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache.directory))
    # Everything: a second start should compile nothing, not even what compiles fast.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's caches of parts of a compilation are written in place.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # JAX has no public way to give it a cache.
    compilation_cache.get_file_cache = lambda path: (cache, path)  # type: ignore[assignment, return-value]
    compilation_cache.reset_cache()
