"""Device memory: how much a compiled program needs, how much is free, and what to lower if that is too little."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from plastax import machine, tree
from plastax.errors import RunError
from plastax.program.parallel import Batch
from plastax.types import Tree

USABLE = 0.9
"""Fraction of the device's memory that a program may need: allocations leave gaps."""


TOO_LARGE = re.compile(
    "RESOURCE_EXHAUSTED|[Oo]ut of memory|Maximum allowed (size|dimension)|overflow was encountered while parsing"
    "|out of bounds for u?int|too large to convert"
)
"""What XLA, NumPy and JAX say about too little memory, or about arrays too large for any memory."""


class OutOfMemory(RunError):
    """The device has too little memory. The message has the sizes and the settings to lower."""


class Need(NamedTuple):
    """Bytes that a compiled program needs.

    Attributes:
      kept: its state, data and results.
      working: its temporaries and code.
    """

    kept: int
    working: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.kept + self.working


def need(compiled: Any) -> Need | None:
    """What a compiled program needs according to XLA; None if XLA does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Need(int(kept), int(found.temp_size_in_bytes + found.generated_code_size_in_bytes))


def available() -> int | None:
    """Free bytes of the first device, for a CPU those of `machine.free_memory`; None if unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return machine.free_memory() if device.platform == "cpu" else None


def check_loops(jaxpr: Any) -> None:
    """Raises `MemoryError` if a single loop of a program keeps more than is free; it need not be compiled for that."""
    least, there = _least(jaxpr), available()
    if there is not None and least > there:
        raise MemoryError(f"one of its loops keeps {_bytes(least)}, and {_bytes(there)} are free")


def _least(jaxpr: Any) -> int:
    """A lower bound of the bytes that a program needs: what its largest loop carries and stacks."""
    most = 0
    for eqn in jaxpr.eqns:
        inner = [part for value in eqn.params.values() for part in (value if isinstance(value, tuple) else [value])]
        inner = [getattr(part, "jaxpr", part) for part in inner]
        most = max(most, *(_least(part) for part in inner if hasattr(part, "eqns")), 0)
        if eqn.primitive.name in ("scan", "while"):
            most = max(most, tree.nbytes([v.aval for v in eqn.outvars if type(v).__name__ != "DropVar"]))
    return most


def check_state(batch: Batch, settings: Mapping[str, Any]) -> None:
    """Raises `OutOfMemory` if the states of a batch's networks exceed the free memory; compiles and allocates nothing.

    Args:
      batch: the networks.
      settings: the settings of the run, for the message.
    """
    with explained(batch.name, settings):
        one = tree.nbytes((batch.like, jax.eval_shape(batch.program.init, batch.like, batch.program.data)))
        kept = batch.calls * one
        there = available()
        apart = batch.mesh.size if batch.mesh and jax.default_backend() != "cpu" else 1
        if there is not None and kept // apart > there:
            sizes = f"{batch.networks:,} networks are {_bytes(kept)}, and {_bytes(there)} are free"
            raise OutOfMemory(_advice(batch.name, settings, sizes, chunks=False))


def check_need(
    batch: Batch,
    data: Tree,
    needed: Need | None,
    settings: Mapping[str, Any],
    fraction: float = 1.0,
    limit: int | None = None,
) -> None:
    """Raises `OutOfMemory` if compiled programs need more than the free memory, beside their data.

    Args:
      batch: the networks.
      data: the data of its program, on the devices.
      needed: what they need according to XLA.
      settings: the settings of the run, for the message.
      fraction: the fraction of the free memory that they may take.
      limit: the bytes that they and the data may take, whatever is free.
    """
    if limit is not None and needed is not None and needed.total > limit:
        raise OutOfMemory(_advice(batch.name, settings, _sizes(needed)))
    there = available() if limit is None else None
    if needed is not None and there is not None:
        # XLA counts per device, and the devices of a CPU share its memory.
        sharing = len(batch.mesh.local_devices) if batch.mesh and jax.default_backend() == "cpu" else 1
        if (needed.total - tree.nbytes(data)) * sharing > fraction * there:
            raise OutOfMemory(_advice(batch.name, settings, _sizes(needed)))


@contextlib.contextmanager
def explained(
    subject: str, settings: Mapping[str, Any], needed: Callable[[], Need | None] | None = None
) -> Iterator[None]:
    """Turns errors of XLA, NumPy and Python for lack of memory into `OutOfMemory`.

    Args:
      subject: what needs the memory: a method, a data set.
      settings: the settings of the run.
      needed: what a program needs, as far as it is known when it fails.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, MemoryError, OverflowError) as error:
        why = f"{error}".partition("\n")[0]
        if not (isinstance(error, MemoryError) or TOO_LARGE.search(why)):
            raise
        found = needed() if needed else None
        sizes = _sizes(found) if found else why or "there is none left"
        raise OutOfMemory(_advice(subject, settings, sizes, chunks=needed is not None)) from error


def _sizes(needed: Need) -> str:
    there = available()
    free = "" if there is None else f" and {_bytes(there)} are free"
    return f"the program needs {_bytes(needed.total)} ({_bytes(needed.working)} of it to work in){free}"


def _advice(subject: str, settings: Mapping[str, Any], sizes: str, *, chunks: bool = True) -> str:
    seeds = settings.get("seeds", 1)
    chunk = min(settings.get("seed_chunk") or seeds, seeds)
    lower = [f"seed_chunk ({chunk} of {seeds} seeds at once; --auto-chunk finds one that fits)"] * chunks
    lower += [f"seeds ({seeds})"]
    if probes := settings.get("probes"):
        lower.append(f"probes ({' '.join(probes)})")
    lower += [
        f"{name}.order ({group['order']})"
        for name, group in settings.items()
        if isinstance(group, dict) and "order" in group
    ]
    others = ("seeds", "first_seed", "seed_chunk", "updates_per_task")
    large = [one for one in _large(settings) if one[1] not in others and not one[1].endswith(".order")]
    lower += [f"{name} ({text})" for _, name, text in sorted(large, reverse=True)[:4]]
    return f"out of memory in {subject}: {sizes}; lower one of: {', '.join(lower)}"


def _large(settings: Mapping[str, Any], group: str = "") -> Iterator[tuple[int, str, str]]:
    """Settings with integers above a thousand: the integer, the setting's name, its value as text."""
    for field, value in settings.items():
        name = group + field.removesuffix("_settings")
        if isinstance(value, Mapping):
            yield from _large(value, f"{name}.")
            continue
        entries = value if isinstance(value, list | tuple) else [value]
        if large := [entry for entry in entries if isinstance(entry, int) and entry > 1000]:
            yield max(large), name, " ".join(map(str, entries))


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
