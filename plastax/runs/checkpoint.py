"""Checkpoints of a program's state, by orbax: complete, checked and of this configuration, or refused.

Beside what orbax writes, every checkpoint has a ``manifest.json``, written last: the format, the settings that it
belongs to, the leaves of the state, and size and checksum of every file. A checkpoint without one was never finished;
one whose files do not match it is damaged (orbax reads some damage back as numbers), and kept. One that cannot be read
is neither: nothing is decided about it.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from plastax import __version__, tree
from plastax.errors import RecordError, RunError, Unreadable
from plastax.records import lifecycle
from plastax.records.files import aside, entries, read_json, regular, trouble, write_json
from plastax.records.layout import FORMAT
from plastax.records.survey import Survey
from plastax.types import Tree

# orbax logs every save, and every error that it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)

MANIFEST = "manifest.json"

_SHAPE = {
    "format": int, "plastax": str, "hash": str | None, "settings": {}, "leaves": {...: [list | str]},
    "files": {...: [int]},
}  # fmt: skip

OVERHEAD = 1 << 17
"""Bytes that a checkpoint takes beside its numbers."""


def _is_key(x: object) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(state: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _named(state: Tree) -> dict[str, Any]:
    """Path name -> leaf (or shape struct), without slashes, which orbax would take for folders."""
    return {name.replace("/", "."): leaf for name, leaf in tree.named_leaves(_without_keys(state)).items()}


def to_host(state: Tree) -> dict[str, np.ndarray]:
    """Path name -> copy of every leaf on the host; PRNG keys as their words. Waits for the state to be computed."""
    # Copies: on CPU an array may share the memory of a buffer that the next segment donates.
    return {name: np.array(leaf) for name, leaf in _named(state).items()}


def from_host(leaves: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """The state that `to_host` took apart, of the structure of ``like``."""

    def leaf(name: str, old: Any) -> jax.Array:
        # A copy: the first segment donates it.
        new = jnp.array(leaves[name.replace("/", ".")])
        return jax.random.wrap_key_data(new) if _is_key(old) else new

    return tree.map_named(leaf, like)


class Restored(NamedTuple):
    """What a run continues from.

    Attributes:
      segment: its number.
      leaves: the state before it, by path name.
      notes: what is to be said about newer checkpoints, one line each.
    """

    segment: int
    leaves: dict[str, np.ndarray]
    notes: list[str]


class Checkpoints:
    """The checkpoints of one method of a run: written in the background, atomically, the newest ones kept.

    Args:
      directory: ``checkpoints/<method>`` in the run directory; made if need be.
      config: the content of ``config.json``; another configuration's checkpoints are refused.
      keep: how many.
      first: the segment that the run continues with: later checkpoints make room, see `clear`.

    Attributes:
      newest: the segment of the newest checkpoint that is finished; 0: none.

    Raises:
      RunError: the directory cannot be used.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], keep: int = 2, first: int = 0) -> None:
        self.newest = first
        self._directory, self._run = directory.absolute(), directory.parent.parent
        self._config = {"hash": config.get("hash"), "settings": config.get("settings", {})}
        # In a thread of our own rather than orbax's, because the manifest has to come behind orbax's last file.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._guarded(lambda: self._open(first, options))
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def _open(self, first: int, options: ocp.CheckpointManagerOptions) -> None:
        clear(self._directory, first)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._directory, os.O_RDONLY)
        self._writing = _anchored(self._descriptor, self._directory)
        self._manager = ocp.CheckpointManager(self._writing, options=options)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # orbax and TensorStore raise nearly anything where a disk is full or a folder may not be written.
        except Exception as error:
            raise RunError(
                f"{self._directory}: a checkpoint could not be written ({_why(error)}); those before it are whole: "
                f"continue with --resume {self._run}"
            ) from error

    def save(self, segment: int, leaves: dict[str, np.ndarray]) -> None:
        """Saves the state before segment number ``segment``; waits only for a save that is still under way.

        Raises:
          RunError: that save failed (the disk is full, say).
        """
        self.wait()
        self._pending = self._thread.submit(self._guarded, lambda: self._write(segment, leaves))

    def _write(self, segment: int, leaves: dict[str, np.ndarray]) -> None:
        # Before orbax begins: TensorStore prints its own traceback for every array that does not fit.
        if shutil.disk_usage(self._writing).free < sum(leaf.nbytes for leaf in leaves.values()) + OVERHEAD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._manager.save(segment, args=ocp.args.StandardSave(leaves))
        self._manager.wait_until_finished()
        folder = self._writing / str(segment)
        files = {str(path.relative_to(folder)): _checksum(path) for path in folder.rglob("*") if path.is_file()}
        shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}
        manifest = {"format": FORMAT, "plastax": __version__, **self._config, "leaves": shapes, "files": files}
        write_json(folder / MANIFEST, manifest)
        self.newest = segment

    def wait(self) -> None:
        """Waits for a save under way; raises its `RunError`."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Waits for a save under way; raises its `RunError`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()
            os.close(self._descriptor)


def _anchored(descriptor: int, directory: Path) -> Path:
    """A name of an open directory that stays right when it is moved; its own, where the system has no such name.

    orbax makes the folders that it misses, so under the old name it would make a moved run again.
    """
    anchor = Path(f"/proc/self/fd/{descriptor}")
    return anchor if anchor.is_dir() else directory


COMPLETE = Survey(sys.maxsize, "", 0)


def restore(place: Path, config: Mapping[str, Any], like: Tree, there: Survey = COMPLETE) -> Restored | None:
    """The newest checkpoint that is whole, and whose records are; None if none was ever finished. Changes nothing.

    Args:
      place: ``checkpoints/<method>`` in the run directory.
      config: the content of ``config.json``.
      like: a state of the program's structure (arrays or shape structs).
      there: what has been recorded.

    Raises:
      RecordError: a file cannot be read now.
      RunError: one was finished, but none is left that is whole and whose records are; or the newest belongs to
        another configuration, model or version of plastax.
    """
    notes: list[str] = []
    for segment, folder in sorted(_folders(place).items(), reverse=True):
        try:
            manifest = read_json(folder / MANIFEST, _SHAPE)
            if missing := _SHAPE.keys() - manifest.keys():
                raise RecordError(f"{MANIFEST} lacks {', '.join(sorted(missing))}")
            _verify(folder, manifest["files"])
        # Killed between orbax's last file and the manifest: as if it had not been begun.
        except FileNotFoundError:
            continue
        except Unreadable:
            raise
        except RecordError as error:
            notes.append(f"{folder} is damaged ({error})")
            continue
        _check(folder, manifest, config, like)
        if segment > there.whole:
            note = there.problem or f"there are {there.whole} records for {folder}"
            notes += [note] if note not in notes else []
            continue
        return Restored(segment, _leaves(folder, like), notes)
    if not notes and there.checkpoint:
        notes = [f"{place} lacks the checkpoint before segment {there.checkpoint}"]
    if notes:
        raise RunError(
            f"no checkpoint is left to continue from: {'; '.join(notes)}; put back what is damaged or missing from a "
            "copy, or start over with --fresh"
        )
    return None


def clear(place: Path, first: int) -> None:
    """Makes room for the checkpoints after segment ``first``: moves aside what is there, damaged or half-made too."""
    for segment, folder in _folders(place).items():
        if segment > first:
            aside(folder)


def _folders(place: Path) -> dict[int, Path]:
    """Segment -> folder of its checkpoint; whatever else lies beside them is none."""
    return {int(path.name): path for path in entries(place) if re.fullmatch("0|[1-9][0-9]*", path.name)}


def _verify(folder: Path, sums: Mapping[str, Sequence[int]]) -> None:
    """Raises `RecordError` unless all files of a checkpoint are there, inside of it, and what they were."""
    for name, expected in sums.items():
        path = folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
            whole = inside and regular(path).st_size == expected[0] and _checksum(path) == expected
        except RecordError:
            raise
        # Names of a stranger's manifest may be anything.
        except (FileNotFoundError, ValueError, IndexError, RuntimeError) as error:
            raise RecordError(f"{name} is missing") from error
        except OSError as error:
            raise trouble(path, error) from error
        if not whole:
            raise RecordError(f"{name} is {'not what was written' if inside else 'outside of it'}")


def _leaves(folder: Path, like: Tree) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint that has been verified."""
    # Told the shapes, orbax restores to NumPy, wherever the state was when it was saved.
    shapes = _named(jax.eval_shape(_without_keys, like))
    empty = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(folder.absolute() / "default", empty)
    # Its bytes are right: what orbax and TensorStore raise is the system's.
    except Exception as error:
        raise RunError(
            f"{folder} cannot be read ({_why(error)}); nothing was changed; try again when it can"
        ) from error


def _check(folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], like: Tree) -> None:
    """Raises `RunError` unless the checkpoint is one of this program."""
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
        differing.sort(key=lambda name: "params" not in name)  # What says most.
        some = "; ".join(f"{n}: {there.get(n, 'none')} there, {here.get(n, 'none')} here" for n in differing[:3])
        raise RunError(f"{folder} is of another model or program ({len(differing)} leaves differ: {some})")


def _why(error: Exception) -> str:
    """The reason in an error of orbax or TensorStore, in a line."""
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
