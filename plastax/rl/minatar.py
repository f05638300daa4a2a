"""A stream of MinAtar games: the agent plays one after the other with one network.

Sources: Young and Tian, MinAtar, arXiv:1903.03176; Tang et al., C-CHAIN, arXiv:2506.00592 (the chain of games, zero
padding to 10 channels, 6 actions); gymnax 1.0.1 (the games, with its time limits of 1,000 steps, Freeway 2,500).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.rl.environment import (
    Discrete,
    Draw,
    Environment,
    EnvironmentStream,
    GymnaxTask,
    Spaces,
    State,
    Timestep,
    from_gymnax,
    make,
)
from plastax.types import Array, Key

GAMES = ("SpaceInvaders", "Asterix", "Breakout", "Freeway", "Seaquest")
"""All games of MinAtar that gymnax has."""
CHANNELS = 10
"""Channels of the padded observation: those of Seaquest, which has the most."""
ACTIONS = 6
"""No-op, left, up, right, down, fire: MinAtar's full set. A game ignores actions that it does not know."""


class MinAtarTask(NamedTuple):
    """The task of a stream of games.

    Attributes:
      number: int32 scalar, of the task.
      game: int32 scalar, which of the stream's distinct games it is.
    """

    number: Array
    game: Array


@dataclasses.dataclass(frozen=True)
class MinAtar:
    """MinAtar games one after the other, one game a task; padded observations, one set of 6 actions.

    Task ``i`` is game ``i`` of `games`; after the last game the first follows again. Observations are padded with zero
    channels to (10, 10, 10) and all games take the full set of 6 actions, so that one network plays them all. Tasks
    are not random: seeds differ in their episodes only. C-CHAIN (arXiv:2506.00592) plays SpaceInvaders, Asterix,
    Seaquest with 2M steps a game. On a CPU, Seaquest is 20 to 90 times slower than the others, so the default ends with
    Breakout and Freeway instead.

    The state holds the states of all games. A step runs one game only, as long as the seeds share the task's index (see
    `EnvironmentStream`).
    """

    games: tuple[str, ...] = ("SpaceInvaders", "Asterix", "Breakout", "Freeway")
    """Names out of `GAMES`, at least one; a name may come more than once."""

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: no game, or one that is not known."""
        unknown = [game for game in self.games if game not in GAMES]
        if unknown or not self.games:
            raise ConfigError(
                f"stream.games: {self.games!r} is not allowed; give one or more names out of {', '.join(GAMES)}"
            )
        return Spaces((10, 10, CHANNELS), Discrete(ACTIONS))

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `MinAtarTask`, its state that of the distinct games."""
        self.spaces()
        distinct = tuple(dict.fromkeys(self.games))
        which = jnp.array([distinct.index(game) for game in self.games], jnp.int32)

        def task(key: Key, index: Array) -> MinAtarTask:
            del key
            return MinAtarTask(jnp.int32(index), which[index % len(self.games)])

        return EnvironmentStream(_environment(distinct), task)


def _environment(games: tuple[str, ...]) -> Environment:
    """One environment that plays the game that its task names."""
    tasks, environments = [], []
    for game in games:
        env, params = make(f"{game}-MinAtar", use_minimal_action_set=False)
        tasks.append(GymnaxTask(jnp.int32(0), params, ()))
        environments.append(from_gymnax(env, tasks[-1], _pad, predraw=False))

    def reset(key: Key, task: MinAtarTask) -> tuple[Array, tuple[State, ...]]:
        keys = jax.random.split(key, len(games))
        starts = [play.reset(own, own_task) for play, own, own_task in zip(environments, keys, tasks)]
        observations, states = zip(*starts)
        return jnp.stack(observations)[task.game], tuple(states)

    def draw(key: Key, task: MinAtarTask) -> Draw:
        del task
        return Draw(*jax.random.split(key))

    def branch(number: int) -> Callable[[Draw, tuple[State, ...], Array], tuple[tuple[State, ...], Timestep]]:
        def advance(noise: Draw, states: tuple[State, ...], action: Array) -> tuple[tuple[State, ...], Timestep]:
            state, timestep = environments[number].advance(noise, states[number], action, tasks[number])
            return (*states[:number], state, *states[number + 1 :]), timestep

        return advance

    branches = [branch(number) for number in range(len(games))]

    def advance(
        noise: Draw, states: tuple[State, ...], action: Array, task: MinAtarTask
    ) -> tuple[tuple[State, ...], Timestep]:
        return jax.lax.switch(task.game, branches, noise, states, action)

    return Environment(reset, draw, advance, environments[0].observation_shape, Discrete(ACTIONS), binary=True)


def _pad(observation: Array, view: tuple[()]) -> Array:
    """The game's channels, padded with zeros to `CHANNELS`."""
    del view
    return jnp.pad(observation, ((0, 0), (0, 0), (0, CHANNELS - observation.shape[-1])))
