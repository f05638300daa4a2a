"""Adam with a step count for every parameter entry, for methods that restart some of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.types import Array, Params, Tree


class AdamPerParameterState(NamedTuple):
    """State of `adam_per_parameter`, three trees like the parameters.

    Attributes:
      count: int32, steps since the entry was last cleared.
      mu: decaying mean of its gradient.
      nu: decaying mean of its squared gradient; both in single precision at least.
    """

    count: Tree
    mu: Tree
    nu: Tree


def adam_per_parameter(
    learning_rate: float | Array | optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam whose bias correction counts the steps of every entry by itself: ``mhat = m / (1 - b1^t_i)``.

    `optax.adam` until a method clears the moments of some entries, as replacing units does. From there, a shared count
    corrects nothing any more, while the moments start from zero again: the squared gradient's lags behind the mean, and
    steps are too long, by ``(1 - b1^k) / sqrt(1 - b2^k)`` in the k-th (3.2 in the first, at most 6.6 with the usual
    constants). With a count of its own an entry starts anew. It costs the memory of a third moment. A schedule of the
    learning rate counts the steps of all.

    References:
      Kingma and Ba, arXiv 1412.6980, algorithm 1; the count of each entry is that of Dohare et al., Nature 632, 2024
      (their AdamGnT).
    """
    if callable(learning_rate):
        return optax.chain(adam_per_parameter(1.0, b1, b2, eps), optax.scale_by_schedule(learning_rate))

    def init(params: Params) -> AdamPerParameterState:
        zeros = tree.wide(jax.tree.map(jnp.zeros_like, params))
        return AdamPerParameterState(
            jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), params), zeros, jax.tree.map(jnp.copy, zeros)
        )

    def update(
        updates: Tree, state: AdamPerParameterState, params: Params | None = None, **_: object
    ) -> tuple[Tree, AdamPerParameterState]:
        given, updates = updates, tree.wide(updates)
        count = jax.tree.map(lambda t: t + 1, state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)

        def step(t: Array, m: Array, v: Array) -> Array:
            steps = t.astype(m.dtype)
            mhat, vhat = m / (1 - jnp.power(b1, steps)), v / (1 - jnp.power(b2, steps))
            return -learning_rate * mhat / (jnp.sqrt(vhat) + eps)

        return tree.cast(jax.tree.map(step, count, mu, nu), given), AdamPerParameterState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
