"""Kronecker-factored curvature of dense layers: factors, their spectra, and the rank of their product.

A layer with inputs ``a`` (and a one for the bias) and gradients ``g`` of its pre-activations has the Fisher block
``E[a a^T (x) g g^T]``, approximated by ``A (x) G`` with ``A = E[a a^T]`` and ``G = E[g g^T]``. The eigenvalues of the
product are the products of eigenvalues, so its whole spectrum costs two small decompositions.

References:
  Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import linalg
from plastax.types import Array


class Factors(NamedTuple):
    """Kronecker factors of one dense layer.

    Attributes:
      a: ``[d_in + 1, d_in + 1]``, second moments of the inputs; the last row and column are the bias's.
      g: ``[d_out, d_out]``, second moments of the pre-activation gradients.
    """

    a: Array
    g: Array


class Eigenvalues(NamedTuple):
    """Eigenvalues of `Factors`, ascending and not negative: ``a`` ``[d_in + 1]``, ``g`` ``[d_out]``."""

    a: Array
    g: Array


def factors(inputs: Mapping[str, Array], tap_grads: Mapping[str, Array]) -> dict[str, Factors]:
    """Kronecker factors of the empirical Fisher matrix, from what one backward pass leaves.

    The loss is a mean over the batch, so an example's own gradient is ``B`` times its row of ``tap_grads``.

    Args:
      inputs: layer name -> inputs ``[B, d_in]``.
      tap_grads: layer name -> gradient of the *mean* loss with respect to the pre-activations, ``[B, d_out]``.

    Returns:
      Layer name -> factors, means over the batch, in the order of ``inputs``.

    Raises:
      ValueError: if the two have different layers, or arrays that are no matrices of one batch.

    References:
      Martens and Grosse 2015, section 3 (inputs extended by a one, as here).
    """
    if set(inputs) != set(tap_grads):
        message = f"inputs are of layers {sorted(inputs)}, gradients of {sorted(tap_grads)}"
        raise ValueError(message)
    return {name: _layer(name, a, tap_grads[name]) for name, a in inputs.items()}


@jax.default_matmul_precision("highest")
def _layer(name: str, a: Array, g: Array) -> Factors:
    if a.ndim != 2 or g.ndim != 2 or a.shape[0] != g.shape[0]:
        message = f"layer {name!r} takes inputs [B, d_in] and gradients [B, d_out], got {a.shape} and {g.shape}"
        raise ValueError(message)
    examples = a.shape[0]
    a = jnp.concatenate([a, jnp.ones((examples, 1), a.dtype)], axis=1)
    return Factors(a.T @ a / examples, examples * (g.T @ g))


def eigenvalues(pair: Factors) -> Eigenvalues:
    """Eigenvalues of both factors of a layer; rounding below zero is clipped."""
    return Eigenvalues(*(jnp.maximum(linalg.eigvalsh(x), 0.0) for x in pair))


def effective_rank(pair: Factors | Eigenvalues) -> Eigenvalues:
    """Effective ranks, exponentials of the eigenvalues' entropy, of both factors.

    That of the Kronecker product is the product of the two. A zero factor has rank zero.

    Args:
      pair: a layer's factors, or their eigenvalues if those are at hand.

    Returns:
      The two effective ranks, scalars, under the factors' names.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    return Eigenvalues(*(_exp_entropy(x) for x in _values(pair)))


def rank(pair: Factors | Eigenvalues, eps: float | Array) -> Array:
    """Number of eigenvalues above ``eps`` of the Kronecker product, without forming it.

    Args:
      pair: a layer's factors, or their eigenvalues if those are at hand.
      eps: threshold, not negative, a scalar or ``[E]``.

    Returns:
      int32, of the shape of ``eps``.
    """
    a, g = _values(pair)
    products = jnp.sort((a[:, None] * g[None, :]).ravel())
    below = jnp.searchsorted(products, jnp.asarray(eps, products.dtype), side="right")
    return (products.size - below).astype(jnp.int32)


def _values(pair: Factors | Eigenvalues) -> Eigenvalues:
    return eigenvalues(pair) if isinstance(pair, Factors) else pair


def _exp_entropy(values: Array) -> Array:
    total = jnp.sum(values)
    p = values / jnp.where(total == 0, 1.0, total)
    return jnp.where(total == 0, 0.0, jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))))
