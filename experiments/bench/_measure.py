"""Time and memory of competing ways to compute one thing, in rounds, and what the machine could do at best.

Both times of a run are kept: wall, and processor seconds of all threads of the process, which a busy machine disturbs
less. Ratios are medians over rounds of one side against another in the same round, so that a drifting machine cancels.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.program.parallel import Batch
from plastax.runs.beside import Room
from plastax.runs.compiled import Compiled, need
from plastax.runs.compiled import compiled as compiled_programs
from plastax.types import Tree

STATUS = Path("/proc/self/status")
RUNNING = contextlib.ExitStack()
"""What runs until the process ends."""


class Side(NamedTuple):
    """One way to compute something.

    Attributes:
      name: shown in the table.
      run: computes it, to completion.
      read: what of the result is compared with the other sides', None if nothing can be.
      units: how many of the things that the item is about one run computes; times are per unit.
      compile_s: seconds of tracing and compilation, None if the side compiles nothing ahead.
      memory: bytes that a run needs beside its arguments, None if unknown.
      measured: whether that is the growth of the process, not the compiler's account.
      bound_s: least processor seconds a unit can take on this machine, None if not worked out.
      sweeps: how often every new vector is orthogonalised against all earlier ones, empty for never.
      peer: whether this is somebody else's program.
    """

    name: str
    run: Callable[[], Any]
    read: Callable[[Any], Any] | None = None
    units: int = 1
    compile_s: float | None = None
    memory: int | None = None
    measured: bool = False
    bound_s: float | None = None
    sweeps: str = ""
    peer: bool = False


class Running:
    """A program whose state is donated from call to call: ``call(state) -> (state, rest)``."""

    def __init__(self, state: Tree, call: Callable[[Tree], tuple[Tree, Any]]) -> None:
        self.state = state
        self.call = call

    def __call__(self) -> Any:
        """One round, to completion; returns the rest."""
        self.state, rest = jax.block_until_ready(self.call(self.state))
        return rest


def as_in_runs(batch: Batch, length: int) -> Compiled:
    """The compiled programs of a batch, for segments of ``length`` updates; calls share the cores as those of a run."""
    programs = compiled_programs(batch, length, {})
    return programs._replace(each=RUNNING.enter_context(Room().taken(need(programs), batch)))


def one_segment(programs: Compiled, data: Tree, state: Sequence[Tree], clock: int) -> tuple[list[Tree], list[Tree]]:
    """State and record of each call of a segment, without the measurements."""
    calls = programs.each(lambda part: programs.training.segment(part, data, np.int32(clock)), state)
    after, record = zip(*calls)
    return [*after], [*record]


class Times(NamedTuple):
    """Seconds a unit, one entry a round."""

    wall: list[float]
    cpu: list[float]

    def ratio(self, base: Times) -> Times:
        """Paired, round by round; as `Times`, for their medians."""
        return Times(*([a / b for a, b in zip(mine, theirs)] for mine, theirs in zip(self, base)))

    def median(self) -> tuple[float, float]:
        """(wall, processor)."""
        return statistics.median(self.wall), statistics.median(self.cpu)


def compiled(name: str, fn: Callable[..., Any], *args: Any, **fields: Any) -> Side:
    """A jittable function of arrays as a side, compiled here."""
    start = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - start
    return Side(
        name, lambda: jax.block_until_ready(program(*args)), compile_s=seconds, memory=needed(program), **fields
    )


def needed(program: Any) -> int | None:
    """Bytes that a compiled program takes beside its arguments; None if XLA does not say."""
    account = program.memory_analysis()
    return account and account.temp_size_in_bytes + account.output_size_in_bytes


def timed(side: Side) -> tuple[Any, float, float]:
    """(result, wall seconds, processor seconds) of one run, a unit."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = side.run()
    cpu = time.process_time() - cpu
    return result, (time.perf_counter() - wall) / side.units, cpu / side.units


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    return int(found[1]) if found else 0


def first_run(side: Side) -> tuple[Any, float, float, int | None]:
    """As `timed`, and by how many bytes the process grew at its peak; None where the kernel does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed must not hide what this one takes
        STATUS.with_name("clear_refs").write_text("5")  # the peak so far is forgotten
    except (OSError, AttributeError):
        return *timed(side), None
    before = _kilobytes("VmRSS")
    result = timed(side)
    return *result, 1024 * max(0, _kilobytes("VmHWM") - before)


def available_memory() -> float:
    """Bytes that can still be taken; infinite where the kernel does not tell."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return 1024.0 * int(found[1]) if found else float("inf")


def rounds_of(sides: Sequence[Side], rounds: int) -> list[Times]:
    """Times all sides ``rounds`` times, in turn."""
    times = [Times([], []) for _ in sides]
    for _ in range(rounds):
        for side, kept in zip(sides, times):
            _, wall, cpu = timed(side)
            kept.wall.append(wall)
            kept.cpu.append(cpu)
    return times


class Roofline(NamedTuple):
    """What the machine reached: ``flops`` of a float32 matrix product and ``bytes`` read, a processor second each."""

    flops: float
    bytes: float

    def seconds(self, flops: float, read: float = 0.0) -> float:
        """Least processor seconds for these operations and bytes, not overlapped."""
        return flops / self.flops + read / self.bytes


def roofline(n: int = 2048, megabytes: int = 256, rounds: int = 7) -> Roofline:
    """Best of XLA and NumPy's BLAS: an ``n`` by ``n`` product, and a pass over an array no cache holds.

    On an accelerator, where processor seconds mean nothing, these are XLA's in wall time.
    """
    a = jax.random.normal(jax.random.key(0), (n, n))
    rows = jnp.ones((16, megabytes * 2**14))
    host, line = np.asarray(a), np.ones(megabytes * 2**18, np.float32)
    with jax.default_matmul_precision("highest"):
        products = [compiled("XLA", jnp.matmul, a, a), Side("NumPy", lambda: host @ host)]
        passes = [compiled("XLA", jnp.matmul, rows, rows[0]), Side("NumPy", lambda: line @ line)]
    on_host = jax.default_backend() == "cpu"

    def least(sides: list[Side]) -> float:
        sides = sides if on_host else sides[:1]
        rounds_of(sides, 1)
        return min(min(times.cpu if on_host else times.wall) for times in rounds_of(sides, rounds))

    return Roofline(2.0 * n**3 / least(products), line.nbytes / least(passes))
