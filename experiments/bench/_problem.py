"""The problem of the curvature benchmark: a ReLU network, softmax cross-entropy and random data, as plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature.operators import flatten
from plastax.types import Array, Key

Params = list[tuple[Array, Array]]
"""Weights ``[d_in, d_out]`` and biases ``[d_out]``, layer by layer."""
Batch = tuple[Array, Array]
"""Inputs ``[B, d_in]`` and labels ``[B]``."""


class Problem(NamedTuple):
    """One network, its batch, and what is asked about it.

    Attributes:
      name: shown in the table.
      widths: of the input, the hidden layers and the output.
      params: drawn with He's initialisation.
      batch: drawn from normal and uniform distributions.
      vector: a tree like ``params``, normal: what products are taken with.
      key: for Lanczos start vectors.
      order: Lanczos steps.
      probes: of the quadrature.
    """

    name: str
    widths: tuple[int, ...]
    params: Params
    batch: Batch
    vector: Params
    key: Key
    order: int
    probes: int

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def examples(self) -> int:
        """Of the batch."""
        return self.batch[0].shape[0]

    def product_flops(self, linearised: bool) -> float:
        """Operations in the matrix products of one Hessian product, with the primal pass or without."""
        weights = [a * b for a, b in zip(self.widths, self.widths[1:])]
        # The first layer's inputs have no tangents and need no gradients.
        all_, first = (12, 8) if linearised else (16, 10)
        return float(self.examples * (all_ * sum(weights) - first * weights[0]))

    def factor_flops(self) -> float:
        """Operations in the matrix products of all layers' Kronecker factors."""
        return 2.0 * self.examples * sum((a + 1) ** 2 + b**2 for a, b in zip(self.widths, self.widths[1:]))


def make(name: str, widths: Sequence[int], examples: int, order: int, probes: int) -> Problem:
    """The problem of these sizes, always the same."""
    params_key, vector_key, x_key, y_key, key = jax.random.split(jax.random.key(0), 5)
    batch = (jax.random.normal(x_key, (examples, widths[0])), jax.random.randint(y_key, (examples,), 0, widths[-1]))
    params = initial(params_key, widths)
    flat, unravel = ravel_pytree(params)
    vector = unravel(jax.random.normal(vector_key, flat.shape))
    return Problem(name, tuple(widths), params, batch, vector, key, order, probes)


def initial(key: Key, widths: Sequence[int]) -> Params:
    """He's initialisation, biases zero."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jnp.sqrt(2.0 / a) * jax.random.normal(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, widths, widths[1:])
    ]


def loss(params: Params, batch: Batch) -> Array:
    """The mean loss, a scalar."""
    return tapped_loss(params, [], batch)[0]


def tapped_loss(params: Params, taps: Sequence[Array], batch: Batch) -> tuple[Array, list[Array]]:
    """(mean loss with ``taps`` added to the pre-activations, the layers' inputs); no taps are none added."""
    x, labels = batch
    inputs = []
    for layer, (w, b) in enumerate(params):
        x = jax.nn.relu(x) if layer else x
        inputs.append(x)
        x = x @ w + b[None]
        x = x + taps[layer] if taps else x
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean(), inputs


def vector_product(params: Params, batch: Batch) -> Callable[[Array], Array]:
    """Plastax's product as a function of vectors, linearised once."""
    return flatten(curvature.hessian(loss, params, data=batch)).mv


def no_taps(problem: Problem) -> list[Array]:
    """Zeros of the shapes of the pre-activations."""
    return [jnp.zeros((problem.examples, width)) for width in problem.widths[1:]]


def start_vector(problem: Problem) -> Array:
    """Where every Lanczos run that can be told starts, ``[P]``."""
    return ravel_pytree(problem.vector)[0]


def flat(tree: Any) -> np.ndarray:
    """A tree as one vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def nodes(t: Any) -> np.ndarray:
    """Ritz values, ascending, of a tridiagonal matrix ``[K, K]``."""
    return np.linalg.eigvalsh(np.asarray(t, np.float64))


def mean_and_error(traces: Any) -> np.ndarray:
    """Mean over probes and its standard error, ``[2]``."""
    traces = np.asarray(traces, np.float64)
    return np.array([traces.mean(), traces.std(ddof=1) / np.sqrt(traces.size)])
