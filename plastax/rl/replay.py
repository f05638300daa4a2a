"""Uniform replay: the last steps of a seed's environments, and n-step transitions drawn from them.

The buffer is the trajectory buffer of flashbax: it keeps the last steps ``[N, C]`` of N environments, and draws n of
them in a row. This module says what they are and where episodes and tasks end, which flashbax leaves to its caller. A
step keeps its true successor: after a truncation there is a value to bootstrap from.

References:
  Sutton, "Learning to predict by the methods of temporal differences", 1988 (n-step returns). Pardo et al., "Time
  limits in reinforcement learning", arXiv 1712.00378. flashbax: https://github.com/instadeepai/flashbax.
"""

from __future__ import annotations

from typing import NamedTuple

import flashbax
import jax
import jax.numpy as jnp
from flashbax.buffers.trajectory_buffer import TrajectoryBuffer, TrajectoryBufferSample, TrajectoryBufferState

from plastax.rl.environment import Environment
from plastax.rl.rollout import Transition
from plastax.types import Array, Key


class Steps(NamedTuple):
    """Steps of environments, as they were seen: observations and rewards unscaled. Leading axes ``[N, T]``."""

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


def buffer(rows: int, envs: int, size: int, n: int) -> TrajectoryBuffer:
    """A buffer of the last ``rows`` steps of each environment, which draws ``size`` times n of them, for `transitions`.

    Steps that begin in the newest n - 1 rows are not complete and not drawn.
    """
    made = flashbax.make_trajectory_buffer(
        add_batch_size=envs, sample_batch_size=size, sample_sequence_length=n, period=1, min_length_time_axis=n,
        max_length_time_axis=rows,
    )  # fmt: skip

    def sample(state: TrajectoryBufferState, key: Key) -> TrajectoryBufferSample:
        with jax.numpy_rank_promotion("allow"):  # flashbax relies on it; a program may have forbidden it.
            return made.sample(state, key)

    return made.replace(sample=sample)


def step_like(environment: Environment) -> Steps:
    """One step of zeros, without leading axes. Binary observations are kept as such, in a quarter of the memory."""
    kind = jnp.bool_ if environment.binary else jnp.float32
    observation, no = jnp.zeros(environment.observation_shape, kind), jnp.bool_(False)
    return Steps(observation, jnp.int32(0), jnp.float32(0), no, no, observation)


def steps_of(seen: Transition, environment: Environment) -> Steps:
    """A rollout ``[T, N]`` as steps ``[N, T]``."""
    ends = seen.terminated > 0, seen.truncated > 0
    steps = Steps(seen.observation, seen.action, seen.reward, *ends, seen.final_observation)
    like = step_like(environment)
    return jax.tree.map(lambda x, one: jnp.swapaxes(x, 0, 1).astype(one.dtype), steps, like)


def cut(state: TrajectoryBufferState) -> TrajectoryBufferState:
    """Ends the episodes of the newest row, without a termination: the next row is not their continuation."""
    truncated = state.experience.truncated
    last = (state.current_index - 1) % truncated.shape[1]
    return state.replace(experience=state.experience._replace(truncated=truncated.at[:, last].set(True)))


def clear(state: TrajectoryBufferState) -> TrajectoryBufferState:
    """Without steps."""
    return state.replace(current_index=jnp.zeros_like(state.current_index), is_full=jnp.zeros_like(state.is_full))


def windows(steps: Steps, n: int) -> Steps:
    """All n steps in a row of ``[N, T + n - 1]``, for `transitions`: ``[T * N, n]``."""
    rows = jnp.arange(steps.reward.shape[1] - n + 1)[:, None] + jnp.arange(n)[None]
    return jax.tree.map(lambda x: jnp.swapaxes(x[:, rows], 0, 1).reshape(-1, n, *x.shape[2:]), steps)


def transitions(steps: Steps, gamma: float) -> Transitions:
    """The n-step transitions of n steps in a row, ``[B, n]``. Where an episode ends within them, so does the sum."""
    over = steps.terminated | steps.truncated
    # A step counts unless one before it ended the episode.
    counts = jnp.cumsum(over, axis=1) - over == 0
    number, n = jnp.sum(counts, axis=1), over.shape[1]
    weights = jnp.power(gamma, jnp.arange(n + 1, dtype=jnp.float32))
    return Transitions(
        steps.observation[:, 0].astype(jnp.float32),
        steps.action[:, 0],
        jnp.sum(jnp.where(counts, steps.reward, 0) * weights[None, :n], axis=1),
        steps.successor[jnp.arange(len(number)), number - 1].astype(jnp.float32),
        jnp.where(jnp.any(counts & steps.terminated, axis=1), 0, weights[number]),
    )
