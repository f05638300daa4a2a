"""Random draws that all programs share: keys by role, and random orders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from plastax.types import Array, Key


def fold(key: Key, role: int, clock: Array | int = 0) -> Key:
    """The key of one draw, from the seed's, the role of the draw and the time.

    Every draw of a program has a key of its own, so that neither probes nor scan lengths can shift another draw.
    """
    return jax.random.fold_in(jax.random.fold_in(key, role), clock)


def shuffles(key: Key, count: int, size: int) -> Array:
    """``count`` independent random orders of ``0 .. size - 1``, int32 ``[count, size]``.

    Random bits above, the number itself below in one word, so that a sort of plain integers shuffles: on CPU five times
    as fast as `jax.random.permutation`, whose sort carries a second operand. Two numbers whose random bits tie keep
    their order; with at least 20 random bits that is no bias that training could notice, and large sizes, which leave
    fewer, take `jax.random.permutation`.
    """
    if size > 2**12:
        return jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, count))
    return _sorted_words(key, (count, size))


def some(key: Key, wanted: int, size: int) -> Array:
    """``wanted`` different ones of ``0 .. size - 1`` in random order, int32 ``[wanted]``.

    As `shuffles`, of one word up to sizes of 65,536: no number's chance to be among them is off by more than 2^-16.
    """
    return (_sorted_words(key, (size,)) if size <= 2**16 else jax.random.permutation(key, size))[:wanted]


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _sorted_words(key: Key, shape: tuple[int, ...]) -> Array:
    size = shape[-1]
    mask = jnp.uint32((1 << max(1, (size - 1).bit_length())) - 1)
    number = jnp.broadcast_to(jnp.arange(size, dtype=jnp.uint32), shape)
    words = jax.random.bits(key, shape, jnp.uint32) & ~mask | number
    return (jnp.sort(words, axis=-1) & mask).astype(jnp.int32)
