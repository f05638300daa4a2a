"""Checkpoints of a program's state, by orbax: complete, checked and of this configuration, or refused.

Beside what orbax writes, every checkpoint has a ``manifest.json``, written last: the format, the settings that it
belongs to, the leaves of the state, and size and checksum of every file. A checkpoint without one was never finished;
one whose files do not match it is damaged (orbax reads some damage back as numbers).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from plastax import __version__, runs, tree
from plastax.errors import RunError
from plastax.record import FORMAT, read_json, write_json
from plastax.types import Tree

# orbax logs every save, and every error that it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)

MANIFEST = "manifest.json"

ROOM = 1 << 17
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
    """What a run goes on with.

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

    Raises:
      RunError: the directory cannot be used.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], keep: int = 2) -> None:
        self._directory, self._run = directory.absolute(), directory.parent.parent
        self._config = {"hash": config.get("hash"), "settings": config.get("settings", {})}
        # In a thread of our own rather than orbax's, because the manifest has to come behind orbax's last file.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = self._guarded(lambda: ocp.CheckpointManager(self._directory, options=options))
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # orbax and TensorStore raise nearly anything where a disk is full or a folder may not be written.
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            number = int(code[1]) if code else getattr(error, "errno", None)
            why = os.strerror(number) if number else f"{error}".strip().partition("\n")[0][:300]
            raise RunError(
                f"{self._directory}: a checkpoint could not be written ({why}); those before it are whole: "
                f"go on with --resume {self._run}"
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
        if shutil.disk_usage(self._directory).free < sum(leaf.nbytes for leaf in leaves.values()) + ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._manager.save(segment, args=ocp.args.StandardSave(leaves))
        self._manager.wait_until_finished()
        folder = self._directory / str(segment)
        files = {str(path.relative_to(folder)): _checksum(path) for path in folder.rglob("*") if path.is_file()}
        shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}
        manifest = {"format": FORMAT, "plastax": __version__, **self._config, "leaves": shapes, "files": files}
        write_json(folder / MANIFEST, manifest)

    def wait(self) -> None:
        """Waits for a save under way; raises its `RunError`."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def restore(self, like: Tree) -> Restored | None:
        """The newest checkpoint that is whole; None if none was ever finished. Removes those behind it.

        Args:
          like: a state of the program's structure (arrays or shape structs).

        Raises:
          RunError: all are damaged, or the newest belongs to another configuration, model or version of plastax.
        """
        notes: list[str] = []
        for segment in sorted(self._manager.all_steps(), reverse=True):
            folder = self._directory / str(segment)
            # Killed between orbax's last file and ours: as if it had not been begun.
            if (folder / MANIFEST).exists():
                try:
                    manifest = read_json(folder / MANIFEST)
                    damaged = [name for name, sum in manifest["files"].items() if _checksum(folder / name) != sum]
                except (OSError, ValueError, KeyError) as error:
                    damaged = [str(error)]
                if not damaged:
                    self._check(folder, manifest, like)
                    # Told the shapes, orbax restores to NumPy, wherever the state was when it was saved.
                    empty = {
                        name: np.empty(shape, jnp.dtype(dtype)) for name, (shape, dtype) in manifest["leaves"].items()
                    }
                    leaves = self._manager.restore(segment, args=ocp.args.StandardRestore(empty))
                    return Restored(segment, leaves, notes)
                notes.append(f"{folder} is damaged ({damaged[0]})")
            self._manager.delete(segment)
        if notes:
            raise RunError(f"no checkpoint is left to go on with: {'; '.join(notes)}; start anew with --fresh")
        return None

    def _check(self, folder: Path, manifest: Mapping[str, Any], like: Tree) -> None:
        """Raises `RunError` unless the checkpoint is one of this program."""
        if manifest["format"] != FORMAT:
            raise RunError(
                f"{folder} was written by plastax {manifest['plastax']} in format {manifest['format']}, this one reads "
                f"format {FORMAT}; go on with that version, or start anew with --fresh"
            )
        if manifest["hash"] != self._config["hash"]:
            listed = runs.listed(runs.differences(manifest["settings"], self._config["settings"]))
            raise RunError(f"{folder} is of another configuration ({listed or 'another hash'})")
        there = {name: f"{dtype}{shape}" for name, (shape, dtype) in manifest["leaves"].items()}
        shapes = jax.eval_shape(_without_keys, like)
        here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(shapes).items()}
        if differing := [name for name in {**there, **here} if there.get(name) != here.get(name)]:
            differing.sort(key=lambda name: "params" not in name)  # What says most.
            some = "; ".join(f"{n}: {there.get(n, 'none')} there, {here.get(n, 'none')} here" for n in differing[:3])
            raise RunError(f"{folder} is of another model or program ({len(differing)} leaves differ: {some})")

    def close(self) -> None:
        """Waits for a save under way; raises its `RunError`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    total = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total, size = zlib.crc32(block, total), size + len(block)
    return [size, total]
