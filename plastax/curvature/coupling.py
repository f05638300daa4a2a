"""Whether the outputs of an example depend on the other examples, as in batch-normalised networks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature import checks
from plastax.types import Array, Params, Tree

ROUNDING = 1e-3
"""Relative differences up to this are rounding."""
ROUNDING_16_BITS = 3e-2
"""Likewise if 16-bit numbers may have been involved."""


def coupling(apply_fn: Callable[[Params, Tree], Tree], params: Params, data: Tree, size: int = 1) -> Array:
    """How much the outputs change if the examples come ``size`` at a time instead of all together.

    Compares the outputs, and their derivative along one random direction: a normalisation whose scale is still zero
    hides the other examples from the outputs alone. If both agree, all derivatives agree, with probability one.

    Args:
      apply_fn: ``(params, data) -> outputs``, trees with a leading axis of examples.
      params: real floating arrays.
      data: the examples, a multiple of ``size``.
      size: how many come at a time. Static.

    Returns:
      The largest difference in units of the largest entry, a float32 scalar: rounding if the examples are independent.
    """
    direction = tree.normal_like(jax.random.key(0), params)

    def moving(data: Tree) -> tuple[Tree, Tree]:
        return jax.jvp(lambda p: apply_fn(p, data), (params,), (direction,))

    def leaf(together: Array, apart: Array) -> Array:
        apart = apart.reshape(together.shape)
        # Logits of masked classes are infinite in both.
        difference = jnp.where(together == apart, 0.0, jnp.abs(together - apart))
        largest = jnp.max(jnp.where(jnp.isfinite(together), jnp.abs(together), 0.0))
        return (jnp.max(difference) / jnp.where(largest == 0, 1.0, largest)).astype(jnp.float32)

    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), data)
    return jax.tree.reduce(jnp.maximum, jax.tree.map(leaf, moving(data), jax.lax.map(moving, parts)))


def independent(apply_fn: Callable[[Params, Tree], Tree], params: Params, data: Tree, size: int, what: str) -> Array:
    """A scalar to add to a result that holds for independent examples only: zero, or NaN if they are not.

    Compares the first ``2 size`` examples. If all values are known, raises ValueError instead, with a message that
    begins with ``what``.
    """
    size = min(size, checks.examples(data) // 2)
    if not size:
        return jnp.zeros(())
    found = coupling(apply_fn, params, jax.tree.map(lambda x: x[: 2 * size], data), size)
    if checks.concrete(found) and found > ROUNDING_16_BITS:
        raise ValueError(f"{what} needs outputs of every example from its own data, and batch statistics mix them")
    return jnp.where(found > ROUNDING_16_BITS, jnp.nan, 0.0)
