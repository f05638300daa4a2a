"""A tiny supervised program that the tests of training run, and its runs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import MLP
from plastax.program import supervised
from plastax.program.parallel import over_seeds, seed_keys
from plastax.program.training import Training
from plastax.streams import Permuted
from plastax.types import Array, Examples, Model, Probe, ProbeInput, Program, Stream, Tree
from tests import programs
from tests.streams.tiny import CLASSES, DATASET, SHAPE, TEST

# These tests compile much and compute little.
QUICK = {"xla_backend_optimization_level": 0}
EXAMPLES, LR, SEEDS = 20, 0.3, (4, 7)
STREAM = Permuted(examples=EXAMPLES).build(DATASET)
MODEL = MLP((6,)).build(SHAPE, CLASSES)
# Six steps of three an epoch; two examples of twenty are left over.
CONFIG = Training(
    learning_rate=LR, batch_size=3, epochs=2, updates=4, evaluation_examples=15, probe_examples=8, kronecker_every=2
)


def watch(seen: ProbeInput) -> dict[str, Array]:
    return {
        "x": seen.batch.x,
        "loss": seen.loss_fn(seen.params, seen.batch),
        "params": ravel_pytree(seen.params)[0],
        "weight": seen.factors.weight,
        "key": jax.random.key_data(seen.key).astype(jnp.float32),
    }


WATCH = Probe("watch", watch, {}, {})


def make(
    config: Training = CONFIG,
    method: str = "backprop",
    *,
    stream: Stream = STREAM,
    model: Model = MODEL,
    seeds: int = len(SEEDS),
    probes: tuple[Probe, ...] = (WATCH,),
    **options: Any,
) -> Program:
    chosen = METHODS[method]
    options = {"needs_boundary": chosen.needs_boundary, "restarts_statistics": chosen.restarts_statistics} | options
    program = supervised.program(config, stream, model, chosen.build(config.transformation()), probes, **options)
    return over_seeds(program, seeds)


def host(tree: Tree) -> Tree:
    def leaf(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(leaf, tree)


def run(program: Program, lengths=(4, 4), seeds=SEEDS) -> tuple[supervised.State, list, Any]:
    """The state after these segments, their records, and the jitted functions."""
    jitted, data = programs.jitted(program, QUICK), jax.device_put(program.data)
    state, clock, records = jitted.init(seed_keys(seeds), data), 0, []
    for length in lengths:
        state, record = jitted.segment(state, data, clock, length)
        clock += length
        records.append(host(record))
    return state, records, jitted


def same(a: Tree, b: Tree) -> bool:
    a, b = (jax.tree.leaves(host(x)) for x in (a, b))
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def joined(records: list) -> dict[str, np.ndarray]:
    return {name: np.concatenate([r.train[name] for r in records], axis=1) for name in records[0].train}


@functools.cache
def examples(number: int, task: int) -> tuple[Examples, Examples]:
    """All training and held-out examples of a seed's task."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(key, data, index):
        task = STREAM.task(fold(key, supervised.Purpose.TASKS), data, index)
        return (
            STREAM.train(task, data, jnp.arange(EXAMPLES), key),
            STREAM.test(task, data, jnp.arange(TEST)),
        )

    return host(both(jax.random.key(number), STREAM.data, jnp.int32(task)))


@functools.cache
def whole() -> tuple[supervised.State, list, Any]:
    """Two tasks of backprop."""
    return run(make())


@functools.cache
def reset() -> tuple[supervised.State, list, Any]:
    """Three tasks of a method that begins each with a fresh network."""
    return run(make(method="reset"), (4, 4, 4))
