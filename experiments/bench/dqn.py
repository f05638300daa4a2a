"""Throughput of our DQN against rejax: environment steps a second on CartPole, and the policies that both end with.

Both sides run the same problem with the same hyperparameters (4 environments, a gradient step on 128 transitions after
each of their steps, one-step double targets, squared errors, two hidden layers of 64 ReLU units, evaluation off) in one
process, in turn, and learn for the same number of steps. One evaluator then judges the greedy policies. rejax 0.1.3
keeps no successor of a truncated step and takes it as terminal. Wall time and processor time are medians over the
timed rounds.

    python -m experiments.bench.dqn --seeds 1 8 32
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import tyro

from experiments.bench._measure import Running, Side, rounds_of
from experiments.bench._rejax import FiveValues, evaluate, row, show
from plastax.methods import Backprop
from plastax.models import ActorCritic
from plastax.program import parallel
from plastax.rl import STREAMS, dqn


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    seeds: tuple[int, ...] = (1, 8, 32)
    """Numbers of vmapped seeds."""
    updates: int = 20
    """Updates (of 512 steps a seed) in one timed round."""
    rounds: int = 7
    """Timed rounds of each side, taken in turn after one that is not counted."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


HYPER = dqn.DQN(train_every=1, n_step=1, huber=0.0, epsilon=0.05, kronecker_every=0)


def plastax_side(seeds: int, updates: int) -> tuple[Running, Any]:
    """Our DQN, and ``(params, observation, key) -> action``."""
    model = ActorCritic().build((4,), 2, continuous=None)
    stream, method = STREAMS["cartpole_physics"].build(), Backprop().build(HYPER.optimizer())
    program = parallel.over_seeds(dqn.program(HYPER, stream, model, method, updates_per_task=10**5), seeds)
    state = jax.jit(program.init)(parallel.seed_keys(range(seeds)), program.data)
    state = jax.jit(program.begin)(state, program.data, jnp.int32(0))
    step = jax.jit(program.segment, static_argnums=3, donate_argnums=0)
    run = step.lower(state, program.data, jnp.int32(0), updates).compile()
    starts = itertools.count(0, updates)

    def round_(state: Any) -> tuple[Any, Any]:
        return run(state, program.data, jnp.int32(next(starts)))

    return Running(state, round_), lambda params, obs, key: jnp.argmax(model.apply(params, obs[None])[0][0])


def rejax_side(seeds: int, updates: int) -> tuple[Running, Any]:
    """The same of rejax, without its evaluation."""
    import gymnax
    import rejax

    algorithm = rejax.DQN.create(
        env=FiveValues(gymnax.make("CartPole-v1")[0]),
        agent_kwargs={"activation": "relu"},
        num_envs=HYPER.num_envs,
        num_epochs=HYPER.steps_per_turn,
        batch_size=HYPER.batch_size,
        buffer_size=HYPER.capacity,
        fill_buffer=HYPER.warmup,
        learning_rate=HYPER.learning_rate,
        gamma=HYPER.gamma,
        polyak=0.0,
        target_update_freq=round(HYPER.target_every / HYPER.replay_ratio),
        eps_end=HYPER.epsilon,
        total_timesteps=10 * HYPER.epsilon_steps,
        exploration_fraction=0.1,
        max_grad_norm=jnp.inf,
    )
    state = jax.jit(jax.vmap(algorithm.init_state))(parallel.seed_keys(range(seeds)))

    def train(state: Any) -> Any:
        turns = updates * HYPER.turns
        return jax.lax.scan(lambda s, _: (algorithm.train_iteration(s), None), state, None, turns)[0]

    run = jax.jit(jax.vmap(train), donate_argnums=0).lower(state).compile()
    act = lambda params, obs, key: jnp.argmax(algorithm.agent.apply(params, obs[None])[0])  # noqa: E731
    return Running(state, lambda state: (run(state), None)), act


def main(config: Config) -> None:
    """Times both sides and prints the table."""
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for seeds in config.seeds:
        built = {side.__name__[:-5]: side(seeds, config.updates) for side in (plastax_side, rejax_side)}
        sides = [Side(name, running) for name, (running, _) in built.items()]
        rounds_of(sides, 1)
        times = dict(zip(built, rounds_of(sides, config.rounds)))
        steps = seeds * config.updates * HYPER.steps_per_update
        for name, taken in times.items():
            running, act = built[name]
            params = running.state.params if name == "plastax" else running.state.q_ts.params
            judged = jax.vmap(functools.partial(evaluate, act, key=jax.random.key(1)))(params)
            rows.append(row(seeds, name, steps, taken, times["plastax"], judged))
    show("DQN", rows, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
