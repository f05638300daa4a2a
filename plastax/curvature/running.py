"""Running averages of a tree of statistics, such as Kronecker factors, inside a training loop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.types import Array, Tree


class Running(NamedTuple):
    """An exponential average that started from nothing.

    Attributes:
      total: weighted sum of the values so far, float32 tree.
      weight: sum of their weights, a scalar from 0 (no value yet) to 1.
    """

    total: Tree
    weight: Array

    def mean(self) -> Tree:
        """The bias-corrected average; NaN before the first value."""
        return jax.tree.map(lambda x: x / self.weight, self.total)


def start(like: Tree) -> Running:
    """An average without values, of the shapes of ``like`` (arrays or shape structs)."""
    return Running(tree.zeros(like), jnp.zeros(()))


def update(running: Running, value: Tree, decay: float | Array) -> Running:
    """Adds a value: ``decay`` times the old total plus ``1 - decay`` times the value."""
    total = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, running.total, value)
    return Running(total, decay * running.weight + (1 - decay))
