"""Operators over parameters that are cut over devices, as operators over one vector that is cut likewise.

Each device keeps, of every vector, the entries of the parameters that it holds. Between tree and vector only shapes
change, on every device by itself. An inner product adds one number a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from plastax.curvature.operators import Flat
from plastax.types import Array, Key, Operator


def flatten(op: Operator, cuts: list[jax.NamedSharding]) -> Flat:
    """Writes the operator as one over vectors that lie as its parameters do.

    A leaf that c devices hold comes c times, divided by ``sqrt(c)``. So inner products are those of the parameters, and
    a Krylov space that starts from such a vector has the same nodes and weights.

    Args:
      op: the operator.
      cuts: where the leaves of ``op.like`` lie, see `plastax.sharding.cuts`.

    Raises:
      ValueError: when drawing, for a key that is not Threefry's, whose numbers would depend on the devices.
    """
    leaves, structure = jax.tree.flatten(op.like)
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    mesh, specs = cuts[0].mesh, tuple(s.spec for s in cuts)
    shapes = [s.shard_shape(leaf.shape) for s, leaf in zip(cuts, leaves)]
    sizes = [math.prod(shape) for shape in shapes]
    scales = [math.sqrt(mesh.size * size / leaf.size) for size, leaf in zip(sizes, leaves)]
    starts = [0, *itertools.accumulate(leaf.size for leaf in leaves)]

    def pack(*parts: Array) -> Array:
        return jnp.concatenate([part.astype(dtype).ravel() / scale for part, scale in zip(parts, scales)])

    def unpack(vector: Array) -> tuple[Array, ...]:
        parts = jnp.split(vector, np.cumsum(sizes)[:-1].tolist())
        each = zip(parts, scales, shapes, leaves)
        return tuple((part * scale).reshape(shape).astype(leaf.dtype) for part, scale, shape, leaf in each)

    def drawn(key: Key) -> Array:
        each = zip(starts, leaves, shapes, specs)
        return pack(*(_normal(key, start, _places(leaf.shape, mine, s), dtype) for start, leaf, mine, s in each))

    def on_each(fn: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
        return jax.shard_map(fn, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)

    vector = jax.P(mesh.axis_names)
    to_vector, to_leaves = on_each(pack, specs, vector), on_each(unpack, vector, specs)

    def product(v: Array) -> Array:
        return to_vector(*jax.tree.leaves(op.mv(jax.tree.unflatten(structure, to_leaves(v)))))

    def draw(key: Key) -> Array:
        kind, partitionable = str(jax.random.key_impl(key)), jax.config.values["jax_threefry_partitionable"]
        if kind != "threefry2x32" or not partitionable:
            needed = "a threefry2x32 key, and jax_threefry_partitionable"
            raise ValueError(f"parameters on several devices need {needed}; got {kind} and {partitionable}")
        return on_each(drawn, jax.P(), vector)(key)

    return Flat(product, starts[-1], dtype, draw)


def _places(shape: tuple[int, ...], mine: tuple[int, ...], spec: jax.P) -> Array:
    """Places of a device's entries among all of a leaf, uint32 in the shape of its part."""
    place = jnp.zeros(mine, jnp.uint32)
    for axis, (length, part, names) in enumerate(itertools.zip_longest(shape, mine, spec)):
        first = jnp.uint32(part) * jax.lax.axis_index(names).astype(jnp.uint32) if names else jnp.uint32(0)
        place = place * jnp.uint32(length) + first + jax.lax.broadcasted_iota(jnp.uint32, mine, axis)
    return place


def _normal(key: Key, start: int, place: Array, dtype: Any) -> Array:
    """Entries ``start + place`` of ``jax.random.normal(key, (P,), dtype)``, which JAX draws from the first only."""
    high, low = divmod(start, 2**32)
    low = place + jnp.uint32(low)
    high = jnp.uint32(high) + (low < place).astype(jnp.uint32)
    first, second = threefry2x32_p.bind(*jax.random.key_data(key), high, low)
    info = jnp.finfo(dtype)
    long = info.bits == 64
    bits = first.astype(jnp.uint64) << 32 | second.astype(jnp.uint64) if long else first ^ second
    one = jnp.asarray(np.ones((), dtype).view(f"uint{info.bits}"))
    uniform = jax.lax.bitcast_convert_type(bits >> (info.bits - info.nmant) | one, dtype) - 1
    least = jnp.nextafter(jnp.asarray(-1, dtype), jnp.asarray(0, dtype))
    return np.sqrt(2).astype(dtype) * jax.lax.erf_inv(jnp.maximum(least, uniform * (1 - least) + least))
