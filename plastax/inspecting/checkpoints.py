"""Checkpoints that anybody wrote, as trees of arrays: orbax, ``.npz``, ``.safetensors``, and runs of plastax.

A name with slashes, or else dots, in a ``.npz`` or ``.safetensors`` file is a path: ``layers.0.weight`` is the entry
``weight`` of ``0`` of ``layers``. Nothing that is read is run as code, so pickled trees are refused.
"""

from __future__ import annotations

import functools
import glob
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.errors import ConfigError, RecordError
from plastax.records.files import read_bytes
from plastax.records.layout import arm_folder, arm_labels, read_config
from plastax.runs import networks
from plastax.types import Tree

PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")
KINDS = "an orbax directory, an .npz or .safetensors file, a folder of these, or a run of plastax"
HEADER = 1 << 26
"""Bytes of the longest header of a safetensors file that is read."""
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Types in safetensors files -> NumPy's names."""


class Checkpoint(NamedTuple):
    """One of a series.

    Attributes:
      name: its path, or what else it is called.
      read: gives its tree of arrays.
      settings: of the run of plastax that it is of; empty for others.
    """

    name: str
    read: Callable[[], Tree]
    settings: Mapping[str, Any] = MappingProxyType({})


def find(given: Any, network: int = 0) -> list[Checkpoint]:
    """The checkpoints that paths, patterns and trees name.

    Args:
      given: one, or a sequence. Several are taken in the given order. What a pattern or a folder gives, and paths in
        the order of their letters (as a shell gives them), are taken in the order of their numbers: ``step_9`` before
        ``step_10``.
      network: number of the network in a run of plastax, from 0.

    Raises:
      ConfigError: a path is not there or is no checkpoint, or a folder is empty.
    """
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ConfigError(f"checkpoints: none is given; give {KINDS}")
    if all(isinstance(one, str | os.PathLike) for one in several):
        paths = [os.fspath(one) for one in several]
        several = sorted(paths, key=natural) if paths == sorted(paths) else paths
    found: list[Checkpoint] = []
    for i, one in enumerate(several):
        if not isinstance(one, str | os.PathLike):
            found.append(Checkpoint(f"tree {i}", functools.partial(_itself, one)))
        elif not Path(one).exists() and glob.has_magic(os.fspath(one)):
            matches = sorted(glob.glob(os.fspath(one)), key=natural)
            if not matches:
                raise ConfigError(f"checkpoints: nothing matches {os.fspath(one)}")
            found += itertools.chain.from_iterable(_at(Path(path), network) for path in matches)
        else:
            found += _at(Path(one), network)
    return found


def _itself(tree: Tree) -> Tree:
    return tree


def natural(path: str | os.PathLike[str]) -> list[tuple[int, int | str]]:
    """A key to sort paths by the numbers in them.

    >>> sorted(["step_10", "step_9"], key=natural)
    ['step_9', 'step_10']
    """
    parts = re.split(r"(\d+)", os.fspath(path))
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _at(path: Path, network: int) -> list[Checkpoint]:
    """The checkpoints at a path."""
    if not path.exists():
        raise ConfigError(f"checkpoints: there is no {path} (working directory {Path.cwd()})")
    if path.is_file():
        return [Checkpoint(str(path), _reader(path))]
    if _is_run(path):
        arms = arm_labels(config := read_config(path))
        if len(arms) != 1:
            raise ConfigError(f"checkpoints: {path} has the arms {', '.join(arms)}; give one, {path}/params/{arms[0]}")
        return _of_run(path, config, arms[0], network)
    run = path.parent.parent
    if path.parent.name in ("params", "checkpoints") and _is_run(run):
        config = read_config(run)
        arms = [arm for arm in arm_labels(config) if arm_folder(config, arm) == path.name]
        if arms:
            return _of_run(run, config, arms[0], network)
    if (item := _orbax_item(path)) is not None:
        return [Checkpoint(str(path), lambda: _orbax(item))]
    inside = [one for one in sorted(path.iterdir(), key=natural) if one.suffix in READERS or _orbax_item(one)]
    if not inside:
        raise ConfigError(f"checkpoints: {path} is a folder without checkpoints; give {KINDS}")
    return list(itertools.chain.from_iterable(_at(one, network) for one in inside))


def _is_run(path: Path) -> bool:
    """Whether a folder is a run of plastax; others have a ``config.json`` too."""
    return (path / "config.json").is_file() and any((path / name).is_dir() for name in ("params", "checkpoints"))


