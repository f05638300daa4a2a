"""Speed and memory of supervised training: plastax against a plain loop, and against what the machine can do.

The stream is `permuted_mnist` with the network of the preset `paper`, 784-1000-1000-1000-10, float32, plain gradient
descent at 1e-2: gather a batch, permute its pixels, take loss and accuracy before the step, go back, step. The plain
loop is what one would write for exactly this: `jax.lax.scan` over `jax.value_and_grad`, over seeds by `jax.vmap` too.
Both start at the same parameters and see the same batches, and their losses and parameters are compared before they are
timed, in turn, in one process. plastax also keeps what methods and probes may ask for (features, layer inputs, the
norm of the gradient). Ratios are medians over rounds, the plain loop's time to plastax's: 1 is no cost, more is faster.

"of bound" is the least time in which this machine, at the speed that it shows in a large matrix product and in reading
memory of the weights' size, could do a step's matrix products, or read all weights twice and write them once (forward;
backward and step, merged), whichever is more, over plastax's time. Batches of one are bound by memory.

A second table is the compiler's account of memory: the data set is there once, whatever the number of seeds.

    make bench BENCH=supervised ARGS="--pin --batches 1 --seeds 1 4"

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
import optax
from rich.console import Console
from rich.table import Table

from experiments.bench._bars import Bar, Options, judged, machine, report, table
from experiments.bench._measure import Roofline, Running, Side, Times, roofline, rounds_of
from plastax import data, tree
from plastax.data import Card, DataError, Dataset
from plastax.keys import fold
from plastax.methods import Backprop
from plastax.models import MLP
from plastax.program import parallel
from plastax.program.supervised import Purpose, program
from plastax.program.training import Training
from plastax.streams import Permuted
from plastax.types import Array, Params, Stream, Tree

LEARNING_RATE = 1e-2
FASTEST = 0.95
"""Least ratio of the plain loop's time to plastax's."""
ROUNDING = 1e-2
"""Most that the two sides' parameters may differ, of the way they went: both add up in orders of their own."""


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """What to time."""

    batches: tuple[int, ...] = (1, 16)
    """Examples a gradient step."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of vmapped seeds."""
    steps: int = 100
    """Gradient steps of each seed in one timed round: a recorded update, a call of the compiled program."""
    rounds: int = 21
    """Timed rounds of each side, taken in turn after those that are compared: short and many, against drift. Shared out
    among the seeds, but no fewer than 5."""


class Memory(NamedTuple):
    """Bytes, by the compiler's account of plastax's program.

    Attributes:
      data: the data set.
      state: parameters and all else that belongs to the seeds.
      arguments: all that the program is given.
      temporary: what it needs beside them while it runs.
    """

    data: int
    state: int
    arguments: int
    temporary: int


class Measured(NamedTuple):
    """One batch size and number of seeds; times are of a gradient step of all seeds."""

    batch: int
    seeds: int
    ours: Times
    plain: Times
    off: float
    bound_s: float
    bound_by: str
    memory: Memory


def mnist(quick: bool) -> Dataset:
    """MNIST if it is in the cache, else random images of its shape."""
    if not quick:
        try:
            return data.load("mnist", download=False)
        except DataError:
            pass
    draw, train, test = np.random.default_rng(0), 640 if quick else 60_000, 64 if quick else 10_000
    images, labels = draw.integers(0, 256, (train + test, 28, 28, 1), np.uint8), draw.integers(0, 10, train + test)
    card = Card("random", True, "", "", "", "", (28, 28, 1), 10, train, test, "")
    labels = labels.astype(np.int32)
    return Dataset(images[:train], labels[:train], images[train:], labels[train:], card)


def plain_steps(weights: Tree, images: Array, labels: Array, pixels: Array, rows: Array) -> tuple[Tree, Array, Array]:
    """Trains one network by hand.

    Args:
      weights: ``(kernel, bias)`` of each layer.
      images: uint8 ``[N, 28, 28, 1]``.
      labels: int32 ``[N]``.
      pixels: int32 ``[784]``, their order.
      rows: int32 ``[steps, batch]``, the examples of every step.

    Returns:
      The weights, mean loss and mean accuracy, each before its step.
    """

    def loss(weights: Tree, x: Array, y: Array) -> tuple[Array, Array]:
        *hidden, (kernel, bias) = weights
        for k, b in hidden:
            x = jax.nn.relu(x @ k + b[None])
        logits = x @ kernel + bias[None]
        value = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return value, jnp.mean(jnp.argmax(logits, -1) == y, dtype=jnp.float32)

    def step(weights: Tree, row: Array) -> tuple[Tree, tuple[Array, Array]]:
        x = images[row].reshape(len(row), -1)[:, pixels].astype(jnp.float32) / 255.0
        (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(weights, x, labels[row])
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, grads), (value, accuracy)

    weights, (values, accuracies) = jax.lax.scan(step, weights, rows)
    return weights, values.mean(), accuracies.mean()


