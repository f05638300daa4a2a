"""`check_environment_stream` fails for streams that break a promise, and says which."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import pytest

from plastax import testing
from plastax.rl.environment import Discrete, Environment, EnvironmentStream, Spaces, Timestep

COUNTER = itertools.count()


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk on a line that drifts; each task draws the drift. The cases below break it in one place each."""

    def spaces(self) -> Spaces:
        return Spaces((1,), Discrete(2))

    def build(self) -> EnvironmentStream:
        def reset(key: Any, drift: Any) -> Any:
            place = jax.random.normal(key, (1,))
            return place, self.state(place)

        def advance(noise: Any, state: Any, action: Any, drift: Any) -> Any:
            place = state[0] + drift + 0.1 * noise + jnp.where(action == 1, 0.2, -0.2)
            ended = jnp.abs(place[0]) > 2
            after = jnp.where(ended, jnp.zeros(1), place)
            return self.state(after), self.timestep(Timestep(after, -jnp.abs(place[0]), ended, ended & False, place))

        draw = lambda key, task: jax.random.normal(key, (1,))  # noqa: E731
        return EnvironmentStream(Environment(reset, draw, advance, (1,), Discrete(2)), self.task)

    def task(self, key: Any, index: Any) -> Any:
        return jax.random.normal(jax.random.fold_in(key, index), (1,))

    def state(self, place: Any) -> Any:
        return (place,)

    def timestep(self, timestep: Timestep) -> Timestep:
        return timestep


class Misdescribed(Walk):
    def spaces(self) -> Spaces:
        return Spaces((2,), Discrete(2))


class Constant(Walk):
    def task(self, key: Any, index: Any) -> Any:
        return super().task(key, 0)


class Counting(Walk):
    def task(self, key: Any, index: Any) -> Any:
        return super().task(key, index + next(COUNTER))


class Growing(Walk):
    def state(self, place: Any) -> Any:
        return (place,) * (1 + next(COUNTER))


class Weightless(Walk):
    def timestep(self, timestep: Timestep) -> Timestep:
        return timestep._replace(reward=timestep.reward > 0)


class Whole(Walk):
    def timestep(self, timestep: Timestep) -> Timestep:
        return timestep._replace(observation=timestep.observation.astype(jnp.int32))


class Late(Walk):
    """Its final observation is that of the state before."""

    def timestep(self, timestep: Timestep) -> Timestep:
        return timestep._replace(final_observation=timestep.final_observation - 1)


class Free(Walk):
    def build(self) -> EnvironmentStream:
        stream = super().build()
        return stream._replace(environment=stream.environment._replace(action_space=2))


def test_a_good_stream_passes_as_object_and_as_class() -> None:
    testing.check_environment_stream(Walk())
    testing.check_environment_stream(Walk)


def test_an_environment_passes_and_is_the_same_in_every_task() -> None:
    testing.check_environment_stream(gymnax.make("CartPole-v1")[0])
    testing.check_environment_stream(Constant(), alike=True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Misdescribed, r"Misdescribed: spaces\(\) says .*StreamConfig.spaces: What networks have to fit"),
        (Constant, "Constant: tasks 0 and 1 play alike for 25 random steps.*EnvironmentStream.task: ``.key, index. ->"),
        (Counting, "Counting: the same call gives another program"),
        (Growing, "Growing: a rollout raises .*keep the structure and types of states"),
        (Weightless, r"Weightless, task 0: the reward of a step is bool\[\] or not.*Timestep.reward: float32 scalar"),
        (Whole, r"Whole, task 0: the observation of a step is int32\[1\]"),
        (Late, "Late, task 0: within an episode observation and final_observation differ.*Timestep.final_observation"),
        (Free, "Free: its action space is of type int.*Environment.action_space: `Discrete` or `Continuous`"),
    ],
)
def test_a_broken_promise_is_named(config: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        testing.check_environment_stream(config)
