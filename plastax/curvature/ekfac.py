"""What Kronecker factors are good for: operators, whole spectra, measured errors, and the EKFAC correction.

EKFAC keeps the eigenvectors of a layer's two factors and replaces the eigenvalues, which are products, by the second
moments of the examples' gradients along them. Of all matrices with these eigenvectors that is the nearest to the
layer's block of the Fisher matrix in the Frobenius norm, so never farther than the factors' own product.

References:
  George, Laurent, Bouthillier, Ballas and Vincent, "Fast approximate natural gradient descent in a Kronecker-factored
  eigenbasis", NeurIPS 2018, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plastax import linalg, tree
from plastax.curvature.kronecker import Factors, Kind, backward, eigenvalues, rows, sum_over
from plastax.curvature.operators import dense
from plastax.curvature.spectrum import Spectrum, from_eigenvalues
from plastax.types import Array, Key, Loss, Operator, Params, Tapped, Tree


class Ekfac(NamedTuple):
    """One layer's block of a Fisher matrix in the eigenbasis of its Kronecker factors.

    Attributes:
      a: ``[d_a, d_a]``, orthonormal eigenvectors of the input factor, in columns.
      g: ``[d_out, d_out]``, those of the gradient factor.
      moments: ``[d_a, d_out]``, not negative: the eigenvalue that belongs to a pair of them.
    """

    a: Array
    g: Array
    moments: Array


class Error(NamedTuple):
    """How far a layer's block is from the exact one: scalars.

    Attributes:
      relative: Frobenius norm of the difference, in units of the exact block's.
      cosine: of the angle between the two blocks as vectors; 1 if they differ by a factor only.
    """

    relative: Array
    cosine: Array


@jax.default_matmul_precision("highest")
def ekfac(
    network: Tapped,
    loss: Loss | str,
    params: Params,
    data: Tree,
    factors: Mapping[str, Factors],
    *,
    kind: Kind = "exact",
    key: Key | None = None,
) -> dict[str, Ekfac]:
    """The EKFAC correction of Kronecker factors, from one forward pass and the backward passes of ``kind``.

    With eigenvectors u of A and v of G, the moment of a pair is ``sum_ki (u^T D_ki v)^2``, D_ki being example i's
    gradient of the layer's weights, summed over the places that share them.

    Args:
      network: what `plastax.models.tapped` makes of a module.
      loss: a `Loss`, or one of the names in `losses.LOSSES`.
      params: where the moments are taken.
      data: the batch, leading axis ``B``.
      factors: layer name -> factors, whose eigenvectors are kept: of this batch, or a running average.
      kind: of the gradients, as for `kronecker.kronecker`; ``sampled`` with the factors' own key has their draws.
      key: for the draws of ``sampled``.

    Returns:
      Layer name -> block, in the order of ``factors``; NaN where a factor is not finite.

    Raises:
      ValueError: as `kronecker.kronecker`, and if ``factors`` has a layer that the network has not.

    References:
      George et al. 2018, section 3.1.
    """
    inputs, pull, cotangents = backward(network, loss, params, data, kind, key)
    if not set(factors) <= set(inputs):
        message = f"factors are of layers {sorted(factors)}, the network has {sorted(inputs)}"
        raise ValueError(message)
    bases = {name: (_eigenvectors(pair.a), _eigenvectors(pair.g)) for name, pair in factors.items()}
    projected = {name: rows(inputs[name]) @ a for name, (a, _) in bases.items()}

    def moments(cotangent: Tree) -> dict[str, Array]:
        grads = pull(cotangent)
        return {name: _moments(x, grads[name], bases[name][1]) for name, x in projected.items()}

    totals = sum_over(moments, cotangents)
    return {name: Ekfac(*bases[name], totals[name]) for name in factors}


def _eigenvectors(x: Array) -> Array:
    # NaN must not reach the eigensolver: LAPACK may not return from it.
    finite = jnp.all(jnp.isfinite(x))
    return jnp.where(finite, linalg.eigh(jnp.where(finite, x, 0.0))[1], jnp.nan)


def _moments(x: Array, g: Array, basis: Array) -> Array:
    """Sum over examples of the squares of ``sum_t x_t g_t^T``: ``x`` ``[B, T, d_a]`` is in its basis already."""
    g = g.reshape(*x.shape[:2], -1) @ basis
    if x.shape[1] == 1:
        return jnp.square(x[:, 0]).T @ jnp.square(g[:, 0])
    return sum_over(lambda pair: jnp.square(pair[0].T @ pair[1]), (x, g))


def operator(blocks: Mapping[str, Factors | Ekfac], params: Params) -> Operator:
    """The block-diagonal matrix of all layers over the parameter tree.

    A layer's parameters are ``<layer>/kernel`` and, if its factors have a row for it, ``<layer>/bias``. Parameters of
    no layer (norms, scales) have zero rows and columns.

    Args:
      blocks: layer name -> Kronecker factors or their correction.
      params: a tree of the parameters' shapes.

    Raises:
      ValueError: if a layer has no kernel in ``params``, or one of another shape.
    """
    shapes = {name: x.shape for name, x in tree.named_leaves(params).items()}
    for name, block in blocks.items():
        size = block.a.shape[0], block.g.shape[0]
        kernel, bias = (shapes.get(_name(name, part)) for part in ("kernel", "bias"))
        rows = math.prod(kernel[:-1]) if kernel else 0
        if kernel is None or kernel[-1] != size[1] or size[0] not in (rows, rows + (bias is not None)):
            message = f"layer {name!r} has factors of sizes {size}; its kernel is {kernel}, its bias {bias}"
            raise ValueError(message)

    @jax.default_matmul_precision("highest")
    def product(v: Tree) -> Tree:
        leaves, out = tree.named_leaves(v), {}
        for name, block in blocks.items():
            kernel = leaves[_name(name, "kernel")]
            done = _multiply(block, _weights(name, block, leaves))
            rows = kernel.size // kernel.shape[-1]
            out[_name(name, "kernel")] = done[:rows].reshape(kernel.shape)
            if len(done) > rows:
                out[_name(name, "bias")] = done[rows]
        return tree.map_named(lambda name, x: out[name] if name in out else jnp.zeros_like(x), v)

    return Operator(product, params)


def _name(layer: str, part: str) -> str:
    return f"{layer}/{part}" if layer else part


def _weights(layer: str, block: Factors | Ekfac, leaves: Mapping[str, Array]) -> Array:
    """The layer's part of the parameters as ``[d_a, d_out]``, with the bias last if its factors have a row for it."""
    kernel = leaves[_name(layer, "kernel")]
    kernel = kernel.reshape(-1, kernel.shape[-1])
    if block.a.shape[0] == kernel.shape[0]:
        return kernel
    return jnp.concatenate([kernel, leaves[_name(layer, "bias")][None]])


