"""Throughput of our PPO against rejax, and the cost of looking: environment steps a second on CartPole.

Both sides run the same problem with the same hyperparameters (4 environments x 128 steps, 4 epochs x 4 minibatches, two
hidden layers of 64 tanh units, LeCun's initial kernels, evaluation off) in one process, in turn, and learn for the same
number of steps; the policies they end with are then judged by one and the same evaluator. rejax 0.1.3 expects five
values of `step`, so it gets gymnax 1.0 through an adapter. Wall time and processor time are medians over the timed
rounds.

    python -m experiments.bench.rl --seeds 1 8 32

Whether both learn the same takes more seeds than that, and no probes:

    python -m experiments.bench.rl --seeds 128 --probe-every 0

As in a run, a call of our program trains two seeds on a CPU, and the calls share the cores. ``--seed-chunk 0`` trains
all seeds in one call, as rejax does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench._measure import Running, Side, as_in_runs, one_segment, rounds_of
from experiments.bench._rejax import FiveValues, evaluate, row, show
from plastax import platforms
from plastax.methods import Backprop
from plastax.models import ActorCritic
from plastax.probes import Hessian, KroneckerSpectrum
from plastax.program import parallel
from plastax.rl import STREAMS, ppo
from plastax.types import Key, Model, Params, Tree


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    seeds: tuple[int, ...] = (1, 8, 32)
    """Numbers of vmapped seeds."""
    updates: int = 100
    """Updates (of 512 steps a seed) in one timed round."""
    rounds: int = 7
    """Timed rounds of each side, taken in turn after one that is not counted."""
    probe_every: int = 50
    """Updates between spectra in the probed variant, which 0 leaves out."""
    seed_chunk: int | None = None
    """Our seeds that one call trains; 0: all; by default as many as in a run."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


HYPER = ppo.PPO(value_clip=0.2, eps=1e-8, kronecker_every=0)


def as_in_rejax(model: Model) -> Model:
    """The model with rejax's initial values, LeCun's for all kernels; from its own it learns less in the long run."""

    def init(key: Key) -> Params:
        params = model.init(key)
        keys = jax.tree.unflatten(jax.tree.structure(params), [*jax.random.split(key, len(jax.tree.leaves(params)))])
        draw = jax.nn.initializers.lecun_normal()
        return jax.tree.map(lambda x, key: draw(key, x.shape) if x.ndim == 2 else x, params, keys)

    return model._replace(init=init)


def plastax_side(
    seeds: int, updates: int, *, probe_every: int = 0, chunk: int | None = None
) -> tuple[Running, Any, Callable[[Tree], Params]]:
    """Our PPO, its model, and the function that takes the parameters out of its state."""
    stream = STREAMS["cartpole_physics"].build()
    model = as_in_rejax(ActorCritic(activation="tanh").build(stream.environment.observation_shape, 2, continuous=False))
    config = HYPER if not probe_every else dataclasses.replace(HYPER, kronecker_every=probe_every * 16)
    probes = (Hessian(order=16, probes=1).build(model), KroneckerSpectrum().build(model)) if probe_every else ()
    program = ppo.program(
        dataclasses.replace(config, reward_scale=1.0),
        stream,
        model,
        Backprop().build(config.optimizer()),
        probes,
        updates_per_task=10**6,
    )
    chunk = platforms.chosen().seed_chunk if chunk is None else chunk
    batch = parallel.batch(lambda _: program, {"plastax": {}}, range(seeds), chunk, devices=0)
    length = probe_every or updates
    programs, data = as_in_runs(batch, length), batch.place(program.data)
    state = [programs.training.begin(part, data, np.int32(0)) for part in programs.start(data)]
    look, _ = programs.measuring.result()
    starts = itertools.count(0, length)

    def round_(state: Any) -> tuple[Any, Any]:
        for _ in range(0, updates, length):
            start = next(starts)
            state, train = one_segment(programs, data, state, start)
            border = np.int32(2 * (start + length) + 1)
            seen = [*programs.each(lambda part: look(program.view(part), data, border), state)] if look else []  # noqa: B023
        return state, (train, seen)

    return Running(state, round_), model, lambda state: batch.real(*(part.params for part in state))


def rejax_side(seeds: int, updates: int) -> tuple[Running, Any, Callable[[Tree], Params]]:
    """The same of rejax without its evaluation; the algorithm; and the function that takes the parameters out."""
    import gymnax
    import rejax

    algorithm = rejax.PPO.create(
        env=FiveValues(gymnax.make("CartPole-v1")[0]),
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=HYPER.num_envs,
        num_steps=HYPER.num_steps,
        num_epochs=HYPER.epochs,
        num_minibatches=HYPER.minibatches,
        learning_rate=HYPER.learning_rate,
        gamma=HYPER.gamma,
        gae_lambda=HYPER.gae_lambda,
        clip_eps=HYPER.clip,
        vf_coef=HYPER.value_weight,
        ent_coef=HYPER.entropy_weight,
        max_grad_norm=jnp.inf,
        normalize_observations=False,
    )
    state = jax.jit(jax.vmap(algorithm.init_state))(parallel.seed_keys(range(seeds)))

    def train(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (algorithm.train_iteration(s), None), state, None, updates)[0]

    run = jax.jit(jax.vmap(train), donate_argnums=0).lower(state).compile()

    return Running(state, lambda state: (run(state), None)), algorithm, lambda state: state.actor_ts.params


def main(config: Config) -> None:
    """Times all sides and prints the table."""
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for seeds in config.seeds:
        ours = functools.partial(plastax_side, seeds, config.updates, chunk=config.seed_chunk)
        built = {"plastax": ours(), "rejax": rejax_side(seeds, config.updates)}
        if config.probe_every:
            built["plastax, probed"] = ours(probe_every=config.probe_every)
        sides = [Side(name, running) for name, (running, *_) in built.items()]
        rounds_of(sides, 1)
        times = dict(zip(built, rounds_of(sides, config.rounds)))
        steps = seeds * config.updates * HYPER.steps_per_update
        key = jax.random.key(1)
        model, algorithm = built["plastax"][1], built["rejax"][1]

        def act(params: Any, obs: Any, key: Any, model: Any = model) -> Any:
            return jax.random.categorical(key, model.apply(params, obs[None])[0]["policy"][0])

        def rejax_act(params: Any, obs: Any, key: Any, algorithm: Any = algorithm) -> Any:
            return algorithm.actor.apply(params, obs[None], key, method="act")[0]

        for name, taken in times.items():
            running, _, params_of = built[name]
            judge = functools.partial(evaluate, rejax_act if name == "rejax" else act, key=key)
            judged = jax.vmap(judge)(params_of(running.state))
            rows.append(row(seeds, name, steps, taken, times["plastax"], judged))
    show("PPO", rows, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
