"""Rollouts of many environments, and the advantages of their actions.

References:
  Schulman et al., "High-dimensional continuous control using generalized advantage estimation", arXiv 1506.02438.
  Pardo et al., "Time limits in reinforcement learning", arXiv 1712.00378: bootstrapping at a truncation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.rl.environment import Environment
from plastax.types import Array, Key, Tree


class Actors(NamedTuple):
    """A seed's environments between two rollouts; leading axis ``N``, `episode_return` unscaled."""

    state: Tree
    observation: Array
    episode_return: Array


class Transition(NamedTuple):
    """One step of all environments; leading axes ``[T, N]`` after a rollout. ``aside`` is what ``act`` gave beside."""

    observation: Array
    action: Array
    aside: Tree
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    finished_return: Array


def advantages(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, gamma: float, decay: float
) -> Array:
    """Generalised advantage estimates, ``[T, N]`` like every argument.

    ``next_value`` is the value of the true successor (before an automatic reset). A termination ends the return. A
    truncation ends the sum only: the successor's value stands for the rest (Pardo et al. 2018).
    """
    delta = reward + gamma * next_value * (1 - terminated) - value
    carry = gamma * decay * (1 - jnp.maximum(terminated, truncated))

    def step(advantage: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, carry = x
        advantage = delta + carry * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, carry), reverse=True, unroll=8)[1]


def successor_values(values: Callable[[Array], Array], value: Array, seen: Transition) -> Array:
    """Values of the true successors, ``[T, N]``; without meaning after a termination, where no value counts.

    A step's successor is the state that the next step sees, whose value is there, unless the episode or the rollout
    ends. Only truncated steps and the last one have successors that are no other step's state. They are few, so they
    are evaluated one time after another, at all N environments.

    Args:
      values: the critic, ``observations [N, ...] -> [N]``.
      value: of the states themselves, ``[T, N]``.
      seen: the rollout.
    """
    cut = seen.truncated.at[-1].set(1) > seen.terminated

    def evaluate(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        due, found = carry
        time = jnp.argmax(due)
        own = jnp.where(cut[time], values(seen.final_observation[time]), found[time])
        return due.at[time].set(False), found.at[time].set(own)

    following = jnp.concatenate([value[1:], value[-1:]])
    return jax.lax.while_loop(lambda carry: carry[0].any(), evaluate, (cut.any(axis=1), following))[1]


def reset_actors(environment: Environment, num_envs: int, key: Key, task: Tree) -> Actors:
    """All environments at the start of an episode."""
    observation, state = jax.vmap(environment.reset, in_axes=(0, None))(jax.random.split(key, num_envs), task)
    return Actors(state, observation, jnp.zeros(num_envs, jnp.float32))


def rollout(
    environment: Environment,
    act: Callable[[Array, Tree], tuple[Array, Tree]],
    actors: Actors,
    noise: tuple[Tree, Tree],
    task: Tree,
) -> tuple[Actors, Transition]:
    """Steps every environment T times.

    Args:
      environment: the environment.
      act: ``(observations [N, ...], noise) -> (actions, aside)``.
      actors: before.
      noise: leading axes ``[T, N]``: of ``act``, and from `Environment.noise`. All randomness is drawn before the scan,
        as one large vectorised computation.
      task: of the environments.
    """
    advance = jax.vmap(environment.advance, in_axes=(0, 0, 0, None))

    def step(actors: Actors, noise: tuple[Tree, Tree]) -> tuple[Actors, Transition]:
        act_noise, step_noise = noise
        action, aside = act(actors.observation, act_noise)
        state, out = advance(step_noise, actors.state, action, task)
        total = actors.episode_return + out.reward
        done = out.terminated | out.truncated
        transition = Transition(
            actors.observation,
            action,
            aside,
            out.reward,
            out.terminated.astype(jnp.float32),
            out.truncated.astype(jnp.float32),
            out.final_observation,
            jnp.where(done, total, 0.0),
        )
        return Actors(state, out.observation, jnp.where(done, 0.0, total)), transition

    return jax.lax.scan(step, actors, noise)
