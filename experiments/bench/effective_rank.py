"""The effective rank and its gradient: plastax against autodiff through singular values; and what it adds to training.

The first table is of features alone, ReLU of standard normal pre-activations, and such whose singular values fall to
1e-4 of the largest: value and gradient by `plastax.linalg.effective_rank` (an eigendecomposition of the smaller Gram
matrix, in double precision where single does not resolve it, and a singular value decomposition of nearly square ones),
by `jax.value_and_grad` through `jax.numpy.linalg.svd(..., compute_uv=False)`, and the way of the published code, which
takes value and gradient apart.
Errors are of the gradient against a float64 singular value decomposition, relative, in the Frobenius norm.

The others are of training: by plain optimisation, with L2, and with L2-ER, whose time is a mean over acting and other
steps. One is of gradient steps of the preset `paper` of `permuted_mnist`: five networks 784-1000-1000-1000-10, batches
of one, plain gradient descent, L2-ER on the last 100 examples every 100 steps. The other is of updates of the default
`rl_gymnax`, eight seeds, Kronecker factors included. Their last row is what LAPACK takes for the eigendecompositions
alone, as many and of all columns: what L2-ER would take without leaving out silent units. Sides are timed in turn, in
one process; ratios are medians over rounds.

    make bench BENCH=effective_rank

Without MNIST in the cache (`make data NAME=mnist`) the images are random ones of its shape; the times are the same.
"""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import rl_gymnax
from experiments.bench._bars import Bar, Options, judged, machine, report, table
from experiments.bench._measure import Running, Side, Times, as_in_runs, compiled, one_segment, rounds_of
from experiments.bench.supervised import mnist
from plastax import linalg, platforms
from plastax.methods import L2, L2ER, Backprop
from plastax.models import MLP, ActorCritic
from plastax.probes import KroneckerSpectrum
from plastax.program import parallel
from plastax.program.supervised import Training, batch_like, program
from plastax.rl import STREAMS, ppo
from plastax.streams import Permuted
from plastax.types import Array, MethodConfig, Program, Stream

FASTER = 4.0
"""Least ratio of the time through singular values to plastax's."""
SLOWEST = 1.3
"""Largest ratio of the time of training with L2-ER to plain training's."""
SHAPES: tuple[tuple[int, int], ...] = ((100, 1000), (500, 512), (1200, 128), (2048, 256))
COLLAPSED: tuple[tuple[int, int], ...] = ((128, 64), (100, 1000), (1200, 128))
"""Of features whose singular values fall; the first is a minibatch of PPO's."""


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """What to time."""

    rounds: int = 11
    """Timed rounds of the ranks alone, all sides in turn."""
    period: int = 100
    """Gradient steps from one effective-rank step to the next, and the examples that each is taken of."""
    steps: int = 400
    """Gradient steps of each side in one timed round of training; a multiple of the period."""
    updates: int = 20
    """Updates of PPO of each side in one timed round."""
    training_rounds: int = 21
    """Timed rounds of training; single ratios scatter by a tenth on a shared machine."""
    seeds: tuple[int, int] = (5, 8)
    """Networks of `permuted_mnist` and of `rl_gymnax`."""


class Ranked(NamedTuple):
    """Features of one kind; times of a value with its gradient, relative errors of the gradients."""

    name: str
    ours: Times
    through: Times
    apart: Times
    error: float
    through_error: float


class Trained(NamedTuple):
    """Times of a gradient step or an update of all networks, by method; and of L2-ER's eigendecompositions alone."""

    plain: Times
    l2: Times
    l2_er: Times
    decompositions: Times


def through_svdvals(x: Array) -> Array:
    """The effective rank as the published code has it."""
    s = jnp.linalg.svd(x, compute_uv=False)
    p = s / jnp.maximum(jnp.sum(s), 1e-8)
    return jnp.exp(-jnp.sum(p * jnp.log(p + 1e-8)))


def exact_gradient(x: np.ndarray) -> np.ndarray:
    """In float64, of features without zero singular values: ``U f(S) V^T``."""
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    log_p = np.log(s / s.sum())
    entropy = -np.sum(s / s.sum() * log_p)
    return (u * (np.exp(entropy) * (-log_p - entropy) / s.sum())) @ vt


def relu(shape: tuple[int, int]) -> Array:
    """Features of a layer at initialisation."""
    return jax.nn.relu(jax.random.normal(jax.random.key(0), shape))


