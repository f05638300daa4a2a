"""Streams of classic control whose tasks differ in an observation offset, or in their physics.

Task 0 is the unchanged environment. Every later task is drawn from the seed's key and the task's number. What is drawn
is data, so one compilation serves all tasks.

Sources: Muppidi et al., Fast TRAC, arXiv:2405.16642, and Tang et al., C-CHAIN, arXiv:2506.00592 (offsets).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.rl.environment import EnvironmentStream, GymnaxTask, Spaces, from_gymnax, make, spaces_of
from plastax.types import Array, Key, Tree


@dataclasses.dataclass(frozen=True)
class Chain:
    """Classic control whose observations get a new constant offset with every task.

    The offset is N(0, sigma^2) per dimension, drawn once a task; task 0 has none. It is the "Gym Control" of TRAC
    (arXiv:2405.16642) and, with sigma = 2, of C-CHAIN (arXiv:2506.00592, 10 tasks of 160k steps). Normalising
    observations undoes the offset.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> stream = Chain("CartPole-v1").build()
      >>> task = stream.task(jax.random.key(0), jnp.int32(1))
      >>> task.view.shape  # the offset
      (4,)
      >>> observation, state = stream.environment.reset(jax.random.key(1), task)
    """

    env: str = "CartPole-v1"
    """Id of a gymnax environment with vectors as observations, or your own: module:object."""
    sigma: float = 2.0
    """Standard deviation of the offset, >= 0; 2 in C-CHAIN."""

    @property
    def description(self) -> str:
        """One line."""
        return f"{self.env} with a new constant observation offset every task"

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: unknown ``env`` or one without vector observations, negative ``sigma``."""
        ranges.check(self, "stream", "sigma", least=0, below=math.inf)
        found = spaces_of(self.env)
        if len(found.observation_shape) != 1:
            raise ConfigError(
                f"stream.env: {self.env!r} has observations of shape {found.observation_shape}; an offset needs vectors"
            )
        return found

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `GymnaxTask` with the offset, float32 ``[dims]``."""
        shape = self.spaces().observation_shape
        env, params = make(self.env)

        def task(key: Key, index: Array) -> GymnaxTask:
            offset = self.sigma * jax.random.normal(jax.random.fold_in(key, index), shape)
            return GymnaxTask(jnp.int32(index), params, jnp.where(index == 0, 0.0, offset))

        environment = from_gymnax(env, GymnaxTask(jnp.int32(0), params, jnp.zeros(shape)), jnp.add)
        return EnvironmentStream(environment, task)


@dataclasses.dataclass(frozen=True)
class Physics:
    """Classic control with new physics every task.

    A quantity becomes its default times ``2^(strength * octaves * u)``, with u uniform in [-1, 1], drawn for each task
    and quantity, and these octaves:

    - CartPole-v1: pole length 1, pole mass 1, gravity 1, cart mass 0.5, force 0.5;
    - Acrobot-v1: both lengths and both masses 0.7;
    - MountainCar-v0: gravity 1, that is [0.00125, 0.005];
    - Pendulum-v1: gravity, mass and length 0.5.

    Dependent quantities follow: CartPole's total mass and pole mass times length; Acrobot's centres of mass (half the
    lengths) and moment of inertia (scaled as mass times squared length; gymnax has one for both links, which gets the
    mean). Task 0 has the defaults. The ranges are ours; MountainCar's is that of the continual_neuroevolution
    benchmark. At strength 1 the tasks stay solvable: one linear controller balances 64 of 64 drawn CartPoles for 500
    steps, and pushing along the movement solves 64 of 64 MountainCars and Acrobots within their time limits.
    """

    env: str = "CartPole-v1"
    """One of the four ids above."""
    strength: float = 1.0
    """Scales all octaves, >= 0."""

    @property
    def description(self) -> str:
        """One line."""
        return f"{self.env} with new physics every task: {', '.join(OCTAVES.get(self.env, ()))}"

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: ``env`` is not one of the four, negative ``strength``."""
        ranges.check(self, "stream", "strength", least=0, below=math.inf)
        if self.env not in OCTAVES:
            raise ConfigError(f"stream.env: {self.env!r} has no physics to draw; choose one of {', '.join(OCTAVES)}")
        return spaces_of(self.env)

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `GymnaxTask` with an empty view."""
        self.spaces()
        env, params = make(self.env)
        octaves = OCTAVES[self.env]
        derive = DERIVED.get(self.env)

        def task(key: Key, index: Array) -> GymnaxTask:
            draws = jax.random.uniform(jax.random.fold_in(key, index), (len(octaves),), minval=-1.0, maxval=1.0)
            # An exponent of zero is a factor of exactly one: task 0 needs no second set of parameters.
            draws = jnp.where(index == 0, 0.0, self.strength * draws)
            factors = {name: jnp.exp2(width * draw) for (name, width), draw in zip(octaves.items(), draws)}
            changed = params.replace(**{name: getattr(params, name) * factor for name, factor in factors.items()})
            if derive is not None:
                changed = changed.replace(**derive(changed, params))
            return GymnaxTask(jnp.int32(index), changed, ())

        environment = from_gymnax(env, GymnaxTask(jnp.int32(0), params, ()))
        return EnvironmentStream(environment, task)


def _cartpole_derived(params: Any, default: Any) -> dict[str, Tree]:
    """What gymnax's CartPole derives from the drawn quantities."""
    del default
    return {
        "total_mass": params.masscart + params.masspole,
        "polemass_length": params.masspole * params.length,
    }


def _acrobot_derived(params: Any, default: Any) -> dict[str, Tree]:
    """Centres of mass and moment of inertia for the links' lengths and masses."""

    def inertia(params: Any) -> Array:
        return 0.5 * (params.link_mass_1 * params.link_length_1**2 + params.link_mass_2 * params.link_length_2**2)

    return {
        "link_com_pos_1": 0.5 * params.link_length_1,
        "link_com_pos_2": 0.5 * params.link_length_2,
        "link_moi": default.link_moi * inertia(params) / inertia(default),
    }


OCTAVES: MappingProxyType[str, MappingProxyType[str, float]] = MappingProxyType(
    {
        "CartPole-v1": MappingProxyType(
            {"length": 1.0, "masspole": 1.0, "gravity": 1.0, "masscart": 0.5, "force_mag": 0.5}
        ),
        "Acrobot-v1": MappingProxyType(
            {"link_length_1": 0.7, "link_length_2": 0.7, "link_mass_1": 0.7, "link_mass_2": 0.7}
        ),
        "MountainCar-v0": MappingProxyType({"gravity": 1.0}),
        "Pendulum-v1": MappingProxyType({"g": 0.5, "m": 0.5, "l": 0.5}),
    }
)
"""Environment id -> drawn parameter -> octaves by which it may rise or fall at strength 1."""

DERIVED: MappingProxyType[str, Callable[[Any, Any], dict[str, Tree]]] = MappingProxyType(
    {"CartPole-v1": _cartpole_derived, "Acrobot-v1": _acrobot_derived}
)
"""Environment id -> ``(drawn parameters, defaults) -> dependent parameters``."""
