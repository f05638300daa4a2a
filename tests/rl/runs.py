"""Whole runs of PPO programs, on the host."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.program.parallel import seed_keys
from plastax.rl import ppo
from plastax.types import Program, Record, Tree
from tests import programs


class Run(NamedTuple):
    state: ppo.State
    records: list[Record]
    jitted: programs.Jitted
    """The functions that it came from."""


def host(tree: Tree) -> Tree:
    """NumPy arrays, of keys their data."""

    def leaf(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(leaf, tree)


def same(a: Tree, b: Tree) -> bool:
    a, b = (jax.tree.leaves(x) for x in (a, b))
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def distance(a: Tree, b: Tree) -> float:
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def seed(tree: Tree, k: int) -> Tree:
    return jax.tree.map(lambda x: x[k : k + 1], tree)


def joined(records: list[Record]) -> Tree:
    return {name: np.concatenate([r.train[name] for r in records], axis=1) for name in records[0].train}


def run(program: Program, seeds, lengths, options=None) -> Run:
    jitted = programs.jitted(program, options)
    state, clock, records = jitted.init(seed_keys(seeds), program.data), 0, []
    for length in lengths:
        state, record = jitted.segment(state, program.data, clock, length)
        clock += length
        records.append(host(record))
    return Run(host(state), records, jitted)
