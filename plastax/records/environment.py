"""The environment of a run: what its numbers depend on besides its configuration."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import inspect
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Mapping
from typing import Any

_JAX = (
    "allow_f16_reductions", "default_prng_impl", "disable_jit", "disable_most_optimizations", "enable_pgle",
    "exec_time_optimization_effort", "explicit_x64_dtypes", "high_dynamic_range_gumbel", "memory_fitting_effort",
    "memory_fitting_level", "numpy_dtype_promotion", "optimization_level", "random_seed_offset", "softmax_custom_jvp",
    "threefry_gpu_kernel_lowering", "threefry_partitionable", "use_magma",
)  # fmt: skip
"""JAX's settings that numbers depend on; others have entries of their own."""
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that numbers depend on; ``XLA_FLAGS`` has an entry of its own."""
_HERE = pathlib.Path(__file__).parent.parent
_FOLDERS = (_HERE, _HERE.parent / "experiments")
_OURS = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
_STANDARD = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "scripts"))

_PACKAGES = ("plastax-lab", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint", "numpy", "xarray")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """The output of git in the source tree of plastax; None without git or outside a work tree."""
    # The owner of the tree does not matter: its code is being run anyway.
    anyones = ("-c", "safe.directory=*")
    try:
        done = subprocess.run(
            ["git", *anyones, *arguments],
            cwd=_HERE,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def source() -> str:
    """Eight hexadecimal digits of the code: of plastax and, in a checkout, of the experiments."""
    total = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()[:8]


def own_sources(used: Collection[object] = ()) -> dict[str, str]:
    """Module -> eight hexadecimal digits of its code, for the code of a run that is not plastax's.

    These are the modules of the program and of ``used``, and what was imported from the same folders; of an installed
    package, its imported modules. What was typed in, as in a notebook, counts by its text.

    Args:
      used: modules, classes, functions, or objects of classes, such as the settings of methods, models and streams.
    """
    modules = {x.__name__ for x in used if inspect.ismodule(x)}
    kinds = [x if inspect.isroutine(x) or isinstance(x, type) else type(x) for x in used if not inspect.ismodule(x)]
    files = {name: file for name, module in list(sys.modules.items()) if (file := getattr(module, "__file__", None))}
    files.pop("__mp_main__", None)  # another name of the program
    parts = {"__main__", *modules, *(kind.__module__ for kind in kinds)} & files.keys()
    beside = tuple(f"{os.path.dirname(files[name])}{os.sep}" for name in parts if not _is_installed(files[name]))
    packages = {name.partition(".")[0] for name in parts - {"__main__"} if _is_installed(files[name])}
    packages -= {*sys.stdlib_module_names, *(name.partition("-")[0] for name in _PACKAGES)}
    found: dict[str, bytes] = {}
    for name, file in files.items():
        own = file.startswith(beside) and not _is_installed(file)
        if (own or name.partition(".")[0] in packages) and not file.startswith(_OURS):
            with contextlib.suppress(OSError):
                found[_program() if name == "__main__" else name] = pathlib.Path(file).read_bytes()
    for kind in kinds:
        if kind.__module__ not in files.keys() | sys.stdlib_module_names:
            found[f"{kind.__module__}.{kind.__qualname__}"] = _typed(kind).encode()
    return {name: hashlib.sha256(content).hexdigest()[:8] for name, content in sorted(found.items())}


def _program() -> str:
    """The name that the program's module has when it is imported, as by `plastax run study.py`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else pathlib.Path(str(sys.modules["__main__"].__file__)).stem


def _is_installed(file: str) -> bool:
    return (
        file.startswith(_STANDARD)
        or os.path.dirname(file) == sysconfig.get_path("scripts")
        or f"{os.sep}site-packages{os.sep}" in file
        or f"{os.sep}dist-packages{os.sep}" in file
    )


