"""Adam with one step count for each parameter entry, for methods that restart some entries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.types import Array, Params, Tree


class AdamPerParameterState(NamedTuple):
    """State of `adam_per_parameter`: three trees like the parameters.

    Attributes:
      count: int32, steps since the entry was last cleared.
      mu: decaying mean of its gradient, in single precision at least.
      nu: decaying mean of its squared gradient, likewise.
    """

    count: Tree
    mu: Tree
    nu: Tree


def adam_per_parameter(
    learning_rate: float | Array | optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam whose bias correction counts the steps of each entry: ``mhat = m / (1 - b1^t_i)``.

    It equals `optax.adam` until a method clears the moments of some entries, as replacing units does. After that a
    shared count corrects nothing, although the cleared moments start from zero again. The mean of squared gradients
    then lags behind the mean, and the k-th step is too long by ``(1 - b1^k) / sqrt(1 - b2^k)``: 3.2 in the first, at
    most 6.6 with the usual constants. The counts cost as much memory as a third moment. A schedule of the learning
    rate counts the optimiser's steps.

    References:
      Kingma and Ba, arXiv 1412.6980, algorithm 1; the count for each entry is that of Dohare et al., Nature 632, 2024
      (their AdamGnT).

    Examples:
      >>> from plastax import methods
      >>> tx = methods.adam_per_parameter(0.1)
      >>> params = {"w": jnp.ones(1)}
      >>> updates, _ = tx.update({"w": jnp.full(1, 5.0)}, tx.init(params), params)
      >>> print(jnp.round(updates["w"], 3))
      [-0.1]
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
