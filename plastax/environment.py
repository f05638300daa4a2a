"""What a result depends on besides its configuration."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

_PACKAGES = ("plastax-lab", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint", "numpy", "xarray")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """The output of git in the source tree of plastax, None without git or outside a work tree."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, devices, precision, code revision.

    Returns:
      JSON types only. Starts the JAX backend if it has not been started yet.
    """
    # Here and not on top: reading records on a laptop needs no accelerator library.
    import jax

    status = _git("status", "--porcelain")
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [{"kind": device.device_kind, "id": device.id} for device in devices],
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "x64": bool(jax.config.values["jax_enable_x64"]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": shlex.join(sys.orig_argv),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
