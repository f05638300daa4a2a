"""Batches cut into chunks along the examples, the leading axis of every leaf, and losses that can be cut so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.curvature import checks
from plastax.types import Array, Loss, Tree

Apply = Callable[[Tree, Tree], Tree]


def chunks(data: Tree, size: int) -> tuple[int, int]:
    """How many whole chunks, and how many examples are left; raises ValueError for a size that makes no chunks."""
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {size}")
    return divmod(checks.examples(data), size)


def chunk(data: Tree, index: int | Array, size: int) -> Tree:
    """Examples ``index * size`` to ``(index + 1) * size`` of all leaves; ``size`` is static."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), data)


def rest(data: Tree, size: int) -> Tree:
    """The examples after the last whole chunk."""
    return jax.tree.map(lambda x: x[x.shape[0] - x.shape[0] % size :], data)


def mean(fn: Callable[[Tree], Tree], data: Tree, size: int) -> Tree:
    """``fn`` of every chunk, averaged over the examples, in at least float32."""
    whole, left = chunks(data, size)
    examples = checks.examples(data)

    def weighted(part: Tree) -> Tree:
        weight = checks.examples(part) / examples
        return jax.tree.map(lambda x: weight * x.astype(jnp.promote_types(x.dtype, jnp.float32)), fn(part))

    def step(index: Array, total: Tree) -> Tree:
        return jax.tree.map(jnp.add, total, weighted(chunk(data, index, size)))

    if left:
        start = weighted(rest(data, size))
    else:
        shapes = jax.eval_shape(lambda: weighted(chunk(data, 0, size)))
        start = tree.zeros(shapes)
    return jax.lax.fori_loop(0, whole, step, start)


def apart(loss: Loss, apply_fn: Apply, data: Tree) -> tuple[Loss, Apply, Tree]:
    """The same mean loss as one over examples that all count alike, so that it can be taken in parts.

    A mean over counted labels is no mean over examples: a chunk, or an example on its own, would divide by its own
    number of labels. Here every example has its share of the whole beside it.

    Args:
      loss: the loss; without `Loss.weights` all three come back as they are.
      apply_fn: ``(params, data) -> outputs``.
      data: all examples.

    Returns:
      Loss and ``apply_fn`` of ``(data, shares)``, and that pair; shares ``[B]`` have a mean of one.
    """
    if loss.weights is None:
        return loss, apply_fn, data
    weights = loss.weights(data).astype(jnp.result_type(float))

    def of_part(fn: Any) -> Any:
        """``fn`` of some examples; roots and draws are square roots."""
        power = 0.5 if fn in (loss.root, loss.sample) else 1.0

        def scaled(outputs: Tree, part: tuple[Tree, Array], *rest: Tree) -> Tree:
            share = jnp.mean(part[1]) ** power
            # A part may well have no counted label, which is refused outside `jit` only.
            call = jax.jit(fn) if checks.concrete(part[1]) and not np.asarray(part[1]).any() else fn
            found = call(outputs, part[0], *rest)
            return jax.tree.map(lambda x: jnp.where(share == 0, 0.0, x * share).astype(x.dtype), found)

        return None if fn is None else scaled

    of_parts = Loss(of_part(loss.value), of_part(loss.curvature), of_part(loss.root), of_part(loss.sample), loss.finite)
    shares = weights * (weights.size / jnp.sum(weights))
    return of_parts, lambda params, part: apply_fn(params, part[0]), (data, shares)
