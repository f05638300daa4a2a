"""What a result depends on besides its configuration."""

from __future__ import annotations

import datetime
import hashlib
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


def source() -> str:
    """Eight hexadecimal digits of the code: of all of plastax's files and, in a checkout, of the experiments'."""
    package = pathlib.Path(__file__).parent
    total = hashlib.sha256()
    for folder in (package, package.parent / "experiments"):
        for path in sorted(folder.rglob("*.py")):
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()[:8]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two environments differs and may change a number, in words."""
    found = [] if old.get("source") == new["source"] else ["the code"]
    versions = old.get("versions", {})
    found += [f"{name} {versions.get(name)}" for name, now in new["versions"].items() if versions.get(name) != now]
    kinds = ({device["kind"] for device in one.get("devices", ())} for one in (old, new))
    found += ["the device"] if len(set(map(frozenset, kinds))) > 1 else []
    return found + [name for name in ("x64", "matmul_precision", "xla_flags") if old.get(name) != new[name]]


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
        "source": source(),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
