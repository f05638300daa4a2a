"""Device memory: what a compiled program needs of it, what there is, and what to lower where it does not suffice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from plastax.errors import ConfigError, RunError
from plastax.parallel import Batch
from plastax.types import Tree

ROOM = 0.9
"""Share of the device's memory that a program may need: allocations leave gaps."""


class OutOfMemory(RunError):
    """The device has too little memory; the message has the numbers and the settings to lower."""


class Need(NamedTuple):
    """Bytes that a compiled program needs.

    Attributes:
      kept: state, data and what it returns.
      working: of its own while it runs.
    """

    kept: int
    working: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.kept + self.working


def need(compiled: Any) -> Need | None:
    """What XLA says that a compiled program needs; None where it does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Need(int(kept), int(found.temp_size_in_bytes + found.generated_code_size_in_bytes))


def available() -> int | None:
    """Bytes of the first device that this process may have: of a CPU, what is free; None if not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform == "cpu":
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/meminfo", encoding="ascii") as file:
                free = next(line for line in file if line.startswith("MemAvailable"))
            return int(free.split()[1]) * 1024
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def compile_segment(batch: Batch, data: Tree, length: int) -> tuple[Any, Any]:
    """Compiles a batch's program: ``init(start, data)`` and ``segment(state, data, clock)``; nothing is run.

    Args:
      batch: the networks.
      data: its program's, placed.
      length: updates in a segment.
    """
    program = batch.program
    init = jax.jit(program.init).lower(batch.start, data).compile()
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(program.init, batch.start, data),
        init.output_shardings,
    )
    step = jax.jit(program.segment, static_argnums=3, donate_argnums=0)
    return init, step.lower(state, data, np.int32(0), length).compile()


@contextlib.contextmanager
def explained(
    method: str, settings: Mapping[str, Any], needed: Callable[[], Need | None] = lambda: None
) -> Iterator[None]:
    """Turns XLA's "RESOURCE_EXHAUSTED" into `OutOfMemory`.

    Args:
      method: whose program it is.
      settings: of the run.
      needed: what is known of the program's need by the time that it fails.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(_advice(method, settings, needed(), f"{error}".partition("\n")[0])) from error


def _advice(method: str, settings: Mapping[str, Any], needed: Need | None, why: str) -> str:
    sizes = f"XLA says: {why}"
    if needed is not None:
        sizes = f"the program needs {_bytes(needed.total)} ({_bytes(needed.working)} of it to work in)"
        if (there := available()) is not None:
            sizes += f" and {_bytes(there)} are free"
    seeds, chunk = settings.get("seeds", 1), settings.get("seed_chunk", 0)
    lower = [f"seed_chunk ({chunk or seeds} of {seeds} seeds side by side; --auto-chunk finds one that fits)"]
    lower += [f"seeds ({seeds})"]
    if probes := settings.get("probes"):
        lower.append(f"probes ({' '.join(probes)})")
    lower += [
        f"{name}.order ({group['order']})"
        for name, group in settings.items()
        if isinstance(group, dict) and "order" in group
    ]
    return f"out of device memory in {method}: {sizes}; lower one of: {', '.join(lower)}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def fitting_chunk(
    build: Callable[[int], Sequence[Batch]],
    seeds: int,
    length: int,
    settings: Mapping[str, Any],
    limit: int | None = None,
) -> int:
    """The largest ``seed_chunk`` with which every method's program fits into the device's memory.

    Each candidate is compiled, measured by XLA's own account, and its first segment is run.

    Args:
      build: ``(seed_chunk) -> programs over all networks``.
      seeds: ``S``.
      length: updates in a segment.
      settings: of the run, for the message.
      limit: bytes that may be used; by default `ROOM` of what is free.

    Raises:
      OutOfMemory: not even one seed at a time fits.
    """
    if limit is None and (there := available()) is not None:
        limit = int(ROOM * there)
    for chunk in [n for n in range(seeds, 0, -1) if seeds % n == 0]:
        try:
            for batch in build(chunk):
                _try(batch, length, {**settings, "seed_chunk": chunk}, limit)
        except OutOfMemory:
            if chunk == 1:
                raise
        else:
            return chunk % seeds  # All at once is 0.
    raise ConfigError(f"seeds: {seeds} is not allowed; give 1 or more")


def _try(batch: Batch, length: int, settings: Mapping[str, Any], limit: int | None) -> None:
    """Raises `OutOfMemory` unless the program fits."""
    needed: Need | None = None
    with explained(batch.name, settings, lambda: needed):
        data = batch.place(batch.program.data)
        init, segment = compile_segment(batch, data, length)
        needed = need(segment)
        if limit is not None and needed is not None and needed.total > limit:
            raise OutOfMemory(_advice(batch.name, settings, needed, ""))
        jax.block_until_ready(segment(init(batch.start, data), data, np.int32(0)))
