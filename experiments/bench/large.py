"""Spectra of large networks: time, memory and error of GPTs that fit here, and the plan of those that do not.

Measured: the Hessian's spectrum at initialisation, twice, with other probe vectors. Memory (MB) is XLA's account of
the compiled program (`memory_analysis`), results and temporaries: the Lanczos basis, and what a product needs; beside
it, how much the process grew. Errors are standard errors, in % of the value; ``apart`` is the difference of the two
spectra in units of their joint standard error, which is below 2 in 95 % of cases if the errors are right.

Planned: products and bytes of networks of the shapes of GPT-2, from their number of parameters alone
(`curvature.memory`, without the memory of a product).

    make bench BENCH=large ARGS="--out large.json"
    make bench BENCH=large ARGS="--sizes resnet18 --order 16 --probes 1 --spectra 1"
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from experiments.bench._bars import Options, machine, report, table
from experiments.bench._measure import Side, first_run, needed, timed
from plastax import curvature, sharding, tree
from plastax.curvature import Estimate, losses
from plastax.models import ResNet18
from plastax.models.gpt import GPT
from plastax.types import Model, Tree


class Shape(NamedTuple):
    """Of a GPT."""

    width: int
    depth: int
    heads: int
    vocabulary: int = 64
    tokens: int = 64

    def model(self, *, tied: bool = False) -> Model:
        """The network."""
        config = GPT(width=self.width, depth=self.depth, heads=self.heads, tied=tied)
        return config.build((self.tokens,), self.vocabulary)


MEASURED = {"1e5": Shape(48, 4, 4), "1e6": Shape(128, 5, 4), "1e7": Shape(320, 8, 8)}
PLANNED = {"124M": Shape(768, 12, 12, 50257, 1024), "1B": Shape(1792, 24, 28, 50257, 1024)}
MODES: dict[str, dict[str, Any]] = {
    "float32": {}, "bfloat16": {"basis_dtype": jnp.bfloat16}, "last 8": {"reorthogonalise": 8},
    "host": {"basis": "host"},
}  # fmt: skip
DEVICES = 8
"""Over which the last column of the plan cuts the parameters."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to measure."""

    sizes: tuple[Literal["1e5", "1e6", "1e7", "resnet18"], ...] = ("1e5", "1e6", "1e7")
    """GPTs of about this number of parameters, and ResNet-18 (11.75 million) on 256 images."""
    sequences: int = 8
    """Sequences of 64 tokens in a GPT's batch."""
    order: int = 32
    """Lanczos steps."""
    probes: int = 2
    """Probe vectors."""
    spectra: int = 2
    """Spectra of a network, each with probe vectors of its own."""


class Problem(NamedTuple):
    """A network at initialisation, on random examples.

    Attributes:
      loss: ``(params, batch) -> scalar``.
      params: its parameters.
      batch: inputs and labels.
      chunk_size: examples of the batch to process together; None: all.
    """

    loss: Callable[[Tree, Tree], jax.Array]
    params: Tree
    batch: tuple[jax.Array, jax.Array]
    chunk_size: int | None = None


def gpt(shape: Shape, sequences: int) -> Problem:
    """Next tokens of random sequences."""
    model = shape.model()
    tokens = jax.random.randint(jax.random.key(1), (sequences, shape.tokens + 1), 0, shape.vocabulary)

    def loss(params: Tree, batch: Tree) -> jax.Array:
        return losses.get("token_cross_entropy").value(model.apply(params, batch[0])[0], batch)

    return Problem(loss, model.init(jax.random.key(0)), (tokens[:, :-1], tokens[:, 1:]))


def resnet18(images: int = 256, classes: int = 100) -> Problem:
    """Labels of random images, 32x32x3, normalised by the running statistics: those of the batch allow no chunks."""
    model = ResNet18().build((32, 32, 3), classes)
    assert model.evaluate is not None
    evaluate = model.evaluate

    def loss(params: Tree, batch: Tree) -> jax.Array:
        return losses.get("cross_entropy").value(evaluate(params, model.stats, batch[0])[0], batch)

    x = jax.random.normal(jax.random.key(1), (images, 32, 32, 3))
    return Problem(loss, model.init(jax.random.key(0)), (x, jnp.arange(images) % classes), chunk_size=16)