def as_weights(params: Params) -> Tree:
    """Our parameters as the plain loop has them, a copy."""
    hidden = sorted(name for name in params if name != "output")
    return [tuple(jnp.copy(params[name][leaf]) for leaf in ("kernel", "bias")) for name in (*hidden, "output")]


def bytes_of(values: Tree) -> int:
    """Of all arrays together."""
    return sum(x.nbytes for x in jax.tree.leaves(values))


def ours(config: Config, stream: Stream, hidden: tuple[int, ...], batch: int, seeds: int) -> tuple[Running, Memory]:
    """plastax, after a task's first steps; every call trains ``config.steps`` more."""
    training = Training("sgd", LEARNING_RATE, batch_size=batch, updates=stream.examples // (batch * config.steps))
    model = MLP(hidden).build(stream.input_shape, stream.outputs)
    every = program(training, stream, model, Backprop().build(training.transformation()))
    every = parallel.over_seeds(every, seeds)
    shared = jax.device_put(every.data)
    state = jax.jit(every.init)(parallel.seed_keys(range(seeds)), shared)
    state = jax.jit(every.begin)(state, shared, jnp.int32(0))
    segment = jax.jit(every.segment, static_argnums=3, donate_argnums=0)
    compiled = segment.lower(state, shared, jnp.int32(0), 1).compile()
    account: Any = compiled.memory_analysis()
    memory = Memory(bytes_of(shared), bytes_of(state), account.argument_size_in_bytes, account.temp_size_in_bytes)
    clocks = iter(range(training.updates))

    def call(state: Tree) -> tuple[Tree, Any]:
        state, train = compiled(state, shared, jnp.int32(next(clocks)))
        return state, (train["loss"].mean(-1), train["accuracy"].mean(-1))

    running = Running(state, call)
    running()  # The order of the task's examples is drawn before its first step.
    return running, memory


def plain(config: Config, stream: Stream, batch: int, state: Any) -> Running:
    """The plain loop from where plastax is, for the rest of its task."""
    task = jax.jit(jax.vmap(lambda key: stream.task(fold(key, Purpose.TASKS), stream.data, jnp.int32(0))))(state.key)
    rows = jnp.take_along_axis(task.chosen, state.order, axis=1)
    rows = rows.reshape(len(rows), -1, config.steps, batch)
    images, labels = jax.device_put((stream.data.train_images, stream.data.train_labels))
    many = jax.jit(jax.vmap(plain_steps, in_axes=(0, None, None, 0, 0)), donate_argnums=0)
    weights = as_weights(state.params)
    compiled = many.lower(weights, images, labels, task.order, rows[:, 0]).compile()
    clocks = iter(range(1, rows.shape[1]))

    def call(weights: Tree) -> tuple[Tree, Any]:
        weights, value, accuracy = compiled(weights, images, labels, task.order, rows[:, next(clocks)])
        return weights, (value, accuracy)

    return Running(weights, call)


def difference(start: Tree, mine: Tree, theirs: Tree) -> float:
    """How far apart two ends are, of the way from the start."""
    apart, way = (tree.norm(jax.tree.map(jnp.subtract, a, b)) for a, b in ((mine, theirs), (theirs, start)))
    return float(apart / way)


def bound(weights: Tree, batch: int, roof: Roofline) -> tuple[float, str]:
    """(least seconds of a step of all seeds, what sets them)."""
    kernels = [kernel.size for kernel, _ in weights]
    # Forward, the kernels' gradients, and the inputs', which the first layer does not need.
    flops = roof.seconds(2.0 * batch * (3 * sum(kernels) - kernels[0]))
    passes = roof.seconds(0.0, 3.0 * bytes_of(weights))
    return max((flops, "matmul"), (passes, "memory"))


def measure(config: Config, stream: Stream, hidden: tuple[int, ...], batch: int, seeds: int) -> Measured:
    """Compares the two sides over one round and times the others."""
    first, memory = ours(config, stream, hidden, batch, seeds)
    second = plain(config, stream, batch, first.state)
    start = as_weights(first.state.params)
    values, theirs = np.asarray(first()), np.asarray(second())
    off = difference(start, as_weights(first.state.params), second.state)
    off = max(off, float(np.linalg.norm(values - theirs) / np.linalg.norm(theirs)))
    weights_size = bytes_of(start)
    del start
    sides = [Side(name, run, units=config.steps) for name, run in (("plastax", first), ("plain", second))]
    mine, others = rounds_of(sides, config.rounds)
    roof = roofline(256, 8, 1) if config.quick else roofline(megabytes=max(1, weights_size >> 20))
    least, by = bound(second.state, batch, roof)
    return Measured(batch, seeds, mine, others, off, least, by, memory)


def row(measured: Measured) -> dict[str, Any]:
    """The numbers of both tables."""
    mine, theirs = measured.ours.median(), measured.plain.median()
    wall, cpu = measured.plain.ratio(measured.ours).median()
    return {
        "batch": measured.batch, "seeds": measured.seeds,
        "steps_per_s": measured.seeds / mine[0], "steps_per_cpu_s": measured.seeds / mine[1],
        "plain_steps_per_s": measured.seeds / theirs[0], "plain_steps_per_cpu_s": measured.seeds / theirs[1],
        "wall_ratio": wall, "cpu_ratio": cpu, "off": measured.off,
        "of_bound": measured.bound_s / judged(mine), "bound_by": measured.bound_by,
        **{f"{name}_bytes": value for name, value in measured.memory._asdict().items()},
        "rounds": len(measured.ours.wall),
    }  # fmt: skip


def tables(done: list[Measured]) -> tuple[Table, Table]:
    """Gradient steps a second, each seed's counted, with ratios to the plain loop; and what plastax's program takes."""
    speeds = [
        {
            "batch": f"{r['batch']}", "seeds": f"{r['seeds']}", "steps/s": f"{r['steps_per_s']:,.0f}",
            "plain": f"{r['plain_steps_per_s']:,.0f}", "steps/CPU-s": f"{r['steps_per_cpu_s']:,.0f}",
            "plain, CPU-s": f"{r['plain_steps_per_cpu_s']:,.0f}", "wall ratio": f"{r['wall_ratio']:.2f}",
            "CPU ratio": f"{r['cpu_ratio']:.2f}", "of bound": f"{r['of_bound']:.0%} {r['bound_by']}",
            "differ by": f"{r['off']:.0e}",
        }
        for r in map(row, done)
    ]  # fmt: skip
    names = ("data set", "states", "all arguments", "temporary", "temporary / seed")
    sizes = [
        {"batch": f"{m.batch}", "seeds": f"{m.seeds}"}
        | {name: f"{size / 1e6:,.1f}" for name, size in zip(names, (*m.memory, m.memory.temporary / m.seeds))}
        for m in done
    ]
    return (
        table("Gradient steps of all seeds together", speeds),
        table("Memory of plastax's program, MB: given, and taken beside it", sizes),
    )


def bars(done: list[Measured]) -> list[Bar]:
    """What must hold."""
    out: list[Bar] = []
    for m in done:
        label = f"batch {m.batch}, seeds {m.seeds}"
        ratio = judged(m.plain.ratio(m.ours).median())
        out.append(Bar(f"{label}: plain loop's time / plastax's", ratio, FASTEST, False))
        out.append(Bar(f"{label}: difference of the two, of the way trained", m.off, ROUNDING, True))
        copies = (m.memory.arguments - m.memory.state) / m.memory.data
        out.append(Bar(f"{label}: copies of the data set among the arguments", copies, 1.01, True))
    for batch in dict.fromkeys(m.batch for m in done):
        some = [m for m in done if m.batch == batch]
        least, most = min(some, key=lambda m: m.seeds), max(some, key=lambda m: m.seeds)
        if least is not most:
            grown = (most.memory.temporary - least.memory.temporary) / (most.seeds - least.seeds) / most.memory.data
            out.append(Bar(f"batch {batch}: temporary memory of one more seed, of the data set", grown, 1.0, True))
    return out


def main(config: Config) -> tuple[list[Measured], list[Bar]]:
    """Times everything, prints tables and bars, and gives both out."""
    config.pinned()
    hidden = (1000,) * 3
    if config.quick:
        config, hidden = dataclasses.replace(config, steps=5, rounds=1), (20,) * 3
    console = Console(width=120)
    dataset = mnist(config.quick)
    needed = config.steps * max(config.batches) * (config.rounds + 2)
    if needed > len(dataset.train_images):
        raise SystemExit(
            f"--steps {config.steps}: a task with two rounds more than --rounds {config.rounds} at batch "
            f"{max(config.batches)} takes {needed:,} images, there are {len(dataset.train_images):,}; give fewer"
        )
    images = "RANDOM images of MNIST's shape" if dataset.card.synthetic else "MNIST"
    console.print(f"{machine()}; {images}, {'-'.join(map(str, (784, *hidden, 10)))}, {config.steps} steps a round")
    done = []
    for batch in config.batches:
        # All images that whole rounds can be made of. plastax switches tasks and evaluates before the timed ones.
        round_size = config.steps * batch
        stream = Permuted(len(dataset.train_images) // round_size * round_size).build(dataset)
        for seeds in config.seeds:
            some = dataclasses.replace(config, rounds=max(min(5, config.rounds), config.rounds // seeds))
            done.append(measure(some, stream, hidden, batch, seeds))
            console.print(f"  batch {batch}, seeds {seeds}: ratio {row(done[-1])['cpu_ratio']:.2f}")
    console.print(*tables(done), sep="\n")
    held = bars(done)
    report(console, held, config.out, images=images, steps=config.steps, rows=[row(m) for m in done])
    return done, held


if __name__ == "__main__":
    import tyro  # Here: the benchmark of accelerators takes a part of this module where tyro is not installed.

    main(tyro.cli(Config))
