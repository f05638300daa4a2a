"""The machine that a process is on: whether programs run there, and the memory that it may still take."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from plastax import platforms
from plastax.errors import ConfigError

GUARDED = ("disallow", "disallow_explicit")
SWITCHES = {
    "jax_debug_nans": (
        (True,),
        "what is not measured is NaN, and seeds whose loss is not finite are named anyway",
    ),
    "jax_disable_jit": ((True,), "a run is a compiled program"),
    "jax_numpy_dtype_promotion": (("strict",), "flax and optax need promotion"),
    "jax_transfer_guard": (GUARDED, "a run hands each segment its number"),
    "jax_transfer_guard_host_to_device": (GUARDED, "a run hands each segment its number"),
    "jax_transfer_guard_device_to_host": (GUARDED, "a run fetches what each segment has recorded"),
}
"""JAX's options that no run works with -> their values that it does not work with, why."""


def check() -> None:
    """Starts JAX and looks at what it was told, before anything is compiled.

    Raises:
      ConfigError: there is no backend that ``JAX_PLATFORMS`` names, or Python, JAX or plastax (`platforms`) was told
        what no run works with.
    """
    check_assertions()
    for name, (values, why) in SWITCHES.items():
        if (value := jax.config.values.get(name)) in values:
            raise ConfigError(f"{name.upper()}: {value} is not allowed, for {why}; unset it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # A backend that is known, but not installed, is an assertion.
        why = f"{error}".partition("\n")[0].partition(" (set JAX_PLATFORMS")[0] or "there is none of them here"
        asked = jax.config.values["jax_platforms"]
        raise ConfigError(f"JAX_PLATFORMS: {asked} cannot be used ({why}); unset it, or give cpu") from error
    platforms.chosen()


def check_assertions() -> None:
    """Raises `ConfigError` under ``python -O``, where flax never leaves a layer: each seems to be called twice."""
    if sys.flags.optimize:
        raise ConfigError("python -O: flax does not work without assertions; leave out -O and unset PYTHONOPTIMIZE")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int | None:
    """Bytes of main memory that this process may still take; None if nothing is known.

    The least of what is free on the machine and of what limits leave: those of its control groups (a container's, a
    job's), its own (``ulimit``), and those of a SLURM job that does without control groups. The cache of files does not
    count as taken, for the kernel gives it up.

    Args:
      root: of the file system that ``proc`` and ``sys`` are read from.
      environment: the process's variables.
    """
    own = _sizes(root / "proc/self/status")
    found = [*_free(root), *_cgroups(root), *_rlimits(own), *_slurm(environment, own)]
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found)) if found else None


def _free(root: Path) -> list[int]:
    return [size for name, size in _sizes(root / "proc/meminfo").items() if name == "MemAvailable"]


def _sizes(path: Path) -> dict[str, int]:
    """Name -> bytes of the lines ``Name:  123 kB`` of a file; {} if it cannot be read."""
    return {name: 1024 * int(size) for name, size in re.findall(r"(\w+):\s+(\d+) kB", _text(path))}


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _cgroups(root: Path) -> Iterator[int]:
    """What is left in this process's control group and in those around it, of either version."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # The mounts of version 2, also beside version 1; a container's own group may be mounted as if it were the root.
        tops, limits, usage, prefix = ["", "unified"], ["memory.max", "memory.high"], "memory.current", ""
        if controllers:
            tops, limits, usage, prefix = ["memory"], ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_"
            if "memory" not in controllers.split(","):
                continue
        parts = [part for part in path.split("/") if part]
        for top in tops:
            for depth in range(len(parts) + 1):
                group = root.joinpath("sys/fs/cgroup", top, *parts[:depth])
                stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                used = _text(group / usage)
                for limit in (_text(group / name) for name in limits):
                    if limit.isdecimal():  # Not "max".
                        yield int(limit) - (max(0, int(used) - cache) if used.isdecimal() else 0)


def _rlimits(own: Mapping[str, int]) -> Iterator[int]:
    with contextlib.suppress(ImportError):  # There is none on Windows.
        import resource

        for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY:
                yield soft - own.get(used, 0)


def _slurm(environment: Mapping[str, str], own: Mapping[str, int]) -> Iterator[int]:
    """What SLURM grants on this node, in MiB; 0 stands for all."""

    def number(name: str) -> int:
        digits = re.match(r"\d+", environment.get(name, ""))
        return int(digits[0]) if digits else 0

    cpus = number("SLURM_CPUS_ON_NODE") or number("SLURM_JOB_CPUS_PER_NODE") or number("SLURM_CPUS_PER_TASK") or 1
    for granted in (number("SLURM_MEM_PER_NODE"), number("SLURM_MEM_PER_CPU") * cpus):
        if granted:
            yield granted * 2**20 - own.get("VmRSS", 0)
