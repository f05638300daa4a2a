"""Proximal policy optimisation on a stream of tasks, as a `Program`.

`rollout` has the environments and the advantages, `objective` the agent's settings and its loss.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature import running
from plastax.keys import fold, shuffles
from plastax.program import segments
from plastax.program.learner import Learned, Learner, learned_of
from plastax.rl import normalize, objective
from plastax.rl import policy as policies
from plastax.rl.environment import Continuous, Environment, EnvironmentStream, Spaces
from plastax.rl.objective import PPO, RolloutBatch
from plastax.rl.rollout import Actors, Transition, advantages, reset_actors, rollout
from plastax.types import (
    Array,
    Key,
    Method,
    Model,
    Params,
    Probe,
    Program,
    Tree,
)


class State(NamedTuple):
    """Everything that a seed's next update needs, apart from the clock; it has the fields of `learner.Learned`.

    ``previous`` holds the parameters at the end of the previous task, for probes that need them; else it is empty.
    ``alive``: see `segments.program`.
    """

    key: Key
    params: Params
    stats: Tree
    opt_state: Tree
    actors: Actors
    statistics: normalize.Statistics
    factors: running.Running
    previous: Params
    alive: Array


Purpose = enum.IntEnum("Purpose", "INIT TASKS SWITCH UPDATE PROBE FACTORS", start=0)
"""What a draw from a seed's key is for, see `keys.fold`; the numbers are part of every result."""