def collapsed(shape: tuple[int, int]) -> Array:
    """Features whose singular values fall geometrically to 1e-4 of the largest."""
    u, s, vt = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), full_matrices=False)
    return jnp.asarray((u * np.geomspace(1, 1e-4, s.size)) @ vt, jnp.float32)


def ranked(name: str, x: Array, rounds: int) -> Ranked:
    """Times and errors of features ``[n, d]``."""
    ours = compiled("plastax", jax.value_and_grad(linalg.effective_rank), x)
    through = compiled("svdvals", jax.value_and_grad(through_svdvals), x)
    value, gradient = (compiled("", fn, x) for fn in (through_svdvals, jax.grad(through_svdvals)))
    apart = Side("published", lambda: (value.run(), gradient.run()))
    exact = exact_gradient(np.asarray(x))
    errors = [float(np.linalg.norm(side.run()[1] - exact) / np.linalg.norm(exact)) for side in (ours, through)]
    rounds_of((ours, through, apart), 1)
    times = rounds_of((ours, through, apart), rounds)
    return Ranked(f"{name}{x.shape[0]} x {x.shape[1]}", times[0], times[1], times[2], errors[0], errors[1])


def running(program: Program, seeds: int, updates: int, rounds: int) -> Running:
    """Training of all seeds; every round trains ``updates`` updates of the first task, which must be long enough."""
    batch = parallel.batch(lambda _: program, {"": {}}, range(seeds), platforms.chosen().seed_chunk)
    programs, data = as_in_runs(batch, updates), batch.place(program.data)
    state = [programs.training.begin(part, data, np.int32(0)) for part in programs.start(data)]
    clocks = iter(range(0, updates * rounds, updates))
    return Running(state, lambda state: one_segment(programs, data, state, next(clocks)))


