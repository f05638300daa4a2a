"""Checkpoints of a program's state, by orbax: complete, intact and of this configuration, or refused.

Every checkpoint has, beside orbax's files, a ``manifest.json`` that is written last: the format, the settings, the
leaves of the state, and size and checksum of every file. A checkpoint without a manifest was never finished. One whose
files do not match its manifest is damaged, and kept (orbax reads some damage as numbers). One that cannot be read now
may be intact, so it is an error.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.errors import RecordError, RunError, Unreadable
from plastax.records import lifecycle
from plastax.records.files import aside, entries, read_json, regular, trouble, write_json
from plastax.records.layout import FORMAT
from plastax.records.survey import Survey
from plastax.types import Tree
from plastax.version import __version__

MANIFEST = "manifest.json"

_SHAPE = {
    "format": int, "plastax": str, "hash": str | None, "settings": {}, "leaves": {...: [list | str]},
    "files": {...: [int]},
}  # fmt: skip

OVERHEAD = 1 << 17
"""Bytes that a checkpoint takes beside its arrays."""


def _orbax() -> ModuleType:
    """``orbax.checkpoint``, imported on use: it takes a third of a second."""
    import orbax.checkpoint

    # orbax logs every save, and every error that it raises as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return orbax.checkpoint


def _is_key(x: object) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(state: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _named(state: Tree) -> dict[str, Any]:
    """Path -> leaf (or its shape), with dots for slashes, which orbax would take for folders."""
    return {name.replace("/", "."): leaf for name, leaf in tree.named_leaves(_without_keys(state)).items()}


def to_host(state: Tree, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Path -> copy of a ``wanted`` leaf on the host, keys as integers. Waits until the state is computed."""
    # np.array copies: on a CPU, np.asarray would share a buffer that the next segment donates.
    return {name: np.array(leaf) for name, leaf in _named(state).items() if wanted(name)}


