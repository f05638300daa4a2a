"""Continual control in Brax: robots whose friction or gravity changes with every task.

The physics is MuJoCo's, by Brax's backend ``mjx``. What changes is an array of the simulator's model, so one
compilation serves all tasks. Brax is an extra: ``pip install 'plastax-lab[brax]'``.

Two things differ from Brax's own wrappers. A truncation keeps its final observation, from which returns bootstrap. Each
episode begins in a fresh first state; Brax's all begin like the first.

Sources: Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024 (Slippery Ant: sliding
friction, log-uniform in [0.02, 2], a new one every 2M steps). The published schedule has the first five values of its
file, which arXiv 2509.22335 uses.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import io
import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from plastax import ranges, tree
from plastax.errors import ConfigError
from plastax.rl.environment import Continuous, Environment, EnvironmentStream, Spaces, Timestep, strong
from plastax.types import Array, Key, Tree

Robot = Literal["ant", "halfcheetah", "hopper"]
Quantity = Literal["friction", "gravity"]
Schedule = Literal["random", "published"]
PUBLISHED = (0.2961, 0.2399, 0.0387, 0.3528, 0.0829)
"""Friction of the five phases, in their order."""
SPACES: Mapping[str, Spaces] = MappingProxyType(
    {
        "ant": Spaces((27,), Continuous((-1.0,) * 8, (1.0,) * 8, 8)),
        "halfcheetah": Spaces((17,), Continuous((-1.0,) * 6, (1.0,) * 6, 6)),
        "hopper": Spaces((11,), Continuous((-1.0,) * 3, (1.0,) * 3, 3)),
    }
)
"""Brax's robots by name. With this table, bad settings are refused before Brax is imported."""


class BraxTask(NamedTuple):
    """The task of a `Brax` stream.

    Attributes:
      number: int32 scalar, of the task.
      value: float32 scalar: the sliding friction, or the gravity relative to the earth's.
    """

    number: Array
    value: Array


class Pose(NamedTuple):
    """What a robot's next step depends on; MuJoCo derives all else from it.

    Attributes:
      q: ``[nq]`` positions of the joints.
      qd: ``[nv]`` velocities of the joints.
      x: places and rotations of the bodies.
      warmstart: ``[nv]`` the last acceleration, from which the solver of contacts starts; 0 at the start of an episode.
    """

    q: Array
    qd: Array
    x: Any
    warmstart: Array


class BraxState(NamedTuple):
    """One environment.

    Attributes:
      pose: of the robot.
      steps: int32 scalar, of the episode.
    """

    pose: Pose
    steps: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brax:
    """A robot of Brax with new friction or gravity every task.

    Rewards and observations are Brax's, which differ from those of Gymnasium's robots: returns are not to be compared.
    ``ant`` and ``hopper`` end an episode when the robot is not healthy (has fallen, or jumps too high), see
    ``terminate_when_unhealthy``; ``halfcheetah`` never does.
    """

    env: Robot = "ant"
    """The robot."""
    quantity: Quantity = "friction"
    """What changes: friction, the sliding friction of all bodies and the floor | gravity, relative to the earth's."""
    low: float = 0.02
    """Smallest value."""
    high: float = 2.0
    """Largest value; every task's is log-uniform between both."""
    schedule: Schedule = "random"
    """random: of every seed and task | published: the five frictions of arXiv 2509.22335, again and again, for all
    seeds."""
    episode_length: int = 1000
    """Steps before a truncation."""
    terminate_when_unhealthy: bool = True
    """Ill health ends an episode; otherwise it only costs the reward for health."""

    @property
    def description(self) -> str:
        """One line."""
        return f"{self.env} in Brax with a new {self.quantity} every task"

    def spaces(self) -> Spaces:
        """See `StreamConfig`; `ConfigError`: bad settings, or Brax is not installed."""
        ranges.check_choices(self, "stream", env=Robot, quantity=Quantity, schedule=Schedule)
        ranges.check(self, "stream", "low", "high", above=0, below=math.inf)
        ranges.check(self, "stream", "episode_length", least=1)
        if self.low > self.high:
            raise ConfigError(f"stream.low: {self.low} is above stream.high, {self.high}")
        if self.schedule == "published" and self.quantity != "friction":
            raise ConfigError(f"stream.schedule: 'published' is one of frictions; stream.quantity is {self.quantity!r}")
        if self.env == "halfcheetah" and not self.terminate_when_unhealthy:
            raise ConfigError("stream.terminate_when_unhealthy: 'halfcheetah' is always healthy; leave it out")
        for package in ("brax", "mujoco"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"stream.env: {self.env!r} needs the package {package}, which is missing; "
                    "pip install 'plastax-lab[brax]'"
                )
        return SPACES[self.env]

    def build(self) -> EnvironmentStream:
        """See `StreamConfig`. Its tasks are `BraxTask`."""
        spaces = self.spaces()
        robot = made(self.env, self.terminate_when_unhealthy)
        return EnvironmentStream(from_brax(robot, spaces, self), self.task)

    def task(self, key: Key, index: Array) -> BraxTask:
        """The task of a number."""
        if self.schedule == "published":
            value = jnp.asarray(PUBLISHED, jnp.float32)[index % len(PUBLISHED)]
        else:
            low, high = math.log(self.low), math.log(self.high)
            value = jnp.exp(jax.random.uniform(jax.random.fold_in(key, index), minval=low, maxval=high))
        return BraxTask(jnp.int32(index), value)


