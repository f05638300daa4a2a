"""A stream of permuted observations, for any environment.

Source of the idea: Permuted MNIST, Goodfellow et al., arXiv:1312.6211; in reinforcement learning the "permute" shift
of Juliani and Ash, arXiv:2405.19153.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.rl.environment import EnvironmentStream, GymnaxTask, Spaces, from_gymnax, make, spaces_of
from plastax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Permuted:
    """Any environment whose observation entries get a new order every task.

    The permutation is uniform over all entries of the observation and drawn once a task; an image loses its
    neighbourhoods. Task 0 has the identity. Dynamics, rewards and optimal returns do not change.
    """

    env: str = "CartPole-v1"
    """Id of any gymnax environment with at least two numbers in its observation, or your own: module:object."""

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: unknown ``env``, or one whose observation is a single number."""
        found = spaces_of(self.env)
        if math.prod(found.observation_shape) < 2:
            raise ConfigError(f"stream.env: {self.env!r} has a single number as observation; permuting needs two")
        return found

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `GymnaxTask` with the permutation, int32 ``[entries]``."""
        shape = self.spaces().observation_shape
        entries = math.prod(shape)
        env, params = make(self.env)
        identity = jnp.arange(entries, dtype=jnp.int32)

        def permute(observation: Array, order: Array) -> Array:
            return observation.reshape(-1)[order].reshape(shape)

        def task(key: Key, index: Array) -> GymnaxTask:
            order = jax.random.permutation(jax.random.fold_in(key, index), identity)
            return GymnaxTask(jnp.int32(index), params, jnp.where(index == 0, identity, order))

        return EnvironmentStream(from_gymnax(env, GymnaxTask(jnp.int32(0), params, identity), permute), task)
