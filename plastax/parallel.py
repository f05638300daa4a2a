"""The seed axis: one network's program becomes many networks' program."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from plastax.types import Array, ConfigError, Key, Program, Record, Tree


def seed_keys(seeds: Sequence[int]) -> Key:
    """The PRNG keys ``[S]`` of seed numbers: seed k has the same key alone and among others."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def over_seeds(program: Program, seeds: int, chunk: int = 0) -> Program:
    """Gives ``init`` and ``segment`` a leading axis of ``seeds`` networks; data and clock stay shared.

    Args:
      program: of one network.
      seeds: ``S``.
      chunk: seeds that run side by side; the chunks run one after another in the same compiled program, which bounds
        memory and can be faster where caches overflow. 0: all at once.

    Raises:
      ConfigError: if ``chunk`` does not divide ``seeds``.
    """
    if chunk < 0 or (chunk and seeds % chunk):
        message = f"seed_chunk: {chunk} is not allowed; give 0 (all at once) or a divisor of the {seeds} seeds"
        raise ConfigError(message)
    batch_size = chunk or seeds

    def init(keys: Key, data: Tree) -> Tree:
        return jax.vmap(program.init, (0, None))(keys, data)

    def segment(state: Tree, data: Tree, clock: Array, length: int) -> tuple[Tree, Record]:
        def one(state: Tree) -> tuple[Tree, Record]:
            return program.segment(state, data, clock, length)

        if batch_size == seeds:
            return jax.vmap(one)(state)
        return jax.lax.map(one, state, batch_size=batch_size)

    return program._replace(init=init, segment=segment)
