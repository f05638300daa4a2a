"""The loss of deep Q-learning and its targets.

References:
  Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015 (target network, bounded
  error). van Hasselt et al., "Deep reinforcement learning with double Q-learning", arXiv 1509.06461.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax.program import learner
from plastax.program.learner import Network
from plastax.rl.replay import Transitions
from plastax.types import Array, Key, Loss, Model


class ValueBatch(NamedTuple):
    """Observations, actions, and what their values should be; leading axis ``B``. The loss holds targets fixed."""

    observation: Array
    action: Array
    target: Array


def chosen(values: Array, action: Array) -> Array:
    """The values ``[B]`` of actions ``[B]``, of all values ``[B, A]``."""
    # A masked sum, not a gather: gathers (and the scatters of their gradients) are scalar loops on CPU.
    return jnp.sum(jax.nn.one_hot(action, values.shape[-1], dtype=values.dtype) * values, axis=-1)


def targets(batch: Transitions, online: Array, target: Array, double: bool) -> Array:
    """``rewards + discount * Q_target(successor, a)``, ``[B]``.

    Args:
      batch: the transitions.
      online: values ``[B, A]`` of the successors by the network that learns.
      target: the same by the target network.
      double: whether ``online`` chooses the action a (van Hasselt et al., eq. 4), and not ``target``.
    """
    action = jnp.argmax(online if double else target, axis=-1)
    return batch.rewards + batch.discount * chosen(target, action)


def huber(threshold: float) -> Loss:
    """Mean Huber loss of the values of the actions taken, as a function of all values ``[B, A]``.

    ``1/2 d^2`` for errors d up to the threshold, ``threshold * (|d| - threshold / 2)`` beyond it; a threshold of 0
    stands for none. The curvature is its Hessian: one for the chosen action of an example within the threshold.
    """

    def error(values: Array, batch: ValueBatch) -> Array:
        return chosen(values, batch.action) - batch.target

    def value(values: Array, batch: ValueBatch) -> Array:
        d = error(values, batch)
        return jnp.mean(optax.huber_loss(d, delta=threshold) if threshold else 0.5 * jnp.square(d))

    def root(values: Array, batch: ValueBatch) -> Array:
        inside = jnp.abs(error(values, batch)) <= threshold if threshold else jnp.ones(len(values), bool)
        unit = jax.nn.one_hot(batch.action, values.shape[-1], dtype=values.dtype)
        return (inside[:, None] * unit / jnp.sqrt(len(values)).astype(values.dtype))[None]

    def curvature(values: Array, batch: ValueBatch, tangent: Array) -> Array:
        column = root(values, batch)[0]
        return column * jnp.sum(column * tangent, axis=-1, keepdims=True)

    def sample(values: Array, batch: ValueBatch, key: Key) -> Array:
        return root(values, batch)[0] * jax.random.normal(key, (len(values), 1), values.dtype)

    return Loss(value, curvature, root, sample)


def network(threshold: float, model: Model) -> Network:
    """A model of action values and the loss `huber`; it records ``td_loss`` and the mean ``q_value``."""
    loss = huber(threshold)

    def from_outputs(values: Array, batch: ValueBatch) -> tuple[Array, dict[str, Array]]:
        total = loss.value(values, batch)
        return total, {"td_loss": total, "q_value": jnp.mean(chosen(values, batch.action))}

    return learner.network(model, loss, from_outputs, lambda batch: batch.observation)