def _of_run(run: Path, config: Mapping[str, Any], arm: str, network: int) -> list[Checkpoint]:
    """The networks of an arm after its tasks, as far as they are kept."""
    first, seeds = (int(config["settings"].get(name, default)) for name, default in (("first_seed", 0), ("seeds", 1)))
    if not 0 <= network < seeds:
        raise ConfigError(f"network: {network} is not in {run}; it has networks 0 to {seeds - 1}, of seeds {first} on")
    tasks = dict.fromkeys(int(one.tasks) - 1 for one in networks.kept(run, config, arm) if one.tasks % 1 == 0)
    if not tasks:
        raise ConfigError(f"checkpoints: {run} keeps no networks of {arm} after a task; --keep-params 1 keeps them")

    def read(task: int) -> Tree:
        params = networks.read(run, config, arm, task)["params"]
        return tree.map_named(lambda name, leaf: leaf[network], params)

    place, told = run / "params" / arm, config["settings"]
    return [Checkpoint(str(place / f"{task:06d}.npz"), functools.partial(read, task), told) for task in tasks]


def _reader(path: Path) -> Callable[[], Tree]:
    if path.suffix in PICKLED:
        raise ConfigError(
            f"checkpoints: {path} is pickled, and reading a pickle can run any code; save the arrays with numpy.savez, "
            "safetensors or orbax"
        )
    if path.suffix not in READERS:
        raise ConfigError(f"checkpoints: {path} is of an unknown kind; give {KINDS}")
    return lambda: READERS[path.suffix](path)


def _npz(path: Path) -> Tree:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # Depending on the damaged byte, nearly anything is raised.
    except Exception as error:
        raise RecordError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error
    # NumPy has no bfloat16: it writes two bytes without a type.
    typed = {name: x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x for name, x in arrays.items()}
    return nested(typed, "/" if any("/" in name for name in typed) else ".")


def _safetensors(path: Path) -> Tree:
    """https://github.com/huggingface/safetensors#format: the header's length, the header as JSON, the arrays."""
    raw = read_bytes(path)
    length = int.from_bytes(raw[:8], "little")
    try:
        if len(raw) < 8 or length > min(HEADER, len(raw) - 8):
            raise ValueError("its header is longer than the file")
        header, body = json.loads(raw[8 : 8 + length]), memoryview(raw)[8 + length :]
        arrays = {}
        for name, told in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, end) = jnp.dtype(DTYPES[told["dtype"]]), told["shape"], told["data_offsets"]
            if not (0 <= start <= end <= len(body) and end - start == math.prod(shape) * dtype.itemsize):
                raise ValueError(f"the place of {name} does not fit its shape {shape}")
            arrays[name] = np.frombuffer(body[start:end], dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{path} is no safetensors file: {error}") from error
    return nested(arrays, "/" if any("/" in name for name in arrays) else ".")


READERS: Mapping[str, Callable[[Path], Tree]] = {".npz": _npz, ".safetensors": _safetensors}


def _orbax_item(path: Path) -> Path | None:
    """The folder of the only tree in an orbax checkpoint; None for other paths."""
    if not path.is_dir() or (path / "_METADATA").is_file():
        return path if path.is_dir() else None
    step = path.name.isdecimal() or (path / "_CHECKPOINT_METADATA").is_file()
    items = [one for one in sorted(path.iterdir()) if (one / "_METADATA").is_file()] if step else []
    if len(items) > 1:
        raise ConfigError(f"checkpoints: {path} has several trees; give one of {', '.join(map(str, items))}")
    return items[0] if items else None


def _orbax(path: Path) -> Tree:
    import orbax.checkpoint

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        with orbax.checkpoint.StandardCheckpointer() as reader:
            return reader.restore(path.absolute())
    # orbax and TensorStore raise almost anything.
    except Exception as error:
        raise RecordError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def nested(leaves: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Leaves by their paths as nested dicts.

    >>> nested({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    out: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split(separator)
        inner = out
        for key in path:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecordError(f"{name} is below an array of the same name")
        inner[last] = leaf
    return out


def parameters(whole: Tree, part: str = "") -> Tree:
    """The parameters in a tree.

    Args:
      whole: the tree.
      part: the path to them, ``params`` or ``state/params``. "": all of it, and of a training state its ``params``.

    Raises:
      ConfigError: the tree has no such part.
    """
    if not part and isinstance(whole, Mapping) and "params" in whole and {"opt_state", "step"} & whole.keys():
        part = "params"
    found = whole
    for key in filter(None, part.split("/")):
        if not isinstance(found, Mapping) or key not in found:
            keys: Sequence[str] = list(found) if isinstance(found, Mapping) else ["no names"]
            raise ConfigError(f"part: {part} is not in the checkpoint; {key!r} is not among {', '.join(keys)}")
        found = found[key]
    return found
