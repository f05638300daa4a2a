"""A toy environment in the forms that libraries give to environments: gymnax 1.0 and 0.0.x, Craftax's, navix's."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from tests.rl.toy_environments import Toy, ToyState, ToyTask

TASK = ToyTask(jnp.int32(0))


class Ended(NamedTuple):
    """A toy's state after a step, before any reset."""

    toy: ToyState
    truncated: jax.Array


@struct.dataclass
class Params:
    scale: float = 1.0


class Base:
    """What the forms of a toy share."""

    def __init__(self, toy: Toy) -> None:
        self.environment = toy.stream.environment

    @property
    def default_params(self) -> Params:
        return Params()

    def action_space(self, params: Any = None) -> Any:
        space = self.environment.action_space
        return spaces.Discrete(space.n) if hasattr(space, "n") else spaces.Box(-1.0, 1.0, (1,))

    def begin(self, key):
        observation, state = self.environment.reset(key, TASK)
        return observation, Ended(state, jnp.bool_(False))

    def go(self, state, action, params):
        """Observation, state, reward, terminated, truncated; before any reset."""
        _, out = self.environment.advance(state.toy, state.toy, action, TASK)
        after = ToyState(out.final_observation, state.toy.time + 1)
        reward = out.reward * params.scale
        return out.final_observation, Ended(after, out.truncated), reward, out.terminated, out.truncated


class Modern(Base):
    """gymnax 1.0."""

    def reset_env(self, key, params):
        return self.begin(key)

    def step_env(self, key, state, action, params):
        *out, _ = self.go(state, action, params)
        return (*out, {})

    def is_truncated(self, state, params):
        return state.truncated


def reset_where(done, first, last):
    return jax.tree.map(lambda x, y: jax.lax.select(done, x, y), first, last)


class Old(Base):
    """gymnax 0.0.x: one flag, and info that tells a truncation."""

    def reset_env(self, key, params):
        return self.begin(key)

    def step_env(self, key, state, action, params):
        observation, state, reward, terminated, truncated = self.go(state, action, params)
        return observation, state, reward, terminated | truncated, {"truncated": truncated, "discount": 1.0}

    @functools.partial(jax.jit, static_argnums=(0,))
    def step(self, key, state, action, params=None):
        key, key_reset = jax.random.split(key)
        observation, state, reward, done, info = self.step_env(key, state, action, params)
        first, first_state = self.reset_env(key_reset, params)
        state = reset_where(done, first_state, state)
        return reset_where(done, first, observation), state, reward, done, info

    @functools.partial(jax.jit, static_argnums=(0,))
    def reset(self, key, params=None):
        return self.reset_env(key, params)


class OldSilent(Old):
    """gymnax 0.0.x: nothing tells a truncation."""

    def step_env(self, key, state, action, params):
        return (*super().step_env(key, state, action, params)[:4], {})


class Wrapper:
    """A wrapper, with a state of its own, that passes on everything but step and reset; params are static."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def reset(self, key, params=None):
        observation, state = self._env.reset_env(key, params)
        return observation, (state, 0)


class StepWithoutReset(Wrapper):
    @functools.partial(jax.jit, static_argnums=(0, 4))
    def step(self, key, state, action, params=None):
        observation, inner, reward, done, info = self._env.step_env(key, state[0], action, params)
        return observation, (inner, state[1] + 1), reward, done, info


class StepWithReset(Wrapper):
    """As Craftax's AutoResetEnvWrapper, with the last observation in info."""

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def step(self, key, state, action, params=None):
        key, key_reset = jax.random.split(key)
        last, inner, reward, done, info = self._env.step_env(key, state[0], action, params)
        first, first_state = self._env.reset_env(key_reset, params)
        info = {**info, "final_observation": last}
        return reset_where(done, first, last), (reset_where(done, first_state, inner), 0), reward, done, info


class SixValues(Wrapper):
    """As the wrappers of gymnax 1.0."""

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def step(self, key, state, action, params=None):
        last, inner, reward, terminated, info = self._env.step_env(key, state[0], action, params)
        truncated = self._env.is_truncated(inner, params)
        first, first_state = self._env.reset_env(key, params)
        done = terminated | truncated
        info = {**info, "final_observation": last}
        state = (reset_where(done, first_state, inner), 0)
        return reset_where(done, first, last), state, reward, terminated, truncated, info


@struct.dataclass
class CraftaxState:
    ended: Ended
    timestep: int


class Craftax(Base, Environment):
    """As CraftaxSymbolicEnv on gymnax 1.0's base class, whose is_truncated asks for what its state does not have."""

    def reset_env(self, key, params):
        observation, ended = self.begin(key)
        return observation, CraftaxState(ended, 0)

    def step_env(self, key, state, action, params):
        observation, ended, reward, terminated, truncated = self.go(state.ended, action, params)
        state = CraftaxState(ended, state.timestep + 1)
        return observation, state, reward, terminated | truncated, {"truncation": truncated.astype(jnp.float32)}

    def is_terminal(self, state, params):
        return state.timestep >= 100


@struct.dataclass
class Timestep:
    """navix's: the state of the game holds a key, and the type of the step says how an episode ended."""

    t: jax.Array
    observation: jax.Array
    reward: jax.Array
    step_type: jax.Array
    ended: Ended
    key: jax.Array


@struct.dataclass
class NavixState:
    timestep: Timestep
    time: jax.Array


class ToGymnax(Environment):
    """As navix's: step and reset alone on the base class of gymnax; an episode ends one step before its reset."""

    def __init__(self, toy: Toy) -> None:
        self.toy = Base(toy)

    @property
    def default_params(self):
        return gymnax.EnvParams(max_steps_in_episode=5)

    def action_space(self, params):
        return self.toy.action_space()

    def reset(self, key, params=None):
        observation, ended = self.toy.begin(key)
        zero = jnp.int32(0)
        timestep = Timestep(zero, observation, jnp.float32(0), zero, ended, key)
        return observation, NavixState(timestep, zero)

    def step(self, key, state, action, params):
        last = state.timestep

        def begin(_):
            return self.reset(last.key)[1].timestep

        def go(action):
            observation, ended, reward, terminated, truncated = self.toy.go(last.ended, action, Params())
            kind = jnp.where(terminated, 2, jnp.where(truncated, 1, 0))
            return Timestep(last.t + 1, observation, reward, kind, ended, last.key)

        timestep = jax.lax.cond(last.step_type > 0, begin, go, action)
        return timestep.observation, NavixState(timestep, timestep.t), timestep.reward, timestep.step_type > 0, {}
