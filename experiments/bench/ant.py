"""Throughput of our PPO on Slippery Ant against Brax's own PPO on its ant: environment steps a second.

Both sides have the same physics (MuJoCo's, in JAX), environments, unroll, epochs, minibatches, layers and Adam, in one
process, in turn: Brax calls us after each of its rounds. Ours also changes friction and starts every episode in a fresh
state; Brax's episodes all start like the first.

    make bench BENCH=ant
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from experiments.bench._bars import machine, table
from experiments.bench._measure import Running, Side, Times, timed
from plastax.methods import Backprop
from plastax.models import ActorCritic
from plastax.rl import Brax, ppo
from plastax.rl.brax import made
from plastax.rl.environment import Continuous


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    envs: int = 64
    """Environments."""
    updates: int = 4
    """Updates in one timed round."""
    rounds: int = 7
    """Timed rounds of each side, taken in turn after one that is not counted."""
    unroll: int = 32
    """Steps of an environment in an update."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""


def plastax_side(config: Config, agent: ppo.PPO) -> Side:
    """Our PPO; one run is a round."""
    stream = Brax().build()
    space, shape = stream.environment.action_space, stream.environment.observation_shape
    assert isinstance(space, Continuous)
    model = ActorCritic(hidden=config.hidden, activation="relu").build(shape, space.size, continuous=True)
    method = Backprop().build(agent.optimizer())
    program = ppo.program(agent, stream, model, method, updates_per_task=10**6)
    state = jax.jit(program.init)(jax.random.key(0), program.data)
    state = jax.jit(program.begin)(state, program.data, jnp.int32(0))
    segment = jax.jit(program.segment, static_argnums=3, donate_argnums=0)
    run = segment.lower(state, program.data, jnp.int32(0), config.updates).compile()
    return Side("plastax", Running(state, lambda state: run(state, program.data, jnp.int32(0))))


def in_turn(config: Config, agent: ppo.PPO, ours: Side) -> dict[str, Times]:
    """Times of both sides, round by round."""
    from brax.training.agents.ppo import networks, train

    # Brax 0.14.2 calls a function that JAX has removed.
    def replicated(x: Any, devices: Sequence[Any]) -> Any:
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), x)

    jax.device_put_replicated = replicated
    times = {"plastax": Times([], []), "brax": Times([], [])}
    begun: list[float] = []

    def turn(step: int, metrics: object) -> None:
        """What Brax calls after each of its rounds; the first of both sides is not counted."""
        del step, metrics
        wall, cpu = time.perf_counter(), time.process_time()
        _, our_wall, our_cpu = timed(ours)
        if begun:
            for name, taken in (("brax", (wall - begun[0], cpu - begun[1])), ("plastax", (our_wall, our_cpu))):
                times[name].wall.append(taken[0])
                times[name].cpu.append(taken[1])
        begun[:] = time.perf_counter(), time.process_time()

    train.train(
        made("ant", True),
        num_timesteps=(config.rounds + 1) * config.updates * agent.steps_per_update,
        num_evals=config.rounds + 2,
        run_evals=False,
        progress_fn=turn,
        episode_length=1000,
        num_envs=config.envs,
        unroll_length=config.unroll,
        batch_size=config.envs // agent.minibatches,
        num_minibatches=agent.minibatches,
        num_updates_per_batch=agent.epochs,
        learning_rate=agent.learning_rate,
        discounting=agent.gamma,
        gae_lambda=agent.gae_lambda,
        clipping_epsilon=agent.clip,
        entropy_cost=agent.entropy_weight,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=config.hidden,
            value_hidden_layer_sizes=config.hidden,
            activation=jax.nn.relu,
        ),
    )
    return times


def main(config: Config) -> None:
    """Times both sides and prints the table."""
    warnings.simplefilter("ignore")
    agent = ppo.PPO(num_envs=config.envs, num_steps=config.unroll, epochs=4, minibatches=4)
    times = in_turn(config, agent, plastax_side(config, agent))
    steps, rows = config.updates * agent.steps_per_update, []
    for name, taken in times.items():
        (wall, cpu), (slower, busier) = taken.median(), taken.ratio(times["plastax"]).median()
        rows.append(
            {"side": name, "steps/s": f"{steps / wall:,.0f}", "steps/CPU-s": f"{steps / cpu:,.0f}",
             "time / ours": f"{slower:.2f}", "CPU time / ours": f"{busier:.2f}"}
        )  # fmt: skip
    Console().print(table(f"PPO on Ant, {config.envs} environments, {machine()}", rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
