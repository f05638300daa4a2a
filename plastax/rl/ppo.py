"""Proximal policy optimisation on a stream of tasks, as a `Program`.

`rollout` has the environments and the advantages, `objective` the agent's settings and its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import learning, segments, tree
from plastax.curvature import running
from plastax.curvature.kronecker import Factors
from plastax.keys import fold, shuffles
from plastax.learning import Pass
from plastax.rl import normalize
from plastax.rl import policy as policies
from plastax.rl.environment import Continuous, Environment, Spaces, Stream
from plastax.rl.objective import PPO, Batch, losses
from plastax.rl.rollout import Actors, Transition, advantages, reset_actors, rollout
from plastax.types import (
    Array,
    Features,
    Key,
    Method,
    MethodArgs,
    Model,
    Params,
    Probe,
    ProbeInput,
    Program,
    Tree,
)


class State(NamedTuple):
    """Everything that a seed's next update needs, apart from the clock.

    ``previous`` holds the parameters at the end of the previous task for probes that need them; else it is empty.
    ``alive``: see `segments.program`.
    """

    key: Key
    params: Params
    opt_state: Tree
    actors: Actors
    statistics: normalize.Statistics
    factors: running.Running
    previous: Params
    alive: Array


# Roles of a seed's key, see `keys.fold`.
_INIT, _TASKS, _SWITCH, _UPDATE, _PROBE, _FACTORS = range(6)


def batch_like(config: PPO, environment: Environment | Spaces) -> Batch:
    """Shapes of a minibatch."""
    size = config.steps_per_update // config.minibatches
    space = environment.action_space
    scalar: Any = jax.ShapeDtypeStruct((size,), jnp.float32)
    observation: Any = jax.ShapeDtypeStruct((size, *environment.observation_shape), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    if isinstance(space, Continuous):
        action = jax.ShapeDtypeStruct((size, space.size), jnp.float32)
    return Batch(observation, action, *[scalar] * 4)


def _flat(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def program(
    config: PPO,
    stream: Stream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    needs_boundary: bool = False,
    due: segments.Due | None = None,
    monitor: Callable[[Params, Features], dict[str, Array]] | None = None,
) -> Program:
    """PPO of one seed on ``stream``, learning through ``method``, looked at through ``probes``.

    Of episodes every update records how many ended in it (``episodes``), the mean of their returns (``episode_return``,
    NaN without any) and the sum (``episode_return_sum``). The mean of ``episode_return`` over updates is one over time:
    it leaves out updates in which every episode went on, and counts the others alike. The sum of
    ``episode_return_sum`` over that of ``episodes`` is the mean over episodes, in which short ones are many. What the
    method has to say (`Recorded`) is a mean over gradient steps.

    Args:
      config: the agent.
      stream: environment and tasks; the task changes every ``updates_per_task`` updates. At a switch all environments
        are reset, so no return and no advantage crosses it.
      model: actor and critic.
      method: optimiser with its plasticity-preserving method.
      probes: measured on fresh on-policy data of the task at its initialisation (before its first update) and its end.
      updates_per_task: length of a task; segments may be shorter but must not cross a switch.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      due: ``(number of updates done, whether a segment ends rather than starts here) -> bool``: when to probe, at the
        borders of segments; None: at both ends of every task. It must not depend on the seed.
      monitor: per-update scalars from (params, features of a minibatch of the update); None: none.
    """
    environment = stream.environment
    minibatch = batch_like(config, environment)
    policy = policies.make(environment.action_space)
    objective = losses(config, model, policy)
    needs_previous = any(probe.needs_previous for probe in probes)

    def loss_fn(params: Params, batch: Batch) -> Array:
        return objective.loss(params, batch)[0]

    def features_fn(params: Params, batch: Batch) -> Features:
        return model.apply(params, batch.observation)[1]

    def taps_fn(batch: Batch) -> dict[str, Array]:
        return model.taps(batch.observation)

    def observe(statistics: normalize.Statistics, observation: Array) -> Array:
        return normalize.apply(statistics, observation, config.normalize_observations, config.observation_clip)

    def collect(
        params: Params, statistics: normalize.Statistics, actors: Actors, key: Key, task: Tree
    ) -> tuple[Actors, Transition, Batch]:
        """A rollout and the flat batch ``[T * N]`` made of it."""

        def act(observation: Array) -> policies.Outputs:
            return model.apply(params, observe(statistics, observation))[0]

        actors, seen = rollout(environment, act, config.num_steps, actors, key, task)
        # One pass of the critic over states and true successors, outside the scan: the rollout needs the actor only.
        both = observe(statistics, jnp.concatenate([_flat(seen.observation), _flat(seen.final_observation)]))
        value, next_value = model.apply(params, both)[0]["value"].reshape(2, *seen.reward.shape)
        reward = config.reward_scale * seen.reward
        advantage = advantages(
            reward, value, next_value, seen.terminated, seen.truncated, config.gamma, config.gae_lambda
        )
        observation = both[: both.shape[0] // 2]
        rest = (seen.action, seen.log_prob, value, advantage, advantage + value)
        return actors, seen, Batch(observation, *map(_flat, rest))

    def factors_of(seen: Pass, batch: Batch, key: Key, clock: Array) -> dict[str, Factors]:
        own = fold(key, _FACTORS, clock)
        return learning.factors_of(seen, config.kronecker_kind, objective.output_loss, batch, own)

    def gradient_step(seed: Key, carry: tuple[Params, Tree, running.Running], x: tuple[Array, Batch, Key]) -> Any:
        params, opt_state, average = carry
        clock, batch, key = x
        seen = objective.backward(params, batch)
        if config.kronecker_every:
            average = jax.lax.cond(
                clock % config.kronecker_every == 0,
                lambda f: running.update(f, factors_of(seen, batch, seed, clock), config.kronecker_decay),
                lambda f: f,
                average,
            )
        args = MethodArgs(
            key, clock, batch, seen.value, seen.features, seen.tap_grads, loss_fn, features_fn, objective.outputs,
            model.init, boundary=False,
        )  # fmt: skip
        params, opt_state = learning.step(method, seen.grads, opt_state, params, args)
        metrics = seen.metrics | {"grad_norm": learning.grad_norm(seen)} | learning.recorded(opt_state)
        return (params, opt_state, average), metrics

    def update(state: State, data: Tree, task: Tree, clock: Array) -> tuple[State, dict[str, Array]]:
        roll_key, shuffle_key, method_key = jax.random.split(fold(state.key, _UPDATE, clock), 3)
        actors, seen, batch = collect(state.params, state.statistics, state.actors, roll_key, task)
        steps = config.epochs * config.minibatches
        order = shuffles(shuffle_key, config.epochs, config.steps_per_update).reshape(steps, -1)
        xs = (clock * steps + jnp.arange(steps), order, jax.random.split(method_key, steps))

        def minibatch_step(carry: Any, x: tuple[Array, Array, Key]) -> Any:
            clock, index, key = x
            return gradient_step(state.key, carry, (clock, jax.tree.map(lambda a: a[index], batch), key))

        (params, opt_state, average), metrics = jax.lax.scan(
            minibatch_step, (state.params, state.opt_state, state.factors), xs
        )
        done = jnp.maximum(seen.terminated, seen.truncated)
        episodes, returns = done.sum(), seen.finished_return.sum()
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "episodes": episodes,
            # NaN, not 0, where no episode ended.
            "episode_return": jnp.where(episodes > 0, returns / jnp.maximum(episodes, 1), jnp.nan),
            "episode_return_sum": returns,
        }
        if monitor is not None:
            # A minibatch's worth of the rollout, spread over it: the scalars of every update have to be cheap.
            metrics |= monitor(params, features_fn(params, jax.tree.map(lambda x: x[:: config.minibatches], batch)))
        statistics = normalize.update(state.statistics, _flat(seen.observation), config.normalize_observations)
        state = state._replace(
            params=params, opt_state=opt_state, actors=actors, statistics=statistics, factors=average
        )
        return state, metrics

    def healthy(state: State, metrics: dict[str, Array]) -> Array:
        loss = metrics["policy_loss"] + metrics["value_loss"]
        return jnp.isfinite(loss) & tree.finite(state.params)

    def begin_task(state: State, data: Tree, task: Tree, clock: Array) -> State:
        env_key, method_key = jax.random.split(fold(state.key, _SWITCH, clock))
        params, opt_state, statistics = state.params, state.opt_state, state.statistics
        if needs_boundary:
            zeros = jax.tree.map(jnp.zeros_like, params)
            no_batch = zeros_like(minibatch)
            args = MethodArgs(
                method_key, clock * config.epochs * config.minibatches, no_batch, jnp.zeros(()), {}, {},
                loss_fn, features_fn, objective.outputs, model.init, boundary=clock > 0,
            )  # fmt: skip
            updates, stepped = method.update(zeros, opt_state, params, **args._asdict())
            # The very first task has no boundary: nothing has been learned that could be lost.
            params, opt_state = jax.lax.cond(
                clock > 0, lambda: (optax.apply_updates(params, updates), stepped), lambda: (params, opt_state)
            )
        if config.normalize_observations == "reset":
            statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        return state._replace(
            params=params, opt_state=opt_state, actors=actors, statistics=statistics,
            factors=running.start(state.factors.total), previous=state.params if needs_previous else (),
        )  # fmt: skip

    def measure(state: State, data: Tree, task: Tree, border: Array) -> dict[str, Array]:
        """All probes on fresh on-policy data; nothing of it reaches the state."""
        key, env_key, roll_key = jax.random.split(fold(state.key, _PROBE, border), 3)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        batch = collect(state.params, state.statistics, actors, roll_key, task)[2]

        def tapped_loss(params: Params, taps: Tree, batch: Batch) -> tuple[Array, tuple[Features, Tree]]:
            value, (_, features, inputs) = objective.tapped(params, taps, batch)
            return value, (features, inputs)

        seen = ProbeInput(
            state.params, batch, loss_fn, features_fn, objective.outputs, objective.output_loss, tapped_loss, taps_fn,
            state.factors, key, lambda: model.init(fold(state.key, _INIT)), state.previous,
        )  # fmt: skip
        return segments.look(probes, seen, segments.task_of(border, updates_per_task))

    def zeros_like(shapes: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def init(key: Key, data: Tree) -> State:
        params = model.init(fold(key, _INIT))
        statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(
            environment, config.num_envs, fold(key, _SWITCH), stream.task(fold(key, _TASKS), jnp.int32(0))
        )
        like: Tree = {}
        if config.kronecker_every:
            batch = zeros_like(minibatch)
            like = jax.eval_shape(lambda: factors_of(objective.backward(params, batch), batch, key, jnp.int32(0)))
        # A copy of its own: the state is donated.
        previous = jax.tree.map(jnp.copy, params) if needs_previous else ()
        return State(
            key, params, method.init(params), actors, statistics, running.start(like), previous, jnp.bool_(True)
        )

    def task_of(state: State, data: Tree, index: Array) -> Tree:
        return stream.task(fold(state.key, _TASKS), index)

    parts = segments.Parts(init, task_of, begin_task, update, healthy, measure)
    return segments.program(parts, probes, updates_per_task=updates_per_task, due=due)


def action_size(environment: Environment | Spaces) -> tuple[int, bool]:
    """Number of the policy's outputs, and whether actions are continuous: arguments of a model's ``build``."""
    space = environment.action_space
    return (space.size, True) if isinstance(space, Continuous) else (space.n, False)
