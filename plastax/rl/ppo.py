"""Proximal policy optimisation on a stream of tasks, as a `Program`.

`rollout` has the environments and the advantages, `objective` the agent's settings and its loss, `agent` all that is
not particular to PPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from plastax.keys import shuffles
from plastax.program.learner import Learned, Learner, learned_of
from plastax.rl import agent, normalize, objective
from plastax.rl import policy as policies
from plastax.rl.agent import Purpose, State, action_size, flat
from plastax.rl.environment import Continuous, Environment, EnvironmentStream, Spaces
from plastax.rl.objective import PPO, RolloutBatch
from plastax.rl.rollout import Actors, Transition, advantages, rollout, successor_values
from plastax.types import Array, Key, Method, Model, Params, Probe, Program, Tree

__all__ = ["PPO", "Purpose", "RolloutBatch", "State", "action_size", "batch_like", "ppo", "program"]


def batch_like(config: PPO, environment: Environment | Spaces) -> RolloutBatch:
    """Shapes of a minibatch."""
    size = config.steps_per_update // config.minibatches
    space = environment.action_space
    scalar: Any = jax.ShapeDtypeStruct((size,), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    if isinstance(space, Continuous):
        action = jax.ShapeDtypeStruct((size, space.size), jnp.float32)
    return RolloutBatch(agent.observation_like(environment, size), action, *[scalar] * 4)


def program(
    config: PPO,
    stream: EnvironmentStream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    **options: Any,
) -> Program:
    """PPO of one seed: the `agent.program` of `ppo`, whose arguments it takes; ``model`` has actor and critic."""
    made = ppo(config, stream.environment, model)
    return agent.program(made, stream, method, probes, updates_per_task=updates_per_task, **options)


def ppo(config: PPO, environment: Environment, model: Model) -> agent.Agent:
    """The agent, with a model of actor and critic; probes look at a rollout of an update's length."""
    policy = policies.make(environment.action_space)
    network = objective.network(config, model, policy)

    def advance(noise: Tree, state: Tree, action: Array, task: Tree) -> Any:
        return environment.advance(noise, state, policy.to_environment(action), task)

    played = environment._replace(advance=advance)

    def collect(
        params: Params, statistics: normalize.Statistics, actors: Actors, key: Key, task: Tree
    ) -> tuple[Actors, Transition, RolloutBatch]:
        """A rollout and the flat batch ``[T * N]`` made of it."""

        def act(observation: Array, noise: Array) -> tuple[Array, policies.Outputs]:
            outputs = model.apply(params, config.observe(statistics, observation))[0]
            # The rollout needs the actor only. What follows from its outputs is computed after the scan, at once.
            return policy.sample(outputs, noise), {name: x for name, x in outputs.items() if name != "value"}

        def values(observation: Array) -> Array:
            return model.apply(params, config.observe(statistics, observation))[0]["value"]

        act_key, step_key = jax.random.split(key)
        size = (config.num_steps, config.num_envs)
        noise = policy.noise(act_key, size), environment.noise(step_key, task, *size)
        actors, seen = rollout(played, act, actors, noise, task)
        value = values(flat(seen.observation)).reshape(seen.reward.shape)
        next_value = successor_values(values, value, seen)
        reward = config.reward_scale * seen.reward
        advantage = advantages(
            reward, value, next_value, seen.terminated, seen.truncated, config.gamma, config.gae_lambda
        )
        observation = config.observe(statistics, flat(seen.observation))
        rest = (seen.action, policy.log_prob(seen.aside, seen.action), value, advantage, advantage + value)
        return actors, seen, RolloutBatch(observation, *map(flat, rest))

    def update(
        learns: Learner, state: State, task: Tree, clock: Array, key: Key
    ) -> tuple[State, Transition, dict[str, Array]]:
        roll_key, shuffle_key, method_key = jax.random.split(key, 3)
        actors, seen, batch = collect(state.params, state.statistics, state.actors, roll_key, task)
        steps = config.gradient_steps
        order = shuffles(shuffle_key, config.epochs, config.steps_per_update).reshape(steps, -1)
        xs = (clock * steps + jnp.arange(steps), order, jax.random.split(method_key, steps))

        def gradient_step(learned: Learned, x: tuple[Array, Array, Key]) -> tuple[Learned, dict[str, Array]]:
            clock, index, key = x
            minibatch = jax.tree.map(lambda a: a[index], batch)
            learned, seen = learns.step(learned, minibatch, clock, key, state.key)
            return learned, seen.metrics

        learned, metrics = jax.lax.scan(gradient_step, learned_of(state), xs)
        return state._replace(actors=actors, **learned._asdict()), seen, jax.tree.map(jnp.mean, metrics)

    def batch(state: State, actors: Actors, key: Key, task: Tree) -> RolloutBatch:
        return collect(state.params, state.statistics, actors, key, task)[2]

    return agent.Agent(
        config,
        model,
        network,
        batch_like(config, environment),
        lambda clock: clock * config.gradient_steps,
        update,
        lambda metrics: jnp.isfinite(metrics["policy_loss"] + metrics["value_loss"]),
        batch,
    )
