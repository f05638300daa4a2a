"""Checkpoints of a program's state, by orbax."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from plastax import tree
from plastax.types import Tree

# orbax reports every save at the level of a warning-free run's INFO; a progress bar has no room for that.
logging.getLogger("absl").setLevel(logging.ERROR)


def _is_key(x: object) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_host(state: Tree) -> dict[str, np.ndarray]:
    """Path name -> copy of every leaf on the host; PRNG keys as their words. Waits for the state to be computed."""
    leaves = tree.named_leaves(state).items()
    # Copies: on CPU an array may share the memory of a buffer that the next segment donates.
    return {
        name.replace("/", "."): np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for name, leaf in leaves
    }


def from_host(leaves: dict[str, np.ndarray], like: Tree) -> Tree:
    """The state that `to_host` took apart, of the structure of ``like``."""

    def leaf(name: str, old: jax.Array) -> jax.Array:
        new = jnp.asarray(leaves[name.replace("/", ".")])
        return jax.random.wrap_key_data(new) if _is_key(old) else new

    return tree.map_named(leaf, like)


class Checkpoints:
    """The checkpoints of one method of a run: atomic, written in the background, the newest two kept."""

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, segment: int, leaves: dict[str, np.ndarray]) -> None:
        """Saves the state before segment number ``segment``; waits only for a save that is still under way."""
        self._manager.save(segment, args=ocp.args.StandardSave(leaves))

    def latest(self) -> int | None:
        """The segment that the newest complete checkpoint goes on with; None without one."""
        return self._manager.latest_step()

    def restore(self, segment: int, like: Tree) -> Tree:
        """The state before ``segment``, of the structure of ``like``."""
        return from_host(self._manager.restore(segment, args=ocp.args.StandardRestore(to_host(like))), like)

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()
