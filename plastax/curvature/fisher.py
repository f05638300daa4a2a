"""Second moments of per-example gradients: the empirical Fisher matrix, and the Fisher matrix by sampled labels.

Both are ``J^T C J`` like the Gauss-Newton matrix, with outer products of cotangents of the outputs for C. A product
takes one forward and one backward linear pass over all examples, never one backward pass per example.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature import checks, chunking, losses
from plastax.curvature.operators import Product, sandwich
from plastax.types import Array, Key, Loss, Operator, Params, Tree


def weights(cotangents: Tree, tangent: Tree) -> Array:
    """Inner products of every example's own cotangents and tangent, ``[B, K, ...], [B, ...] -> [B, K]``."""

    def leaf(c: Array, t: Array) -> Array:
        return jnp.sum(c * t[:, None], axis=tuple(range(2, c.ndim)))

    return jax.tree.reduce(jnp.add, jax.tree.map(leaf, cotangents, tangent))


def _outer(cotangents: Tree) -> Product:
    """The matrix with blocks ``sum_k c_ik c_ik^T`` for cotangents ``[B, K, ...]``, and nothing between examples."""

    def product(tangent: Tree) -> Tree:
        w = weights(cotangents, tangent)
        return jax.tree.map(lambda c: jnp.sum(w.reshape(*w.shape, *(1,) * (c.ndim - 2)) * c, axis=1), cotangents)

    return product


def empirical_fisher(
    apply_fn: Callable[[Params, Tree], Tree],
    params: Params,
    data: Tree,
    loss: Loss | str,
    chunk_size: int | None = None,
) -> Operator:
    """Empirical Fisher matrix ``1/B sum_i g_i g_i^T``, ``g_i`` the gradient of example i's own loss at its own label.

    It is the uncentred covariance of the gradient noise: use it for that. It does *not* approximate the Fisher or the
    Gauss-Newton matrix: it vanishes where the network fits every label, its scale has the unit of a squared loss, and
    far from a minimum its eigenvectors can be anything. For the mean squared error it also depends on the loss's scale;
    see the reference.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the gradients are taken, as in `hessian`.
      data: the batch of B examples.
      loss: a `Loss` with a value, or a name in `losses.LOSSES`. Given all outputs, the value must be a mean of one term
        per example. Weights computed from ``data`` alone (PPO's normalised advantages) are allowed without chunks.
      chunk_size: examples to process together, see `plastax.curvature.operators`. Static.

    Returns:
      A positive semi-definite operator over trees like ``params``, of rank at most B.

    Raises:
      ValueError: as `ggn` does, and if ``loss`` does not return a scalar.

    References:
      Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent",
      NeurIPS 2019, eq. 3 and section 3.
    """
    loss, apply_fn, data = chunking.apart(losses.get(loss), apply_fn, data)

    def metric(outputs: Tree, part: Tree) -> Product:
        checks.scalar(loss.value, outputs, part)
        value, grads = jax.value_and_grad(loss.value)(outputs, part)
        checks.finite({"loss": value})
        # A row of the mean's gradient is 1/B of the example's own; one B is the matrix's own.
        size = checks.examples(outputs)
        return _outer(jax.tree.map(lambda g: math.sqrt(size) * g[:, None], grads))

    return sandwich(apply_fn, metric, params, data, chunk_size, loss.finite)


def fisher(
    apply_fn: Callable[[Params, Tree], Tree],
    params: Params,
    data: Tree,
    loss: Loss | str,
    key: Key,
    samples: int = 1,
    chunk_size: int | None = None,
) -> Operator:
    """Fisher matrix by labels drawn from the network's own distribution: a Monte-Carlo estimate of the `ggn`.

    ``1/(B R) sum_ir g_ir g_ir^T``, ``g_ir`` the gradient of example i's loss at draw r. Its mean over keys is the
    Gauss-Newton matrix. One draw is a matrix of rank at most ``B R``: its trace is within a few percent, but its
    spectrum is not that of the mean, and its rank counts draws. For spectra take `ggn`, whose products cost the same.
    Labels are drawn here, once; with chunks, again in every product, with the same result. Beyond the output layer the
    cost of a product does not grow with ``samples``.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the gradients are taken, as in `hessian`.
      data: the batch of B examples.
      loss: a `Loss` with ``sample``, or a name in `losses.LOSSES`.
      key: for the draws; those of an example depend on its place alone, not on ``chunk_size``.
      samples: draws R per example. Static.
      chunk_size: examples to process together, see `plastax.curvature.operators`. Static.

    Returns:
      A positive semi-definite operator over trees like ``params``.

    Raises:
      ValueError: as `ggn` does, and if the loss has no ``sample`` or ``samples`` is not positive.

    References:
      Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, sections 5 and 9. Kunstner
      et al. 2019, eq. 2, on how it differs from `empirical_fisher`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> batch, w, apply = (jnp.eye(2), jnp.zeros(2)), jnp.ones(2), lambda w, batch: batch[0] @ w
      >>> fisher = curvature.fisher(apply, w, batch, "mse", jax.random.key(0), samples=1000)
      >>> ggn = curvature.ggn(apply, w, batch, "mse")
      >>> bool(jnp.allclose(fisher.mv(w), ggn.mv(w), atol=0.1))
      True
    """
    loss, apply_fn, data = chunking.apart(losses.get(loss), apply_fn, data)
    sample = loss.sample
    if sample is None:
        raise ValueError("fisher draws labels with loss.sample, which this loss does not have; ggn needs none")
    checks.key(key)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")

    def draws(output: Tree, example: Tree, place: Array) -> Tree:
        """All draws of one example, ``[R, ...]``."""
        single, given = (jax.tree.map(lambda x: x[None], part) for part in (output, example))
        keys = jax.random.split(jax.random.fold_in(key, place), samples)
        return jax.tree.map(lambda x: x[:, 0], jax.vmap(lambda k: sample(single, given, k))(keys))

    def metric(outputs: Tree, part: tuple[Tree, Array]) -> Product:
        jax.eval_shape(lambda o: sample(o, part[0], key), outputs)  # where labels are still known
        drawn = jax.vmap(draws)(outputs, *part)
        return _outer(jax.tree.map(lambda s: s / math.sqrt(samples * checks.examples(outputs)), drawn))

    placed = (tree.gathered(data), jnp.arange(checks.examples(data)))
    return sandwich(lambda p, part: apply_fn(p, part[0]), metric, params, placed, chunk_size, loss.finite)
