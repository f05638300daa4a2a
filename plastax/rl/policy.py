"""Action distributions as pure functions of a network's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.curvature.losses import PolicyHead
from plastax.rl.environment import Continuous, Discrete
from plastax.types import Array, Key

Outputs = dict[str, Array]


class Policy(NamedTuple):
    """One family of action distributions; leading axes are free.

    Attributes:
      head: its name in `plastax.curvature.losses`, which knows its Fisher information.
      noise: ``(key, shape) -> [*shape, ...]``: the randomness of ``shape`` actions, drawn before the rollout's scan.
      sample: ``(outputs, noise) -> action``, not yet clipped.
      log_prob: ``(outputs, action) -> [...]``.
      entropy: ``(outputs) -> [...]``, in nats.
      to_environment: action -> what `Environment.step` gets: continuous actions are clipped to the bounds.
    """

    head: PolicyHead
    noise: Callable[[Key, tuple[int, ...]], Array]
    sample: Callable[[Outputs, Array], Array]
    log_prob: Callable[[Outputs, Array], Array]
    entropy: Callable[[Outputs], Array]
    to_environment: Callable[[Array], Array]


def make(space: Discrete | Continuous) -> Policy:
    """The categorical policy of a discrete space, the diagonal Gaussian one of a continuous space."""
    return categorical(space.n) if isinstance(space, Discrete) else gaussian(space)


def categorical(num_actions: int) -> Policy:
    """Softmax policy; ``outputs["policy"]`` are logits ``[..., num_actions]``, actions int32 ``[...]``.

    It samples by the Gumbel-max trick, so that all noise of a rollout is drawn at once.
    """

    def noise(key: Key, shape: tuple[int, ...]) -> Array:
        return jax.random.gumbel(key, (*shape, num_actions), jnp.float32)

    def sample(outputs: Outputs, noise: Array) -> Array:
        return jnp.argmax(outputs["policy"] + noise, axis=-1).astype(jnp.int32)

    def log_prob(outputs: Outputs, action: Array) -> Array:
        # A masked sum, not a gather: gathers (and the scatters of their gradients) are scalar loops on CPU.
        chosen = jax.nn.one_hot(action, num_actions, dtype=outputs["policy"].dtype)
        return jnp.sum(chosen * jax.nn.log_softmax(outputs["policy"]), axis=-1)

    def entropy(outputs: Outputs) -> Array:
        log_p = jax.nn.log_softmax(outputs["policy"])
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return Policy("categorical", noise, sample, log_prob, entropy, lambda action: action)


def gaussian(space: Continuous) -> Policy:
    """Diagonal Gaussian policy; ``outputs`` has ``policy`` (the mean) and ``log_std``, both ``[..., size]``.

    Log-probabilities are of the unclipped action, as in CleanRL and rejax.
    """

    def noise(key: Key, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(key, (*shape, space.size), jnp.float32)

    def sample(outputs: Outputs, noise: Array) -> Array:
        return outputs["policy"] + jnp.exp(outputs["log_std"]) * noise

    def log_prob(outputs: Outputs, action: Array) -> Array:
        z = (action - outputs["policy"]) * jnp.exp(-outputs["log_std"])
        return jnp.sum(-0.5 * jnp.square(z) - outputs["log_std"] - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(outputs: Outputs) -> Array:
        return jnp.sum(outputs["log_std"] + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def to_environment(action: Array) -> Array:
        low, high = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), action.shape) for x in (space.low, space.high))
        return jnp.clip(action, low, high)

    return Policy("gaussian", noise, sample, log_prob, entropy, to_environment)
