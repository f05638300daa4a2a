"""Probe environments whose values and best actions are known in closed form.

Every toy isolates one thing that an agent can get wrong; the idea is that of rejax's test environments (written
afresh): a constant reward (is there a value function), a reward that depends on the observation (does it see), two
steps (does it discount), a reward that depends on the action (does the policy learn), on both (do they work together),
and an episode that is only ever truncated (does it bootstrap there).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.rl.environment import Continuous, Discrete, Environment, EnvironmentStream, Timestep
from plastax.types import Array, Key


class ToyTask(NamedTuple):
    number: Array


class ToyState(NamedTuple):
    observation: Array  # float32 [1], also the whole state but for the clock
    time: Array  # int32, steps since the episode's start


class Toy(NamedTuple):
    """A toy and what is known about it.

    Attributes:
      stream: the same task for ever.
      observations: [n, 1], all observations that occur.
      values: discount -> [n], the best value of each of them.
      best: [n] best actions (int32 scalars or float32 [1] each), None where the action does not matter.
    """

    stream: EnvironmentStream
    observations: Array
    values: Callable[[float], Array]
    best: Array | None


Move = Callable[[ToyState, Array], tuple[Array, Array, bool | Array, bool | Array]]
"""(state, action) -> (next observation, reward, terminated, truncated)."""


def constant_reward(continuous: bool = False) -> Toy:
    """Reward 1, then the end: value 1."""
    stream = _stream(_zero, lambda state, _: (state.observation, 1.0, True, False), continuous)
    return Toy(stream, jnp.zeros((1, 1)), lambda discount: jnp.ones(1), None)


def observation_reward(continuous: bool = False) -> Toy:
    """The observation, 1 or -1, is the reward, then the end: it is the value too."""

    def move(state: ToyState, action: Array) -> tuple[Array, Array, bool, bool]:
        del action
        return state.observation, state.observation[0], True, False

    stream = _stream(_sign, move, continuous)
    return Toy(stream, SIGNS, lambda discount: SIGNS[:, 0], None)


def two_steps(continuous: bool = False) -> Toy:
    """Observation 0 with reward 0, observation 1 with reward 1, the end: values discount and 1."""

    def move(state: ToyState, action: Array) -> tuple[Array, Array, Array, bool]:
        del action
        return jnp.ones(1), state.observation[0], state.time == 1, False

    stream = _stream(_zero, move, continuous)
    return Toy(stream, jnp.array([[0.0], [1.0]]), lambda discount: jnp.array([discount, 1.0]), None)


def action_reward(continuous: bool = False) -> Toy:
    """One action is right, then the end. Discrete: action 1 gives 1. Continuous: 1 - (action - 0.5)^2."""
    best = jnp.array([[0.5]]) if continuous else jnp.array([1], jnp.int32)

    def move(state: ToyState, action: Array) -> tuple[Array, Array, bool, bool]:
        return state.observation, _match(action, best[0]), True, False

    return Toy(_stream(_zero, move, continuous), jnp.zeros((1, 1)), lambda discount: jnp.ones(1), best)


def matching_reward(continuous: bool = False) -> Toy:
    """The right action depends on the observation, 1 or -1: action 1 or 0, or half the observation; value 1."""
    best = 0.5 * SIGNS if continuous else jnp.array([1, 0], jnp.int32)

    def move(state: ToyState, action: Array) -> tuple[Array, Array, bool, bool]:
        right = jnp.where(state.observation[0] > 0, best[0], best[1])
        return state.observation, _match(action, right), True, False

    return Toy(_stream(_sign, move, continuous), SIGNS, lambda discount: jnp.ones(2), best)


def truncation(continuous: bool = False, limit: int = 5) -> Toy:
    """Reward 1 for ever, cut every ``limit`` steps and never terminated: value 1 / (1 - discount)."""

    def move(state: ToyState, action: Array) -> tuple[Array, float, bool, Array]:
        del action
        return state.observation, 1.0, False, state.time + 1 >= limit

    stream = _stream(_zero, move, continuous)
    return Toy(stream, jnp.zeros((1, 1)), lambda discount: jnp.full(1, 1.0 / (1.0 - discount)), None)


TOYS = (constant_reward, observation_reward, two_steps, action_reward, matching_reward, truncation)
SIGNS = jnp.array([[1.0], [-1.0]])


def all_toys(continuous: bool) -> EnvironmentStream:
    """Every toy in one environment, chosen by the task's number: one compilation for all."""
    environments = [toy(continuous).stream.environment for toy in TOYS]

    def choose(name):
        def call(*args):
            task: ToyTask = args[-1]
            return jax.lax.switch(task.number, [getattr(e, name) for e in environments], *args)

        return call

    first = environments[0]
    environment = Environment(
        choose("reset"), choose("draw"), choose("advance"), first.observation_shape, first.action_space
    )
    return EnvironmentStream(environment, lambda key, index: ToyTask(jnp.int32(index)))


def _stream(start: Callable[[Key], Array], move: Move, continuous: bool) -> EnvironmentStream:
    def draw(key: Key, task: ToyTask) -> ToyState:
        del task
        return ToyState(start(key), jnp.int32(0))

    def reset(key: Key, task: ToyTask) -> tuple[Array, ToyState]:
        state = draw(key, task)
        return state.observation, state

    def advance(noise: ToyState, state: ToyState, action: Array, task: ToyTask) -> tuple[ToyState, Timestep]:
        del task
        final, reward, terminated, truncated = move(state, action)
        done = jnp.logical_or(terminated, truncated)
        after = jax.tree.map(lambda a, b: jnp.where(done, a, b), noise, ToyState(final, state.time + 1))
        reward = jnp.asarray(reward, jnp.float32)
        return after, Timestep(after.observation, reward, jnp.bool_(terminated), jnp.bool_(truncated), final)

    space = Continuous((-1.0,), (1.0,), 1) if continuous else Discrete(2)
    environment = Environment(reset, draw, advance, (1,), space)
    return EnvironmentStream(environment, lambda key, index: ToyTask(jnp.int32(index)))


def _zero(key: Key) -> Array:
    del key
    return jnp.zeros(1)


def _sign(key: Key) -> Array:
    return jnp.where(jax.random.bernoulli(key, shape=(1,)), 1.0, -1.0)


def _match(action: Array, right: Array) -> Array:
    if jnp.issubdtype(action.dtype, jnp.integer):
        return (action == right).astype(jnp.float32)
    return 1.0 - jnp.square(action - right).sum()