def _typed(kind: Any) -> str:
    """The source of a function, or of the functions of a class, as far as it is known."""
    texts = []
    for function in (kind, *(vars(kind).values() if isinstance(kind, type) else ())):
        with contextlib.suppress(OSError, TypeError):
            texts.append(inspect.getsource(function))
    return "\n".join(texts)


def source_of(module: str, code: Any) -> str:
    """SHA-256 of the file of a module, or of the text of a class or function that was typed in; "" if not known."""
    content = _typed(code).encode()
    if file := getattr(sys.modules.get(module), "__file__", None):
        with contextlib.suppress(OSError):
            content = pathlib.Path(file).read_bytes()
    return hashlib.sha256(content).hexdigest() if content else ""


def cpu() -> dict[str, str]:
    """The CPU of this machine: its name, and the vector instructions that XLA may compile for."""
    found = {"model": platform.processor() or platform.machine(), "vectors": ""}
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        entries = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
        flags = (entries.get("flags") or entries.get("Features") or "").split()
        vectors = re.compile(r"avx|sse|ssse|fma|f16c|amx|asimd|sve|sme\d*$|neon|bf16|i8mm")
        found = {
            "model": entries.get("model name", found["model"]),
            "vectors": " ".join(sorted({flag for flag in flags if vectors.match(flag)})),
        }
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences of two environments that may change a number, in words.

    What an earlier version did not record does not count as different.
    """
    found = [] if old.get("source") == new["source"] else ["the code"]
    found += [f"the code of {name}" for name in _differing(old, new, "own", missing=True)]
    found += [f"{name} {old.get('versions', {}).get(name)}" for name in _differing(old, new, "versions", missing=True)]
    kinds = ({device.get("kind") for device in one.get("devices", ())} for one in (old, new))
    found += ["the device"] if len(set(map(frozenset, kinds))) > 1 else []
    if old.get("backend") == new["backend"] == "cpu" and old.get("cpu", new["cpu"]) != new["cpu"]:
        found.append("the CPU")
    counts = old.get("devices_used"), new.get("devices_used")
    found += ["the number of devices"] if None not in counts and counts[0] != counts[1] else []
    found += [name for name in ("x64", "matmul_precision", "xla_flags") if old.get(name) != new[name]]
    found += [f"jax_{name}" for name in _differing(old, new, "jax")]
    return found + _differing(old, new, "variables") + _differing(old, new, "choices")


def edits(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The modules of one's own that two environments have with different code."""
    return _differing(old, new, "own")


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], part: str, *, missing: bool = False) -> list[str]:
    """The differing entries of one part of two environments; with ``missing`` also those that one of them lacks."""
    if part not in old:
        return []
    a, b = old[part], new[part]
    names = [*b, *(name for name in a if name not in b)] if missing else [name for name in b if name in a]
    return [name for name in names if a.get(name) != b.get(name)]


def environment(used: Collection[object] = (), devices: int | None = None) -> dict[str, Any]:
    """The content of ``environment.json``: versions, devices, precision, code revision.

    Args:
      used: see `own_sources`.
      devices: number of devices that networks are spread over, if numbers depend on it.

    Returns:
      JSON types only. Starts the JAX backend if it has not been started yet.
    """
    # Not imported at the top: whoever reads records needs no JAX.
    import jax

    from plastax import machine, platforms

    status = _git("status", "--porcelain")
    values = jax.config.values
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": machine.cores(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [{"kind": device.device_kind, "id": device.id} for device in jax.devices()],
        "devices_used": devices,
        "choices": platforms.chosen()._asdict(),
        "cpu": cpu(),
        "matmul_precision": values["jax_default_matmul_precision"] or "default",
        "x64": bool(values["jax_enable_x64"]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "variables": {name: os.environ.get(name, "") for name in _VARIABLES},
        "jax": {name: str(values[f"jax_{name}"]) for name in _JAX if f"jax_{name}" in values},
        "command": shlex.join(sys.orig_argv),
        "source": source(),
        "own": own_sources(used),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