@functools.cache
def made(name: str, terminate_when_unhealthy: bool) -> Any:
    """Brax's robot, with the physics of MuJoCo."""
    # Brax warns of its own physics and of deprecations; MuJoCo prints what it lacks for GPUs.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from brax import envs

        options = {} if name == "halfcheetah" else {"terminate_when_unhealthy": terminate_when_unhealthy}
        return envs.get_environment(name, backend="mjx", **options)


def changed(robot: Any, quantity: Quantity, value: Array) -> Any:
    """The robot in a task's world. Friction is that of both bodies in contact: MuJoCo takes the larger of the two."""
    system = robot.sys
    if quantity == "friction":
        system = system.replace(geom_friction=jnp.asarray(system.geom_friction).at[:, 0].set(value))
    else:
        system = system.tree_replace({"opt.gravity": system.opt.gravity * value})
    robot = copy.copy(robot)
    robot.sys = system
    return robot


def from_brax(robot: Any, spaces: Spaces, config: Brax) -> Environment:
    """An `Environment` of a robot whose task is a `BraxTask`.

    Its state is a `Pose`, a thirtieth of Brax's. First states are drawn before a rollout: without the forces, which
    the first step computes, they take little time.
    """
    # Shapes of Brax's state; the fields that a `Pose` lacks are computed by each step before it reads them.
    blank = jax.eval_shape(robot.reset, jax.random.key(0))

    # Jitted: training and measurements then share one trace of the physics, which takes seconds.
    @jax.jit
    def draw(key: Key, task: Tree) -> tuple[Array, Pose]:
        del task
        state = robot.reset(key)
        physics = state.pipeline_state
        return strong((state.obs, Pose(physics.q, physics.qd, physics.x, jnp.zeros_like(physics.qd))))

    def reset(key: Key, task: BraxTask) -> tuple[Array, BraxState]:
        observation, pose = draw(key, task)
        return observation, BraxState(pose, jnp.int32(0))

    @jax.jit
    def advance(
        start: tuple[Array, Pose], state: BraxState, action: Array, task: BraxTask
    ) -> tuple[BraxState, Timestep]:
        before = tree.zeros(blank)
        q, qd, x, warmstart = state.pose
        physics = before.pipeline_state.replace(q=q, qd=qd, x=x, qpos=q, qvel=qd, qacc_warmstart=warmstart)
        world = changed(robot, config.quantity, task.value)
        after = world.step(before.replace(pipeline_state=physics), action)
        physics = after.pipeline_state
        steps = state.steps + 1
        terminated = jnp.asarray(after.done) > 0
        truncated = ~terminated & (steps >= config.episode_length)
        done = terminated | truncated
        now = after.obs, Pose(physics.q, physics.qd, physics.x, physics.qacc_warmstart)
        observation, pose = jax.tree.map(functools.partial(jnp.where, done), start, strong(now))
        new = BraxState(pose, jnp.where(done, 0, steps))
        return new, Timestep(observation, after.reward, terminated, truncated, after.obs)

    return Environment(reset, draw, advance, *spaces)
