"""What every stream of environments promises, checked on rollouts of random actions in its first tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.rl import own
from plastax.rl.environment import Continuous, Discrete, Environment, EnvironmentStream, Spaces, StreamConfig, Timestep
from plastax.testing.promises import Promise, check_pure, close, difference, plain, quick
from plastax.types import Array, Key

SEEDS, STEPS, ENVS = 3, 25, 2


class Rollouts(NamedTuple):
    """Rollouts in several tasks; all randomness but the task's is the same in each.

    Attributes:
      stream: what was run.
      first: observations of the resets ``[S, N, ...]``, one entry for each task.
      timesteps: ``[S, T, N, ...]``, likewise.
      tasks: ``[S, ...]``, likewise.
      program: ``(keys [S], index)`` -> one entry of each.
    """

    stream: EnvironmentStream
    first: list[Any]
    timesteps: list[Timestep]
    tasks: list[Any]
    program: Callable[[Key, Array], Any]


def rollout(stream: EnvironmentStream, key: Key, index: Array) -> tuple[Array, Timestep, Any]:
    """One seed's rollout of random actions on task ``index``: observations of the reset, timesteps, task."""
    environment, space = stream.environment, stream.environment.action_space
    reset_key, action_key, step_key = jax.random.split(key, 3)
    task = stream.task(key, index)
    first, state = jax.vmap(environment.reset, (0, None))(jax.random.split(reset_key, ENVS), task)
    actions = (
        jax.random.randint(action_key, (STEPS, ENVS), 0, space.n)
        if isinstance(space, Discrete)
        else jax.random.uniform(
            action_key, (STEPS, ENVS, space.size), jnp.float32, jnp.asarray(space.low), jnp.asarray(space.high)
        )
    )

    def body(state: Any, xs: Any) -> Any:
        noise, action = xs
        return jax.vmap(environment.advance, (0, 0, 0, None))(noise, state, action, task)

    xs = (environment.noise(step_key, task, STEPS, ENVS), actions)
    return first, jax.lax.scan(body, state, xs)[1], task


def run_all(stream: EnvironmentStream, tasks: int = 3) -> Rollouts:
    """Rollouts of all seeds in the first tasks, by one program."""
    program = jax.vmap(lambda key, index: rollout(stream, key, index), (0, None))
    seeds, compiled = jax.random.split(jax.random.key(7), SEEDS), quick(program)
    outputs = [jax.tree.map(np.asarray, compiled(seeds, jnp.int32(index))) for index in range(tasks)]
    return Rollouts(stream, *map(list, zip(*outputs)), compiled)  # type: ignore[arg-type, call-arg]


def check_environment_stream(config: Any, *, alike: bool = False) -> None:
    """Checks that a stream of environments keeps what `plastax.rl.environment` promises; takes some seconds.

    It plays 25 random steps in each of the first three tasks.

    Args:
      config: the stream's settings, or their class; or an environment that `plastax.rl` takes, the same in every task.
      alike: whether tasks may play alike.

    Raises:
      AssertionError: a promise is broken; it says what is wrong, where the promise stands, and what to do.

    Examples:
      >>> from plastax import rl, testing
      >>> testing.check_environment_stream(rl.STREAMS["cartpole_chain"])
    """
    who = getattr(config, "__name__", type(config).__name__)
    with Promise(StreamConfig, "build").kept(who, "build", "return an EnvironmentStream(environment, task)"):
        config = own.entry(config, who)
        stream: EnvironmentStream = config.build()
        environment = stream.environment
    if not isinstance(environment.action_space, Discrete | Continuous):
        what = f"its action space is of type {type(environment.action_space).__name__}"
        raise Promise(Environment, "action_space").broken(who, what, "give Discrete(n) or Continuous(low, high, size)")
    with Promise(EnvironmentStream, "task").kept(
        who, "a rollout", "compute tasks and steps with JAX, for a traced index; keep the structure and types of states"
    ):
        run = run_all(stream)
    check_run(who, config, run, alike=alike or isinstance(config, own.Own))


def check_run(who: str, config: Any, run: Rollouts, *, alike: bool = False) -> None:
    """Checks rollouts that were made already, see `check_environment_stream`."""
    stream, tasks = run.stream, Promise(EnvironmentStream, "task")
    built = Spaces(stream.environment.observation_shape, stream.environment.action_space)
    with Promise(StreamConfig, "spaces").kept(who, "spaces", "return Spaces(observation_shape, action_space)"):
        said = config.spaces()
    if said != built:
        what = f"spaces() says {said}, and its environment has {built}"
        raise Promise(StreamConfig, "spaces").broken(who, what, "let them be the same")
    for number, (first, timestep) in enumerate(zip(run.first, run.timesteps)):
        _check_shapes(f"{who}, task {number}", stream.environment.observation_shape, first, timestep)
    keys = jax.random.split(jax.random.key(7), SEEDS)
    remedy = "let tasks and steps follow from their arguments alone: keep nothing outside, and draw with jax.random"
    check_pure(tasks, who, lambda key, index: rollout(stream, key, index), keys[0], jnp.int32(0), remedy=remedy)
    last = len(run.tasks) - 1
    if found := difference(run.program(keys, jnp.int32(last)), (run.first[-1], run.timesteps[-1], run.tasks[-1])):
        raise tasks.broken(who, f"task {last} differs when it is made again, {found}", remedy)
    alone = stream.task(keys[1], jnp.int32(last))
    if found := difference(alone, jax.tree.map(lambda x: x[1], run.tasks[-1]), close(1e-6, 0)):
        raise tasks.broken(who, f"a seed's task differs among other seeds, {found}", remedy)
    for one in range(last):
        if not alike and not difference(run.timesteps[one], run.timesteps[one + 1]):
            what = f"tasks {one} and {one + 1} play alike for {STEPS} random steps"
            raise tasks.broken(who, what, "let the task change what the environment does or shows")


def _check_shapes(who: str, shape: tuple[int, ...], first: np.ndarray, timestep: Timestep) -> None:
    shapes = {"observation": shape, "reward": (), "terminated": (), "truncated": (), "final_observation": shape}
    for name, one in shapes.items():
        value, flag = plain(getattr(timestep, name)), name in ("terminated", "truncated")
        expected, dtype = (SEEDS, STEPS, ENVS, *one), np.dtype(bool if flag else np.float32)
        if value.shape != expected or value.dtype != dtype or not np.isfinite(value).all():
            what = f"the {name} of a step is {value.dtype}{list(value.shape[3:])} or not finite"
            raise Promise(Timestep, name).broken(who, what, f"give finite values of {dtype}{list(one)}")
    if first.shape != (SEEDS, ENVS, *shape) or first.dtype != np.float32:
        what = f"reset gives an observation of {first.dtype}{list(first.shape[2:])}"
        raise Promise(Environment, "reset").broken(who, what, f"give float32{list(shape)}, the observation_shape")
    going = ~(timestep.terminated | timestep.truncated)
    if found := difference(timestep.observation[going], timestep.final_observation[going]):
        what = f"within an episode observation and final_observation differ, {found}"
        raise Promise(Timestep, "final_observation").broken(who, what, "let them differ only where an episode ended")
