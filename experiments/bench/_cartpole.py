"""CartPole-v1 for machines without gymnax: the same numbers as gymnax's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from plastax.types import Array, Key, Tree

State = tuple[Array, Array]
"""Position, velocity, angle and angular velocity, float32 ``[4]``; steps so far, int32."""


class Pushes:
    """Two actions: 0 to the left, 1 to the right."""

    n = 2

    def sample(self, key: Key) -> Array:
        """One of them."""
        return jax.random.bernoulli(key).astype(jnp.int32)


class CartPole:
    """In the form that `plastax.rl.environment.from_gymnax` takes; without parameters."""

    def action_space(self, params: Tree) -> Pushes:
        """See `Pushes`."""
        return Pushes()

    def reset_env(self, key: Key, params: Tree) -> tuple[Array, State]:
        """The start of an episode."""
        state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return state, (state, jnp.int32(0))

    def step_env(self, key: Key, state: State, action: Array, params: Tree) -> tuple[Any, ...]:
        """One Euler step of 0.02 s: a pole of 0.1 kg and half a length of 0.5 m on a cart of 1 kg, pushed with 10 N."""
        (x, speed, angle, spin), steps = state
        force = 10.0 * action - 10.0 * (1 - action)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        push = (force + 0.05 * spin**2 * sine) / 1.1
        spin_up = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine**2 / 1.1))
        speed_up = push - 0.05 * spin_up * cosine / 1.1
        moved = jnp.stack([x + 0.02 * speed, speed + 0.02 * speed_up, angle + 0.02 * spin, spin + 0.02 * spin_up])
        fallen = (jnp.abs(moved[0]) > 2.4) | (jnp.abs(moved[2]) > 12 * 2 * jnp.pi / 360)
        return moved, (moved, steps + 1), jnp.float32(1.0), fallen, {}

    def is_truncated(self, state: State, params: Tree) -> Array:
        """After 500 steps."""
        return state[1] >= 500