def _multiply(block: Factors | Ekfac, v: Array) -> Array:
    if isinstance(block, Factors):
        return block.a @ v @ block.g
    return block.a @ (block.moments * (block.a.T @ v @ block.g)) @ block.g.T


def spectrum(blocks: Mapping[str, Factors | Ekfac]) -> Spectrum:
    """All eigenvalues of the block-diagonal matrix of the layers, exactly.

    Every eigenvalue becomes a node; for ranks of factors alone, `kronecker.rank` needs no products.

    Args:
      blocks: layer name -> Kronecker factors or their correction; together P parameters.

    Returns:
      A complete spectrum of ``dim`` P, see `from_eigenvalues`.
    """

    def values(block: Factors | Ekfac) -> Array:
        if isinstance(block, Ekfac):
            return block.moments.ravel()
        a, g = eigenvalues(block)
        return (a[:, None] * g[None, :]).ravel()

    joined = jnp.concatenate([values(block) for block in blocks.values()])
    return from_eigenvalues(joined, joined.size)


@jax.default_matmul_precision("highest")
def errors(blocks: Mapping[str, Factors | Ekfac], exact: Operator) -> dict[str, Error]:
    """How well every layer's block approximates that of an exact matrix, which is formed: for small networks.

    Args:
      blocks: layer name -> Kronecker factors or their correction.
      exact: over the whole parameter tree, such as `operators.ggn` for factors of the ``exact`` kind.

    Returns:
      Layer name -> error; where the exact block is zero, ``relative`` is 0 or infinite.
    """
    whole, approximate = dense(exact), dense(operator(blocks, exact.like))
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), exact.like))
    places = tree.named_leaves(unravel(jnp.arange(flat.size).astype(flat.dtype)))
    out = {}
    for name, block in blocks.items():
        at = _weights(name, block, places).ravel().astype(jnp.int32)
        found, true = (x[jnp.ix_(at, at)] for x in (approximate, whole))
        distance, size, own = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (found - true, true, found))
        both = size * own
        cosine = jnp.where(both > 0, jnp.sum(found * true) / jnp.where(both > 0, both, 1.0), 1.0 * (size == own))
        relative = jnp.where(distance == 0, 0.0, distance / size)
        out[name] = Error(relative, cosine)
    return out