def batch_like(config: PPO, environment: Environment | Spaces) -> RolloutBatch:
    """Shapes of a minibatch."""
    size = config.steps_per_update // config.minibatches
    space = environment.action_space
    scalar: Any = jax.ShapeDtypeStruct((size,), jnp.float32)
    observation: Any = jax.ShapeDtypeStruct((size, *environment.observation_shape), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    if isinstance(space, Continuous):
        action = jax.ShapeDtypeStruct((size, space.size), jnp.float32)
    return RolloutBatch(observation, action, *[scalar] * 4)


def _flat(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def program(
    config: PPO,
    stream: EnvironmentStream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    needs_boundary: bool = False,
    due: segments.Due | None = None,
    alike: Hashable = None,
) -> Program:
    """PPO of one seed on ``stream``, learning through ``method``, looked at through ``probes``.

    Every update records how many episodes ended in it (``episodes``), the mean of their returns (``episode_return``,
    NaN without any) and the sum (``episode_return_sum``). The mean of ``episode_return`` over updates is a mean over
    time: updates in which no episode ended are left out, and all others count the same. The sum of
    ``episode_return_sum`` divided by that of ``episodes`` is the mean over episodes, where many are short. What the
    method records (`Recorded`) is a mean over gradient steps.

    Args:
      config: the agent.
      stream: environment and tasks; the task changes every ``updates_per_task`` updates. A switch resets all
        environments, so no return and no advantage crosses it.
      model: actor and critic.
      method: optimiser with its plasticity-preserving method.
      probes: measured on fresh on-policy data at both ends of the task: before its first update and after its last.
      updates_per_task: length of a task; a segment may be shorter but must not cross a switch.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      due: when to probe, at the borders of segments; None: at both ends of every task.
      alike: equal for equal configuration, stream, model, probes and ``updates_per_task``, see `Program.alike`.
    """
    environment = stream.environment
    network = objective.network(config, model, policies.make(environment.action_space))
    learns = Learner(
        model, network, method, config, batch_like(config, environment), Purpose.FACTORS, needs_boundary=needs_boundary
    )
    needs_previous = any(probe.needs_previous for probe in probes)

    def observe(statistics: normalize.Statistics, observation: Array) -> Array:
        return normalize.apply(statistics, observation, config.normalize_observations, config.observation_clip)

    def collect(
        params: Params, statistics: normalize.Statistics, actors: Actors, key: Key, task: Tree
    ) -> tuple[Actors, Transition, RolloutBatch]:
        """A rollout and the flat batch ``[T * N]`` made of it."""

        def act(observation: Array) -> policies.Outputs:
            return model.apply(params, observe(statistics, observation))[0]

        actors, seen = rollout(environment, act, config.num_steps, actors, key, task)
        # One pass of the critic over states and true successors after the scan: the rollout itself needs the actor
        # only.
        both = observe(statistics, jnp.concatenate([_flat(seen.observation), _flat(seen.final_observation)]))
        value, next_value = model.apply(params, both)[0]["value"].reshape(2, *seen.reward.shape)
        reward = config.reward_scale * seen.reward
        advantage = advantages(
            reward, value, next_value, seen.terminated, seen.truncated, config.gamma, config.gae_lambda
        )
        observation = both[: both.shape[0] // 2]
        rest = (seen.action, seen.log_prob, value, advantage, advantage + value)
        return actors, seen, RolloutBatch(observation, *map(_flat, rest))

    def update(state: State, data: Tree, task: Tree, clock: Array) -> tuple[State, dict[str, Array]]:
        roll_key, shuffle_key, method_key = jax.random.split(fold(state.key, Purpose.UPDATE, clock), 3)
        actors, seen, batch = collect(state.params, state.statistics, state.actors, roll_key, task)
        steps = config.epochs * config.minibatches
        order = shuffles(shuffle_key, config.epochs, config.steps_per_update).reshape(steps, -1)
        xs = (clock * steps + jnp.arange(steps), order, jax.random.split(method_key, steps))

        def gradient_step(learned: Learned, x: tuple[Array, Array, Key]) -> tuple[Learned, dict[str, Array]]:
            clock, index, key = x
            minibatch = jax.tree.map(lambda a: a[index], batch)
            learned, seen = learns.step(learned, minibatch, clock, key, state.key)
            return learned, seen.metrics

        learned, metrics = jax.lax.scan(gradient_step, learned_of(state), xs)
        done = jnp.maximum(seen.terminated, seen.truncated)
        episodes, returns = done.sum(), seen.finished_return.sum()
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "episodes": episodes,
            # NaN, not 0, where no episode ended.
            "episode_return": jnp.where(episodes > 0, returns / jnp.maximum(episodes, 1), jnp.nan),
            "episode_return_sum": returns,
        }
        statistics = normalize.update(state.statistics, _flat(seen.observation), config.normalize_observations)
        return state._replace(actors=actors, statistics=statistics, **learned._asdict()), metrics

    def healthy(state: State, metrics: dict[str, Array]) -> Array:
        loss = metrics["policy_loss"] + metrics["value_loss"]
        return jnp.isfinite(loss) & tree.finite(state.params)

    def begin_task(state: State, data: Tree, task: Tree, clock: Array) -> State:
        env_key, method_key = jax.random.split(fold(state.key, Purpose.SWITCH, clock))
        statistics = state.statistics
        learned = learns.switch(learned_of(state), clock * config.epochs * config.minibatches, method_key)
        if config.normalize_observations == "reset":
            statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        previous = state.params if needs_previous else ()
        return state._replace(actors=actors, statistics=statistics, previous=previous, **learned._asdict())

    def measure(state: State, data: Tree, task: Tree, border: Array) -> dict[str, Array]:
        """All probes on fresh on-policy data, which leave the state as it is."""
        key, env_key, roll_key = jax.random.split(fold(state.key, Purpose.PROBE, border), 3)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        batch = collect(state.params, state.statistics, actors, roll_key, task)[2]

        seen = learns.seen(learned_of(state), batch, key, fold(state.key, Purpose.INIT), state.previous)
        return segments.look(probes, seen, segments.task_of(border, updates_per_task))

    def init(key: Key, data: Tree) -> State:
        learned = learns.start(key, model.init(fold(key, Purpose.INIT)))
        statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(
            environment, config.num_envs, fold(key, Purpose.SWITCH), stream.task(fold(key, Purpose.TASKS), jnp.int32(0))
        )
        # A copy of its own: the state is donated.
        previous = jax.tree.map(jnp.copy, learned.params) if needs_previous else ()
        return State(
            key, actors=actors, statistics=statistics, previous=previous, alive=jnp.bool_(True), **learned._asdict()
        )

    def task_of(state: State, data: Tree, index: Array) -> Tree:
        return stream.task(fold(state.key, Purpose.TASKS), index)

    def view(state: State) -> State:
        return state._replace(opt_state=(), actors=cast(Any, ()))

    parts = segments.Parts(init, task_of, begin_task, update, healthy, view, measure)
    return segments.program(parts, probes, updates_per_task=updates_per_task, due=due, alike=alike)


def action_size(environment: Environment | Spaces) -> tuple[int, bool]:
    """How many outputs the policy has, and whether actions are continuous: arguments of a model's ``build``."""
    space = environment.action_space
    return (space.size, True) if isinstance(space, Continuous) else (space.n, False)