def from_host(leaves: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """The inverse of `to_host`: a state of the structure of ``like``."""

    def leaf(name: str, old: Any) -> jax.Array:
        # A copy, because the first segment donates it. (`jnp.array` would compile a program for every shape.)
        new = jax.device_put(leaves[name.replace("/", ".")], may_alias=False)
        return jax.random.wrap_key_data(new) if _is_key(old) else new

    return tree.map_named(leaf, like)


class Restored(NamedTuple):
    """What a run continues from.

    Attributes:
      segment: the segment to continue with.
      leaves: the state before that segment: path -> array.
      notes: lines for the user about newer checkpoints that cannot be used.
    """

    segment: int
    leaves: dict[str, np.ndarray]
    notes: list[str]


class Checkpoints:
    """Writes the checkpoints of one method of a run, atomically and in the background, and keeps the newest.

    Args:
      directory: ``checkpoints/<method>`` in the run directory; made if it does not exist.
      config: the content of ``config.json``.
      keep: how many to keep.
      first: the segment that the run continues with; later checkpoints are moved aside, see `clear`.
      about: more entries of every manifest, see `networks`.

    Attributes:
      newest: the segment of the newest finished checkpoint; 0: none.

    Raises:
      RunError: the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        keep: int = 2,
        first: int = 0,
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.newest = first
        self._directory, self._run = directory.absolute(), directory.parent.parent
        self._config = {**about, "hash": config.get("hash"), "settings": config.get("settings", {})}
        self._guarded(lambda: self._open(first, keep))
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def _open(self, first: int, keep: int) -> None:
        clear(self._directory, first)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._directory, os.O_RDONLY)
        self._writing = _anchored(self._descriptor, self._directory)
        # In our own thread instead of orbax's, because the manifest has to follow orbax's last file.
        options = _orbax().CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = _orbax().CheckpointManager(self._writing, options=options)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # orbax and TensorStore raise almost anything when a disk is full or a folder is not writable.
        except Exception as error:
            raise RunError(
                f"{self._directory}: a checkpoint could not be written ({_why(error)}); earlier ones are intact: "
                f"continue with --resume {self._run}"
            ) from error

    def save(self, segment: int, leaves: dict[str, np.ndarray]) -> None:
        """Saves the state before segment ``segment`` in the background, after the previous save.

        Raises:
          RunError: the previous save failed, because the disk is full, for example.
        """
        self.wait()
        self._pending = self._thread.submit(self._guarded, lambda: self._write(segment, leaves))

    def _write(self, segment: int, leaves: dict[str, np.ndarray]) -> None:
        # Checked first, because TensorStore prints a traceback for every array that does not fit.
        if shutil.disk_usage(self._writing).free < sum(leaf.nbytes for leaf in leaves.values()) + OVERHEAD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._manager.save(segment, args=_orbax().args.StandardSave(leaves))
        self._manager.wait_until_finished()
        folder = self._writing / str(segment)
        files = {str(path.relative_to(folder)): _checksum(path) for path in folder.rglob("*") if path.is_file()}
        shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}
        manifest = {"format": FORMAT, "plastax": __version__, **self._config, "leaves": shapes, "files": files}
        write_json(folder / MANIFEST, manifest)
        self.newest = segment

    def wait(self) -> None:
        """Waits for the current save; raises its `RunError`."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Waits for the current save, raises its `RunError`, and frees all resources."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()
            os.close(self._descriptor)


def _anchored(descriptor: int, directory: Path) -> Path:
    """A path of an open directory that survives a move, where the system has one; else its own path.

    orbax creates missing folders, so with the old path it would create a moved run again.
    """
    anchor = Path(f"/proc/self/fd/{descriptor}")
    return anchor if anchor.is_dir() else directory


COMPLETE = Survey(sys.maxsize, "", 0)


def restore(place: Path, config: Mapping[str, Any], like: Tree, there: Survey = COMPLETE) -> Restored | None:
    """The newest intact checkpoint whose records are intact too; None if none was ever finished. Changes nothing.

    Args:
      place: ``checkpoints/<method>`` in the run directory.
      config: the content of ``config.json``.
      like: a state of the program, arrays or their shapes.
      there: what is recorded.

    Raises:
      RecordError: a file cannot be read now.
      RunError: no finished checkpoint is usable; or the newest is of another configuration, model or version of
        plastax.
    """
    notes: list[str] = []
    for segment, folder in sorted(folders(place).items(), reverse=True):
        try:
            told = manifest(folder)
            _verify(folder, told["files"])
        # Killed before the manifest was written: never finished.
        except FileNotFoundError:
            continue
        except Unreadable:
            raise
        except RecordError as error:
            notes.append(f"{folder} is damaged ({error})")
            continue
        _check(folder, told, config, like)
        if segment > there.whole:
            note = there.problem or f"there are {there.whole} records for {folder}"
            notes += [note] if note not in notes else []
            continue
        shapes = _named(jax.eval_shape(_without_keys, like))
        return Restored(segment, _leaves(folder, {name: (x.shape, x.dtype) for name, x in shapes.items()}), notes)
    if not notes and there.checkpoint:
        notes = [f"{place} lacks the checkpoint before segment {there.checkpoint}"]
    if notes:
        raise RunError(
            f"no checkpoint is left to continue from: {'; '.join(notes)}; restore what is damaged or missing from a "
            "copy, or start over with --fresh"
        )
    return None


def clear(place: Path, first: int) -> None:
    """Moves aside all checkpoints after segment ``first``, damaged and unfinished ones too."""
    for segment, folder in folders(place).items():
        if segment > first:
            aside(folder)


def folders(place: Path) -> dict[int, Path]:
    """Segment -> folder of its checkpoint; other files are ignored."""
    return {int(path.name): path for path in entries(place) if re.fullmatch("0|[1-9][0-9]*", path.name)}


def manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
      FileNotFoundError: it was never finished.
      RecordError: it is damaged, or cannot be read.
    """
    told = read_json(folder / MANIFEST, _SHAPE)
    if missing := _SHAPE.keys() - told.keys():
        raise RecordError(f"{MANIFEST} lacks {', '.join(sorted(missing))}")
    return told


def read(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint of any program: path -> array, as `to_host` made them.

    Raises:
      RecordError: it is damaged, or cannot be read.
    """
    try:
        told = manifest(folder)
        _verify(folder, told["files"])
    except (FileNotFoundError, RecordError) as error:
        raise RecordError(f"{folder} is damaged ({error})") from error
    return _leaves(folder, {name: (tuple(shape), jnp.dtype(dtype)) for name, (shape, dtype) in told["leaves"].items()})


def _verify(folder: Path, sums: Mapping[str, Sequence[int]]) -> None:
    """Raises `RecordError` unless a checkpoint has all its files, inside its folder and unchanged."""
    for name, expected in sums.items():
        path = folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
            whole = inside and regular(path).st_size == expected[0] and _checksum(path) == expected
        except RecordError:
            raise
        # A manifest that somebody else wrote may have any names.
        except (FileNotFoundError, ValueError, IndexError, RuntimeError) as error:
            raise RecordError(f"{name} is missing") from error
        except OSError as error:
            raise trouble(path, error) from error
        if not whole:
            raise RecordError(f"{name} is {'not what was written' if inside else 'outside of it'}")


def _leaves(folder: Path, shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, np.ndarray]:
    """The arrays of a verified checkpoint, by path, of these shapes and types."""
    # Given NumPy arrays, orbax restores to the host, whatever device the state was on.
    empty = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    try:
        with _orbax().StandardCheckpointer() as reader:
            return reader.restore(folder.absolute() / "default", empty)
    # Its checksums are right, so an error of orbax or TensorStore is the system's.
    except Exception as error:
        raise RunError(
            f"{folder} cannot be read ({_why(error)}); nothing was changed; try again when it can"
        ) from error


def _check(folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], like: Tree) -> None:
    """Raises `RunError` unless a checkpoint is of this program."""
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{folder} was written by plastax {manifest['plastax']} in format {manifest['format']}, this one reads "
            f"format {FORMAT}; continue with that version, or start over with --fresh"
        )
    if manifest["hash"] != config.get("hash"):
        settings = config.get("settings", {})
        words = lifecycle.in_words(lifecycle.differences(manifest["settings"], settings, config.get("asides", ())))
        raise RunError(f"{folder} is of another configuration ({words or 'another hash'})")
    there = {name: "".join(map(str, reversed(leaf))) for name, leaf in manifest["leaves"].items()}
    shapes = jax.eval_shape(_without_keys, like)
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(shapes).items()}
    if differing := [name for name in {**there, **here} if there.get(name) != here.get(name)]:
        differing.sort(key=lambda name: "params" not in name)  # Parameters say most.
        some = "; ".join(f"{n}: {there.get(n, 'none')} there, {here.get(n, 'none')} here" for n in differing[:3])
        raise RunError(f"{folder} is of another model or program ({len(differing)} leaves differ: {some})")


def _why(error: Exception) -> str:
    """The reason of an error of orbax or TensorStore, in a line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else getattr(error, "errno", None)
    return os.strerror(number) if number else f"{error}".strip().partition("\n")[0][:300]


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    total = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total, size = zlib.crc32(block, total), size + len(block)
    return [size, total]
