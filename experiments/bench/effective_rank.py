"""The effective rank and its gradient: plastax against autodiff through singular values; and what it adds to training.

The first table is of features alone, ReLU of standard normal pre-activations, and such whose singular values fall to
1e-4 of the largest: value and gradient by `plastax.linalg.effective_rank` (an eigendecomposition of the smaller Gram
matrix, in double precision where single does not resolve it, and a singular value decomposition of nearly square ones),
by `jax.value_and_grad` through `jax.numpy.linalg.svd(..., compute_uv=False)`, and the way of the published code, which
takes value and gradient apart.
Errors are of the gradient against a float64 singular value decomposition, relative, in the Frobenius norm.

The second is of gradient steps of the preset `paper` of `permuted_mnist`: the network 784-1000-1000-1000-10, batches of
one, plain gradient descent, by `supervised`; of plain descent, of L2, and of L2-ER on the last 100 examples every
100 steps, whose time is thus a mean over acting and other steps. Sides are timed in turn, in one process; ratios are
medians over rounds.

    make bench BENCH=effective_rank ARGS="--pin"

Without MNIST in the cache (`make data NAME=mnist`) the images are random ones of its shape; the times are the same.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._bars import Bar, Options, judged, machine, report, table
from experiments.bench._measure import Running, Side, Times, compiled, rounds_of
from experiments.bench.supervised import mnist
from plastax import linalg
from plastax.methods import L2, L2ER, Backprop
from plastax.models import MLP
from plastax.program import parallel
from plastax.program.supervised import Training, batch_like, program
from plastax.streams import Permuted
from plastax.types import Array, MethodConfig, Stream, Tree

FASTER = 4.0
"""Least ratio of the time through singular values to plastax's."""
SLOWEST = 1.10
"""Largest ratio of the time of a step of L2-ER to a plain one's."""
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
    training_rounds: int = 7
    """Timed rounds of training."""


class Ranked(NamedTuple):
    """Features of one kind; times of a value with its gradient, relative errors of the gradients."""

    name: str
    ours: Times
    through: Times
    apart: Times
    error: float
    through_error: float


class Trained(NamedTuple):
    """Times of a gradient step, by method."""

    plain: Times
    l2: Times
    l2_er: Times


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


def training(config: Config, stream: Stream, hidden: tuple[int, ...], method: MethodConfig) -> Running:
    """Training of one network on a task; every call trains ``config.steps`` steps."""
    settings = Training("sgd", 1e-2, batch_size=1, updates=stream.examples // config.steps)
    model = MLP(hidden).build(stream.input_shape, stream.outputs)
    model = model._replace(batch_like=batch_like(settings, stream))
    one = program(settings, stream, model, method.build(settings.transformation(), model))
    every = parallel.over_seeds(one, 1)
    shared = jax.device_put(every.data)
    state = jax.jit(every.init)(parallel.seed_keys(range(1)), shared)
    state = jax.jit(every.begin)(state, shared, jnp.int32(0))
    segment = jax.jit(every.segment, static_argnums=3, donate_argnums=0)
    steps = segment.lower(state, shared, jnp.int32(0), 1).compile()
    clocks = iter(range(settings.updates))

    def call(state: Tree) -> tuple[Tree, Any]:
        state, train = steps(state, shared, jnp.int32(next(clocks)))
        return state, train["loss"]

    return Running(state, call)


def trained(config: Config, hidden: tuple[int, ...]) -> Trained:
    """Times of the three methods' steps."""
    dataset = mnist(config.quick)
    stream = Permuted(config.steps * (config.training_rounds + 3)).build(dataset)
    rank = L2ER(er_lr=1e-2, period=config.period, window=config.period)
    runs = [training(config, stream, hidden, method) for method in (Backprop(), L2(), rank)]
    sides = [Side(name, run, units=config.steps) for name, run in zip(("plain", "l2", "l2_er"), runs)]
    rounds_of(sides, 1)
    return Trained(*rounds_of(sides, config.training_rounds))


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


def steps_table(done: Trained) -> Table:
    """A gradient step of each method."""
    rows = [
        {
            "method": name,
            "step": "{:.2f} ({:.2f})".format(*(1e3 * value for value in times.median())),
            "of a plain one": "{:.3f} ({:.3f})".format(*times.ratio(done.plain).median()),
        }
        for name, times in done._asdict().items()
    ]
    return table("A gradient step, ms (CPU ms)", rows)


def bars(ranks: list[Ranked], steps: Trained) -> list[Bar]:
    """What must hold."""
    out = [
        Bar(f"{r.name}: time through singular values / plastax's",
            judged(r.through.ratio(r.ours).median()), FASTER, False)
        for r in ranks
    ]  # fmt: skip
    ratio = judged(steps.l2_er.ratio(steps.plain).median())
    return [*out, Bar("a step of L2-ER / a plain one", ratio, SLOWEST, True)]


def main(config: Config) -> tuple[list[Ranked], Trained, list[Bar]]:
    """Times everything, prints tables and bars, and gives both out."""
    if config.steps % config.period:
        raise SystemExit(f"--steps {config.steps} is not a multiple of --period {config.period}")
    config.pinned()
    shapes, falling, hidden = SHAPES, COLLAPSED, (1000,) * 3
    if config.quick:
        config = dataclasses.replace(config, rounds=1, training_rounds=1, steps=8, period=4)
        shapes, falling, hidden = ((12, 40), (40, 12)), ((300, 40),), (20,) * 3
    console = Console(width=120)
    console.print(
        f"{machine()}; {'-'.join(map(str, (784, *hidden, 10)))}, period {config.period}, {config.steps} steps a round"
    )
    ordinary = [ranked("", relu(shape), config.rounds) for shape in shapes]
    ranks = [*ordinary, *(ranked("collapsed, ", collapsed(shape), config.rounds) for shape in falling)]
    console.print(ranks_table(ranks))
    steps = trained(config, hidden)
    console.print(steps_table(steps))
    held = bars(ordinary, steps)
    report(console, held, config.out, ranks=[r._asdict() for r in ranks], steps=steps._asdict())
    return ranks, steps, held


if __name__ == "__main__":
    main(tyro.cli(Config))
