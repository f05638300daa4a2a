"""Your own environment as a stream of tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.rl import environment
from plastax.rl.environment import ENVIRONMENTS, SPACES, EnvironmentStream, GymnaxTask, Spaces, StreamConfig
from plastax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Own:
    """An environment as it is, the same in every task.

    Examples:
      >>> Own("CartPole-v1").spaces()
      Spaces(observation_shape=(4,), action_space=Discrete(n=2))
    """

    env: str = "CartPole-v1"
    """Your own, module:object or a name in `plastax.rl.ENVIRONMENTS`, or the id of a gymnax environment."""

    @property
    def description(self) -> str:
        """One line."""
        return f"{self.env}, the same in every task"

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: there is no such environment, or it is of another form."""
        return environment.spaces_of(self.env)

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `GymnaxTask` with an empty view."""
        env, params = environment.make(self.env)

        def task(key: Key, index: Array) -> GymnaxTask:
            del key
            return GymnaxTask(jnp.int32(index), params, ())

        return EnvironmentStream(environment.from_gymnax(env, GymnaxTask(jnp.int32(0), params, ())), task)


def entry(given: Any, name: str) -> StreamConfig:
    """The settings of a stream that an object stands for, as `plastax.rl.STREAMS` holds them.

    Args:
      given: such settings, or their class; or an environment, see `environment.resolved`. `ENVIRONMENTS` then has it.
      name: what messages, records and ``env`` call it.

    Raises:
      ConfigError: it is neither, or the name is that of an environment of gymnax.
    """
    if isinstance(given, type) and hasattr(given, "build"):
        given = given()
    if hasattr(given, "build") and hasattr(given, "spaces"):
        return given
    if name in SPACES:
        raise ConfigError(f"stream: {name} is the name of gymnax's environment; give yours another")
    ENVIRONMENTS[name] = given
    found = Own(name)
    found.spaces()
    return found