def supervised(config: Config, hidden: tuple[int, ...], method: MethodConfig, stream: Stream) -> Program:
    """Of one network of `permuted_mnist`; an update is a round."""
    settings = Training("sgd", 1e-2, batch_size=1, updates=stream.examples // config.steps)
    model = MLP(hidden).build(stream.input_shape, stream.outputs)
    model = model._replace(batch_like=batch_like(settings, stream))
    return program(settings, stream, model, method.build(settings.transformation(), model))


def reinforcement(updates: int, method: MethodConfig) -> Program:
    """Of one agent of `rl_gymnax` in its first task."""
    agent: ppo.PPO = rl_gymnax.DEFAULTS["ppo"]
    stream = STREAMS["cartpole_chain"]
    size, continuous = ppo.action_size(stream.spaces())
    model = ActorCritic().build(stream.spaces().observation_shape, size, continuous=continuous)
    model = model._replace(batch_like=ppo.batch_like(agent, stream.spaces()))
    probes = (KroneckerSpectrum().build(model),)
    optimizer = method.build(agent.optimizer(), model)
    return ppo.program(agent, stream.build(), model, optimizer, probes, updates_per_task=updates)


def decompositions(matrices: int, size: int, dtype: str, times: int) -> Running:
    """Decomposes Gram matrices ``[size, size]``, ``times`` over; the cores share them as in training."""
    x = np.random.default_rng(0).standard_normal((matrices, 2 * size, size)).clip(0)
    grams = np.einsum("mni,mnj->mij", x, x).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        one = linalg.sequential(jax.jit(jnp.linalg.eigh))

        def step(grams: Array, _: None) -> tuple[Array, Array]:
            values, vectors = jax.vmap(one)(grams)
            # Each waits for the last one.
            return grams + 0 * vectors, values[:, 0]

        run = jax.jit(lambda grams: jax.lax.scan(step, grams, None, times)).lower(grams).compile()
        return Running(jnp.asarray(grams), run)


def trained(programs: list[Program], seeds: int, updates: int, units: int, rounds: int, alone: Running) -> Trained:
    """Times of the three methods' programs and of the decompositions, with ``units`` steps in a round."""
    runs = [*(running(one, seeds, updates, rounds + 2) for one in programs), alone]
    sides = [Side(name, run, units=units) for name, run in zip(Trained._fields, runs)]
    rounds_of(sides, 2)
    return Trained(*rounds_of(sides, rounds))


def both(config: Config, hidden: tuple[int, ...]) -> dict[str, Trained]:
    """Of `permuted_mnist` and `rl_gymnax`; with ``quick`` not the latter, whose programs take long to compile."""
    rounds, window = config.training_rounds, config.period
    stream = Permuted(config.steps * (rounds + 3)).build(mnist(config.quick))
    methods = (Backprop(), L2(), L2ER(er_lr=1e-2, period=window, window=window))
    images = [supervised(config, hidden, method, stream) for method in methods]
    seeds, agents = config.seeds
    alone = decompositions(seeds * len(hidden), min(window, *hidden), "float32", config.steps // window)
    done = {"a step of permuted_mnist": trained(images, seeds, 1, config.steps, rounds, alone)}
    if config.quick:
        return done
    rank = L2ER(period=rl_gymnax.DEFAULTS["l2_er.period"])
    programs = [reinforcement(config.updates * (rounds + 2), method) for method in (Backprop(), L2(), rank)]
    # Two hidden layers of 64 units of actor and critic each.
    agent: ppo.PPO = rl_gymnax.DEFAULTS["ppo"]
    alone = decompositions(agents * 4, 64, "float64", config.updates * agent.gradient_steps // rank.period)
    return done | {"an update of rl_gymnax": trained(programs, agents, config.updates, config.updates, rounds, alone)}


def ranks_table(done: list[Ranked]) -> Table:
    """Value and gradient of the features alone."""
    rows = []
    for r in done:
        times = [f"{1e3 * wall:.1f} ({1e3 * cpu:.1f})" for wall, cpu in (t.median() for t in r[1:4])]
        ratios = ["{:.2f}x ({:.2f}x)".format(*t.ratio(r.ours).median()) for t in (r.through, r.apart)]
        rows.append(
            {"features": r.name, "plastax": times[0], "svdvals": times[1], "faster by": ratios[0],
             "value, gradient apart": times[2], "faster than apart by": ratios[1],
             "error": f"{r.error:.0e}", "of svdvals": f"{r.through_error:.0e}"}
        )  # fmt: skip
    return table("Effective rank and its gradient, ms (CPU ms)", rows)


def training_table(what: str, done: Trained) -> Table:
    """Training by each method."""
    rows = [
        {
            "method": name,
            "time": "{:.2f} ({:.2f})".format(*(1e3 * value for value in times.median())),
            "of plain training's": "{:.3f} ({:.3f})".format(*times.ratio(done.plain).median()),
        }
        for name, times in done._asdict().items()
    ]
    return table(f"{what[0].upper()}{what[1:]}, ms (CPU ms)", rows)


def bars(ranks: list[Ranked], training: dict[str, Trained]) -> list[Bar]:
    """What must hold."""
    out = [
        Bar(f"{r.name}: time through singular values / plastax's",
            judged(r.through.ratio(r.ours).median()), FASTER, False)
        for r in ranks
    ]  # fmt: skip
    # Wall time: the cores share the decompositions.
    ratios = {what: done.l2_er.ratio(done.plain).median()[0] for what, done in training.items()}
    return [*out, *(Bar(f"{what}: L2-ER / plain", ratio, SLOWEST, True) for what, ratio in ratios.items())]


def main(config: Config) -> tuple[list[Ranked], dict[str, Trained], list[Bar]]:
    """Times everything, prints tables and bars, and gives both out."""
    if config.steps % config.period:
        raise SystemExit(f"--steps {config.steps} is not a multiple of --period {config.period}")
    config.pinned()
    shapes, falling, hidden = SHAPES, COLLAPSED, (1000,) * 3
    if config.quick:
        config = dataclasses.replace(config, rounds=1, training_rounds=1, steps=8, period=4, seeds=(2, 2))
        shapes, falling, hidden = ((12, 40), (40, 12)), ((300, 40),), (20,) * 3
    console = Console(width=120)
    console.print(
        f"{machine()}; {'-'.join(map(str, (784, *hidden, 10)))}, period {config.period}, {config.steps} steps a round"
    )
    ordinary = [ranked("", relu(shape), config.rounds) for shape in shapes]
    ranks = [*ordinary, *(ranked("collapsed, ", collapsed(shape), config.rounds) for shape in falling)]
    console.print(ranks_table(ranks))
    training = both(config, hidden)
    for what, done in training.items():
        console.print(training_table(what, done))
    held = bars(ordinary, training)
    training_numbers = {what: done._asdict() for what, done in training.items()}
    report(console, held, config.out, ranks=[r._asdict() for r in ranks], training=training_numbers)
    return ranks, training, held


if __name__ == "__main__":
    main(tyro.cli(Config))
