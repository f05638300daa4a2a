"""Uniform replay: the last steps of a seed's environments, and n-step transitions drawn from them.

The steps lie in rows ``[C, N]``, one row a step of all N environments. Where the next rows go depends on the clock
alone, which all seeds share, so adding them is one copy and no scatter. Episodes are cut where they end, and a step
keeps its true successor: after a truncation there is a value to bootstrap from.

The trajectory buffer of flashbax 0.1.3 takes 0.86 to 0.99 of the time on a CPU (8 seeds, 1 to 3 steps, vectors and
games), but leaves the ends of episodes and tasks to its caller, which are most of the code below.

References:
  Sutton, "Learning to predict by the methods of temporal differences", 1988 (n-step returns). Pardo et al., "Time
  limits in reinforcement learning", arXiv 1712.00378.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.rl.environment import Environment
from plastax.rl.rollout import Transition
from plastax.types import Array, Key


class Steps(NamedTuple):
    """Steps of N environments in rows ``[C, N]``, as they were seen: observations and rewards unscaled."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    successor: Array


class Transitions(NamedTuple):
    """n-step transitions; leading axis ``B``.

    Attributes:
      observation: float32, where they start.
      action: int32, of the first step.
      rewards: float32, discounted and summed over at most n steps, until the episode ends.
      successor: float32, the true observation after the last of these steps.
      discount: of the successor's value: ``gamma`` to the number of steps, or 0 after a termination.
    """

    observation: Array
    action: Array
    rewards: Array
    successor: Array
    discount: Array


def steps_of(seen: Transition) -> Steps:
    """A rollout ``[T, N]`` as steps."""
    ends = seen.terminated > 0, seen.truncated > 0
    return Steps(seen.observation, seen.action, seen.reward, *ends, seen.final_observation)


def empty(environment: Environment, rows: int, envs: int) -> Steps:
    """Room for ``rows`` rows."""
    shape = (rows, envs)
    kind = jnp.bool_ if environment.binary else jnp.float32
    observation = jnp.zeros((*shape, *environment.observation_shape), kind)
    action, reward = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    return Steps(
        observation,
        action,
        reward,
        jnp.zeros(shape, jnp.bool_),
        jnp.zeros(shape, jnp.bool_),
        jnp.zeros_like(observation),
    )


def add(steps: Steps, new: Steps, row: Array) -> Steps:
    """Replaces rows from ``row`` on, int32 and the same for all seeds; the rows must not reach over the end."""

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), row, axis=0)

    return jax.tree.map(put, steps, new)


def cut(steps: Steps, row: Array) -> Steps:
    """Ends the episodes of a row, without a termination: the next row is not their continuation."""
    ends = jnp.ones((1, steps.truncated.shape[1]), jnp.bool_)
    return steps._replace(truncated=jax.lax.dynamic_update_slice_in_dim(steps.truncated, ends, row, axis=0))


def transitions(steps: Steps, row: Array, env: Array, n: int, gamma: float) -> Transitions:
    """The n-step transitions that start at ``(row, env)``, int32 ``[B]`` each; the last row is followed by the first.

    Where an episode ends within n steps, so does the sum.
    """
    rows = (row[:, None] + jnp.arange(n)[None]) % steps.reward.shape[0]
    terminated, truncated, reward = (x[rows, env[:, None]] for x in (steps.terminated, steps.truncated, steps.reward))
    over = terminated | truncated
    # A step counts unless one before it ended the episode.
    counts = jnp.cumsum(over, axis=1) - over == 0
    last = (row + jnp.sum(counts, axis=1) - 1) % steps.reward.shape[0]
    weights = jnp.power(gamma, jnp.arange(n + 1, dtype=jnp.float32))
    return Transitions(
        steps.observation[row, env].astype(jnp.float32),
        steps.action[row, env],
        jnp.sum(jnp.where(counts, reward, 0) * weights[None, :n], axis=1),
        steps.successor[last, env].astype(jnp.float32),
        jnp.where(jnp.any(counts & terminated, axis=1), 0, weights[jnp.sum(counts, axis=1)]),
    )


def sample(steps: Steps, key: Key, size: int, filled: Array, row: Array, n: int, gamma: float) -> Transitions:
    """``size`` transitions, drawn uniformly with replacement.

    Args:
      steps: the buffer.
      key: of the draw.
      size: B.
      filled: number of the newest rows to draw from, at least n.
      row: where the next row goes.
      n: steps of a transition; those that begin in the newest n - 1 rows are not complete and not drawn.
      gamma: discount.
    """
    rows, envs = steps.reward.shape
    row_key, env_key = jax.random.split(key)
    start = jax.random.randint(row_key, (size,), 0, filled - n + 1)
    env = jax.random.randint(env_key, (size,), 0, envs)
    return transitions(steps, (row - filled + start) % rows, env, n, gamma)
