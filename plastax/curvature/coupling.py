"""Whether the outputs of an example depend on the other examples, as those of batch-normalised networks do."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature import checks
from plastax.types import Array, Params, Tree

ROUNDING = 1e-3
"""Differences up to this share are rounding."""
ROUNDING_16_BITS = 3e-2
"""Likewise, also of what was computed in 16 bits."""


def coupling(apply_fn: Callable[[Params, Tree], Tree], params: Params, data: Tree, size: int = 1) -> Array:
    """How much outputs change if the examples come ``size`` at a time instead of all together.

    The outputs are compared, and their derivative along one random direction: a normalisation whose scale is still zero
    hides the other examples from the former. Where both agree, all derivatives do, with probability one.

    Args:
      apply_fn: ``(params, data) -> outputs``, trees with the examples in front.
      params: real floating arrays.
      data: the examples, a multiple of ``size`` of them.
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
    """A scalar to add to what is right for independent examples alone: zero, or NaN if they are not.

    Looks at the first ``2 size`` examples. Raises ValueError, which ``what`` begins, where all values are known.
    """
    size = min(size, checks.examples(data) // 2)
    if not size:
        return jnp.zeros(())
    found = coupling(apply_fn, params, jax.tree.map(lambda x: x[: 2 * size], data), size)
    if checks.concrete(found) and found > ROUNDING_16_BITS:
        raise ValueError(f"{what} needs outputs of every example from its own data, and batch statistics mix them")
    return jnp.where(found > ROUNDING_16_BITS, jnp.nan, 0.0)