def measure(name: str, config: Config) -> dict[str, Any]:
    """One line of the measured table, as numbers."""
    order, probes = (4, 1) if config.quick else (config.order, config.probes)
    if config.quick:
        problem = gpt(Shape(8, 1, 2, 8, 8), config.sequences)
    else:
        problem = resnet18() if name == "resnet18" else gpt(MEASURED[name], config.sequences)
    loss, params, batch, chunk_size = problem

    def spectrum(params: Tree, batch: Tree, key: jax.Array) -> dict[str, Any]:
        s = curvature.spectrum(curvature.hessian(loss, params, batch, chunk_size), key, order, probes)
        top = s.extreme(1)
        return {
            "trace": s.trace(), "effective_rank": s.effective_rank(), "rank": s.rank(0.1, relative=True),
            "top": Estimate(top.largest[0], top.largest_residuals[0]),
        }  # fmt: skip

    keys = jax.random.split(jax.random.key(2), config.spectra)
    start = time.perf_counter()
    program = jax.jit(spectrum).lower(params, batch, keys[0]).compile()
    compile_s = time.perf_counter() - start

    def run(key: jax.Array) -> dict[str, Any]:
        return jax.block_until_ready(program(params, batch, key))

    sides = [Side("", functools.partial(run, key)) for key in keys]
    *first, grown = first_run(sides[0])
    found, walls, cpus = zip(first, *map(timed, sides[1:]))
    numbers: dict[str, Any] = {
        "network": name, "parameters": tree.size(params), "products": order * probes, "compile_s": compile_s,
        "wall_s": statistics.mean(walls), "cpu_s": statistics.mean(cpus), "bytes": needed(program), "grown": grown,
        "planned": curvature.memory(params, order, probes, batch=1),
    }  # fmt: skip
    for what, (value, error) in found[0].items():
        other, other_error = found[-1][what]
        joint = math.hypot(error, other_error)
        numbers[what] = {
            "value": float(value), "error": float(error), "apart": abs(float(value - other)) / joint if joint else 0.0,
        }  # fmt: skip
    return numbers


def shapes(shape: Shape, *, tied: bool = False) -> Tree:
    """Of the parameters; computes nothing."""
    return jax.eval_shape(shape.model(tied=tied).init, jax.random.key(0))


def plan(shape: Shape, config: Config) -> dict[str, Any]:
    """One line of the plan, as numbers."""
    params = shapes(shape, tied=True)
    mesh = jax.sharding.AbstractMesh((DEVICES,), (sharding.AXIS,))
    cut = sharding.shapes(params, mesh)
    needs = {
        name: curvature.memory(params, config.order, config.probes, batch=1, **mode) for name, mode in MODES.items()
    }
    needs[f"on each of {DEVICES}"] = curvature.memory(cut, config.order, config.probes, batch=1)
    return {"parameters": tree.size(params), "products": config.order * config.probes, "bytes": needs}


def percent(value: float, error: float, **_: float) -> str:
    """A value and its relative error."""
    return f"{value:.3g} ± {100 * error / abs(value):.2g} %"


def lines(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """The measured table."""
    for row in rows:
        yield {
            "": row["network"], "parameters": f"{row['parameters']:,}", "products": str(row["products"]),
            "compiles, s": f"{row['compile_s']:.0f}", "s": f"{row['wall_s']:.1f}", "CPU-s": f"{row['cpu_s']:.1f}",
            "MB": f"{row['bytes'] / 1e6:,.0f}", "planned, MB": f"{row['planned'] / 1e6:,.0f}",
            "process grew by, MB": f"{(row['grown'] or math.nan) / 1e6:,.0f}",
            **{name.replace("_", " "): percent(**row[name]) for name in ("top", "trace", "effective_rank", "rank")},
            "apart": " ".join(f"{row[name]['apart']:.1f}" for name in ("trace", "effective_rank", "rank")),
        }  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Measures and plans, prints both tables and writes the numbers."""
    config.pinned()
    console = Console(width=180)
    console.print(machine())
    rows = [measure(name, config) for name in (config.sizes[:1] if config.quick else config.sizes)]
    planned = {name: plan(shape, config) for name, shape in PLANNED.items()}
    title = f"measured: order {config.order} x {config.probes}"
    console.print(table(title, lines(rows), left=1))
    console.print(
        table(
            "planned: GB of the Lanczos run, beside a product's own",
            (
                {"": name, "parameters": f"{one['parameters']:,}", "products": str(one["products"])}
                | {mode: f"{size / 1e9:.1f}" for mode, size in one["bytes"].items()}
                for name, one in planned.items()
            ),
            left=1,
        )
    )
    report(console, [], config.out, measured=rows, planned=planned)
    return {"measured": rows, "planned": planned}


if __name__ == "__main__":
    main(tyro.cli(Config))
