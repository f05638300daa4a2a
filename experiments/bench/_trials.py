"""What the accelerator benchmark times: trials, each of which computes one thing in one or several ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench._groups import LOOPED
from experiments.bench._measure import Side, compiled
from experiments.bench._networks import EVERY, Task, measures, tasks, trains
from experiments.bench._problem import Batch, Params, Problem, flat, initial, loss, make, start_vector, vector_product
from experiments.bench._references import product_by_hand, products_alone
from plastax import curvature, linalg
from plastax.curvature.lanczos import tridiagonalise
from plastax.models.convolution import by_patches
from plastax.types import Array, Key

PARTS = ("roofline", "curvature", "devices", "decompositions", "convolutions", "seeds", "measuring", "loops")
"""Of the benchmark."""


class Sizes(NamedTuple):
    """How large everything is; by default, for one GPU and 8 minutes.

    Attributes:
      matmul: rows and columns of the products that other times are compared with.
      megabytes: read to find the speed of memory.
      problems: name -> widths and examples; see `experiments.bench.curvature`.
      order: Lanczos steps.
      seeds: numbers of networks.
      some: networks where only one number of them is timed.
      hidden: of the supervised network.
      updates: of PPO in one run, and gradient steps of the supervised network over ten.
      image: side of the images that are convolved.
      matrices: rows of matrices that are decomposed.
    """

    matmul: int = 8192
    megabytes: int = 1024
    problems: tuple[tuple[str, tuple[int, ...], int], ...] = (
        ("a", (784, 256, 256, 10), 2048), ("b", (784, 1000, 1000, 1000, 10), 1200),
    )  # fmt: skip
    order: int = 100
    seeds: tuple[int, ...] = (1, 16, 64, 256)
    some: int = 16
    hidden: tuple[int, ...] = (1000, 1000, 1000)
    updates: int = 10
    image: int = 32
    matrices: tuple[int, ...] = (32, 256, 1024)


TOY = Sizes(64, 1, (("a", (12, 8, 4), 16),), 6, (2,), 2, (8, 8), 1, 8, (6,))
"""To see on any machine that everything runs."""


class Trial(NamedTuple):
    """Ways to compute one thing.

    Attributes:
      part: one of `PARTS`.
      what: they compute.
      sides: builds and compiles the ways.
      work: of one run of each.
      unit: of the work: FLOP, B, steps or networks.
      read: least bytes that one run reads and writes; 0 if not worked out.
      choice: the field of `plastax.platforms.Choices` whose values the sides are called by, if any.
      agreement: says from the results of the sides, the first one's first, whether they are the same.
    """

    part: str
    what: str
    sides: Callable[[], Sequence[Side]]
    work: float
    unit: str
    read: float = 0.0
    choice: str = ""
    agreement: Callable[[np.ndarray, np.ndarray], str] = lambda first, other: (
        f"differs by {np.linalg.norm(other - first) / np.linalg.norm(first):.0e}"
    )


def trials(sizes: Sizes) -> Iterator[Trial]:
    """All of them: first those that others refer to, last those that take long."""
    yield from roofline(sizes)
    problems = [make(name, widths, examples, sizes.order, 8) for name, widths, examples in sizes.problems]
    yield from itertools.chain.from_iterable(map(products, problems))
    yield devices_agree(problems[0]._replace(order=min(sizes.order, 32), probes=4))
    yield from decompositions(sizes)
    yield from convolutions(sizes)
    kinds = tasks(sizes.hidden, sizes.updates, quick=sizes == TOY)
    yield from training(kinds, sizes)
    yield from measuring(kinds, sizes)
    yield from loops(kinds, sizes, problems[0])


def roofline(sizes: Sizes) -> Iterator[Trial]:
    """A matrix product in three precisions, and a pass over memory."""
    n, numbers = sizes.matmul, sizes.megabytes * 2**18

    def matmul() -> list[Side]:
        a = jax.random.normal(jax.random.key(0), (n, n))
        return [at("highest", "float32", a), at("tensorfloat32", "tf32", a), at(None, "bf16", a.astype(jnp.bfloat16))]

    def at(precision: str | None, name: str, a: Array) -> Side:
        with jax.default_matmul_precision(precision):
            return compiled(name, jnp.matmul, a, a, read=lambda c: c[:8].astype(np.float32))

    def memory() -> list[Side]:
        rows = jax.random.normal(jax.random.key(0), (16, numbers // 16))
        return [compiled("memory", lambda rows: jnp.sum(rows, axis=1), rows)]

    yield Trial("roofline", f"matrix product, {n} x {n}", matmul, 2.0 * n**3, "FLOP")
    yield Trial("roofline", f"sums over {sizes.megabytes} MB", memory, 4.0 * numbers, "B")


def products(problem: Problem) -> Iterator[Trial]:
    """A Hessian product, a loop of them, and Lanczos."""
    args, vector, start = (problem.params, problem.batch), problem.vector, start_vector(problem)
    name, order, flops = problem.name, problem.order, problem.product_flops

    def ours(params: Params, batch: Batch, vector: Params) -> Params:
        return curvature.hessian(loss, params, data=batch).mv(vector)

    def alone() -> list[Side]:
        narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype), (*args, vector))
        with jax.default_matmul_precision("tensorfloat32"):
            tf32 = compiled("by hand, tf32", product_by_hand, *args, vector, read=flat)
        bf16 = compiled("by hand, bf16", product_by_hand, *narrow, read=flat)
        return [compiled("plastax", ours, *args, vector, read=flat), tf32, bf16]

    def looped(count: int) -> Callable[..., Array]:
        return lambda params, batch, start: products_alone(vector_product(params, batch), start, count)

    def lanczos() -> list[Side]:
        def run(params: Params, batch: Batch, start: Array) -> Array:
            return tridiagonalise(vector_product(params, batch), start, problem.key, order).diagonal

        return [compiled("plastax", run, *args, start), compiled("its products", looped(order), *args, start)]

    yield Trial("curvature", f"Hessian product, {name}", alone, flops(linearised=False), "FLOP")
    many = partial(one, compiled, "plastax", looped(LOOPED), *args, start)
    yield Trial("curvature", f"{LOOPED} products in a loop, {name}", many, LOOPED * flops(True), "FLOP")
    yield Trial("curvature", f"{order} Lanczos steps, {name}", lanczos, order * flops(True), "FLOP")


def training(kinds: Sequence[Task], sizes: Sizes) -> Iterator[Trial]:
    """Networks side by side, more and more."""
    for task, seeds in itertools.product(kinds, sizes.seeds):
        work, passes = float(seeds * task.steps), seeds * task.passes
        yield Trial("seeds", f"{task.name}, {seeds}", partial(one, trains, "all", task, seeds), work, "steps", passes)


def one(make: Callable[..., Side], *args: Any) -> list[Side]:
    """A single side."""
    return [make(*args)]


def measuring(kinds: Sequence[Task], sizes: Sizes) -> Iterator[Trial]:
    """Kronecker factors inside training, and spectra between."""
    some = sizes.some
    for task in kinds:

        def factors(task: Task = task) -> list[Side]:
            return [trains("no factors", task, some), trains(f"factors, every {EVERY}", task, some, EVERY)]

        yield Trial("measuring", f"{task.name}, {some}", factors, float(some * task.steps), "steps")
        sides = partial(one, measures, "spectra", task, some)
        yield Trial("measuring", f"spectra: {task.name}, {some}", sides, float(some), "networks")


def devices_agree(problem: Problem) -> Trial:
    """A spectrum on this device and on the CPU: its extremes, trace and norm."""

    def on(device: jax.Device) -> Side:
        params, batch, key = jax.device_put((problem.params, problem.batch, problem.key), device)

        def run(params: Params, batch: Batch, key: Key) -> tuple[Array, ...]:
            op = curvature.hessian(loss, params, data=batch)
            # One after another: batches of LAPACK's decompositions could deadlock on the CPU.
            s = curvature.spectrum(op, key, order=problem.order, probes=problem.probes, batch=1)
            (high, high_error, low, low_error), trace, norm = s.extreme(1), s.trace(), s.frobenius()
            values = jnp.array([high[0], low[0], trace.value, norm.value])
            return values, jnp.array([high_error[0], low_error[0], trace.standard_error, norm.standard_error])

        return compiled(device.platform, run, params, batch, key, read=np.stack)

    def agreement(first: np.ndarray, other: np.ndarray) -> str:
        (values, errors), (others, others_errors) = first, other
        bound = errors + others_errors + 1e-5 * np.abs(values).max()
        off = np.abs(values - others) / bound
        return f"{'within' if off.max() < 1 else 'OUTSIDE'} their errors: off by {off.max():.2g} of them"

    what, sides = f"spectrum of {problem.name}", lambda: [on(jax.devices()[0]), on(jax.devices("cpu")[0])]
    return Trial("devices", what, sides, float(problem.probes), "probes", agreement=agreement)


def loops(kinds: Sequence[Task], sizes: Sizes, problem: Problem) -> Iterator[Trial]:
    """Probes, spectra of several networks, and their training: one after another, or side by side."""

    def spectra_of(many: Params, batch: Batch, key: Key, probes: int, room: int) -> Array:
        def one(params: Params) -> Array:
            op = curvature.hessian(loss, params, data=batch)
            return curvature.spectrum(op, key, order=problem.order, probes=probes, batch=room).nodes

        return jax.vmap(one)(many)

    def runs(seeds: int, probes: int) -> list[Side]:
        keys = jax.random.split(problem.key, seeds)
        many = jax.vmap(lambda key: initial(key, problem.widths))(keys)
        rooms = {"loop": 1, "batch": seeds * probes}
        ways = {way: partial(spectra_of, probes=probes, room=room) for way, room in rooms.items()}
        args = (many, problem.batch, problem.key)
        return [compiled(way, fn, *args, read=np.ravel) for way, fn in ways.items()]

    for seeds, probes in ((1, problem.probes), (sizes.some, 1)):
        what = f"spectra of {problem.name}: {seeds} network(s), {probes} probe(s)"
        yield Trial("loops", what, partial(runs, seeds, probes), float(seeds * probes), "runs", choice="lanczos")
    for task in kinds:

        def both(task: Task = task) -> list[Side]:
            return [trains("one by one", task, sizes.some, 0, 1), trains("all", task, sizes.some)]

        yield Trial("loops", f"{task.name}, {sizes.some}", both, float(sizes.some * task.steps), "steps")


def convolutions(sizes: Sizes) -> Iterator[Trial]:
    """Gradient steps of three convolutions, of one network and of several."""
    strides, padding, channels, steps = (2, 2), "SAME", (3, 32, 64, 64), 10
    ways: dict[str, Callable[[Array, Array], Array]] = {
        "patches": lambda x, kernel: by_patches(x, kernel, strides, padding),
        "xla": lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
    }

    def trained(kernels: list[Array], images: Array, convolve: Callable[[Array, Array], Array]) -> list[Array]:
        def loss(kernels: list[Array]) -> Array:
            x = images
            for kernel in kernels:
                x = jax.nn.relu(convolve(x, kernel))
            return jnp.mean(x**2)

        def step(_: Array, kernels: list[Array]) -> list[Array]:
            return jax.tree.map(lambda p, g: p - 0.1 * g, kernels, jax.grad(loss)(kernels))

        return jax.lax.fori_loop(0, steps, step, kernels)

    def sides(seeds: int) -> list[Side]:
        images = jax.random.normal(jax.random.key(0), (128, sizes.image, sizes.image, channels[0]))
        keys = jax.random.split(jax.random.key(1), (len(channels) - 1, seeds))
        shapes = [(seeds, 3, 3, *pair) for pair in itertools.pairwise(channels)]
        kernels = [0.2 * jax.random.normal(key[0], shape) for key, shape in zip(keys, shapes)]
        many = {way: jax.vmap(partial(trained, convolve=of), in_axes=(0, None)) for way, of in ways.items()}
        return [compiled(way, fn, kernels, images, read=flat) for way, fn in many.items()]

    for seeds in (1, sizes.some):
        what = f"3 convolutions of {sizes.image} x {sizes.image}, {seeds} network(s)"
        yield Trial("convolutions", what, partial(sides, seeds), float(seeds * steps), "steps", choice="convolutions")


def decompositions(sizes: Sizes) -> Iterator[Trial]:
    """Eigendecompositions of several matrices; on the CPU both ways are a loop."""
    for n in sizes.matrices:

        def sides(n: int = n) -> list[Side]:
            x = jax.random.normal(jax.random.key(0), (sizes.some, n, n))
            rooms = {"loop": 1, "batch": sizes.some}
            return [
                compiled(way, jax.vmap(linalg.sequential(linalg.eigh, room)), x + x.mT, read=lambda out: out[0])
                for way, room in rooms.items()
            ]

        what, work = f"eigh of {sizes.some} matrices {n} x {n}", float(sizes.some * n**3)
        yield Trial("decompositions", what, sides, work, "n^3", choice="decompositions")
