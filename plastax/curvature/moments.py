"""Second moments of what a layer is given and of its gradients: the factors of one layer on one batch.

`plastax.curvature.kronecker` says what the factors are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.layers import LayerInputs, Norm, Window
from plastax.types import Array

Sharing = Literal["expand", "reduce"]


class Layer(NamedTuple):
    """A layer on a batch.

    Attributes:
      given: its inputs.
      x: its `rows`, of all calls.
      counted: bool ``[B, T]``, the places that count; None: all.
    """

    given: LayerInputs
    x: Array
    counted: Array | None

    def examples(self) -> Array | int:
        """How many examples have a place that counts."""
        return self.x.shape[0] if self.counted is None else jnp.sum(self.counted.any(axis=1))

    def input_factor(self, sharing: Sharing) -> Array:
        """A, see `plastax.curvature.kronecker.Factors`."""
        expand, given, x, counted = merged(sharing), self.given, self.x, self.counted
        if given.norm is not None:
            return jnp.ones((1, 1), tree.wide_type(x))
        if given.table is not None and x.ndim == 2:
            return _shares(x, given.table, counted, expand)
        if given.groups > 1:
            return jax.vmap(lambda x: _input_factor(x, counted, expand), in_axes=2)(x)
        return _input_factor(x, counted, expand)

    def gradient_factor(self, g: Array, sharing: Sharing) -> Array:
        """The part of G that one gradient ``[B, ..., d_out]`` of the tap adds."""
        expand, given, counted = merged(sharing), self.given, self.counted
        g = g.reshape(*self.x.shape[:2], -1)
        g = g if counted is None else jnp.where(counted[..., None], g, 0)
        if given.norm is not None:
            parts = [self.x * tree.wide(g)] * given.norm.scale + [tree.wide(g)] * given.norm.offset
            return _gram(jnp.concatenate([jnp.sum(part, axis=1) for part in parts], axis=-1))
        if given.table is not None and self.x.ndim == 3:
            return jnp.sum(jnp.square(tree.wide(g) if expand else jnp.sum(tree.wide(g), axis=1, keepdims=True)), (0, 1))
        if given.groups > 1:
            g = g.reshape(*g.shape[:2], given.groups, -1)
            return jax.vmap(lambda g: _gradient_factor(g, expand), in_axes=2)(g)
        return _gradient_factor(g, expand)


def layers_of(
    inputs: Mapping[str, LayerInputs | Array], tap_grads: Mapping[str, Array | jax.ShapeDtypeStruct]
) -> dict[str, Layer]:
    """The layers of a batch; raises a ValueError for different layers, or arrays that do not fit."""
    if set(inputs) != set(tap_grads):
        raise ValueError(f"inputs are of layers {sorted(inputs)}, gradients of {sorted(tap_grads)}")
    out = {}
    for name, given in inputs.items():
        given = given if isinstance(given, LayerInputs) else LayerInputs(given)
        calls = (given, *given.others)
        x, g = jnp.concatenate([rows(call) for call in calls], axis=1) if given.others else rows(given), tap_grads[name]
        if g.ndim < 2 or x.shape[:2] != (g.shape[0], math.prod(g.shape[1:-1])):
            shapes = f"[B, T, d_a] = {x.shape} and [B, ..., d_out] = {g.shape}"
            raise ValueError(f"layer {name!r}: inputs and gradients do not belong together, {shapes}")
        marks = [mark for call in calls if (mark := _counted(call)) is not None]
        out[name] = Layer(given, x, jnp.concatenate(marks, axis=1) if marks else None)
    return out


def _counted(call: LayerInputs) -> Array | None:
    """Which places of a layer count, ``[B, T]``; None: all."""
    if call.counted is None:
        return None
    marks, (examples, places) = call.counted.reshape(len(call.counted), -1), jax.eval_shape(rows, call).shape[:2]
    if examples == marks.size != len(marks):  # Examples and their places are one axis.
        marks = marks.reshape(-1, 1)
    own = call.values.shape[1 : call.counted.ndim] == call.counted.shape[1:] and places % marks.shape[1] == 0
    marks = marks if own else marks.any(axis=1, keepdims=True)
    return jnp.repeat(marks, places // marks.shape[1], axis=1)


def rows(inputs: LayerInputs | Array) -> Array:
    """What the rows of a layer's kernel (and its bias, last) are multiplied with, ``[B, T, d_a]``.

    Of several groups ``[B, T, groups, d_a]``; of an embedding the indices ``[B, T]``; of a normalisation what its scale
    is multiplied with.
    """
    given = inputs if isinstance(inputs, LayerInputs) else LayerInputs(inputs)
    lookup = given.table is not None and jnp.issubdtype(given.values.dtype, jnp.integer)
    if given.values.ndim < 2 - lookup:
        raise ValueError(f"a layer's inputs have a leading axis of examples, these are {given.values.shape}")
    x = tree.gathered(given.values)
    if lookup:
        return x.reshape(len(x), -1)
    x = x if given.window is None else _patches(x, given.window)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if given.norm is not None:
        return _normalised(tree.wide(x), given.norm)
    if given.groups > 1:
        # The inputs of a place of the kernel are cut, and the places run slower than they.
        places = 1 if given.window is None else math.prod(given.window.size)
        x = x.reshape(*x.shape[:2], places, given.groups, -1).swapaxes(2, 3).reshape(*x.shape[:2], given.groups, -1)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1) if given.bias else x


def _normalised(x: Array, norm: Norm) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True) if norm.centred else x
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + norm.epsilon)


def _patches(x: Array, window: Window) -> Array:
    """``[B, *space, channels]`` to ``[B, *places, kernel places * channels]``, in the order of the kernel's rows."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    reach = [(k - 1) * d for k, d in zip(window.size, window.dilation, strict=True)]
    slices = []
    for offset in np.ndindex(*window.size):
        start = [o * d for o, d in zip(offset, window.dilation, strict=True)]
        stop = [s + n - r for s, n, r in zip(start, x.shape[1:-1], reach, strict=True)]
        slices.append(jax.lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *window.strides, 1)))
    return jnp.concatenate(slices, axis=-1)


def _input_factor(x: Array, counted: Array | None, expand: bool) -> Array:
    examples, places, _ = x.shape
    if counted is None:
        if expand:
            return _gram(x.reshape(-1, x.shape[-1])) / (examples * places)
        return _gram(jnp.mean(tree.wide(x), axis=1)) / examples
    x, number = jnp.where(counted[..., None], x, 0), jnp.sum(counted, axis=1)
    if expand:
        return _gram(x.reshape(-1, x.shape[-1])) / jnp.maximum(jnp.sum(number), 1)
    means = jnp.sum(tree.wide(x), axis=1) / jnp.maximum(number, 1)[:, None]
    return _gram(means) / jnp.maximum(jnp.sum(number > 0), 1)


def _shares(indices: Array, table: int, counted: Array | None, expand: bool) -> Array:
    """The diagonal of an embedding's A: `_input_factor` of its inputs ``[B, T]`` as vectors with a single one."""
    counted = jnp.ones(indices.shape, bool) if counted is None else counted
    number, zeros = jnp.sum(counted, axis=1), jnp.zeros(table, jnp.float32)
    if expand:
        return zeros.at[indices].add(counted) / jnp.maximum(jnp.sum(number), 1)
    shares = counted / jnp.maximum(number, 1)[:, None]
    means = jax.vmap(lambda index, share: zeros.at[index].add(share))(indices, shares)
    return jnp.sum(jnp.square(means), axis=0) / jnp.maximum(jnp.sum(number > 0), 1)


def _gradient_factor(g: Array, expand: bool) -> Array:
    return _gram(g.reshape(-1, g.shape[-1]) if expand else jnp.sum(tree.wide(g), axis=1))


def merged(sharing: Sharing) -> bool:
    """Whether places count as examples (``expand``); raises a ValueError for anything but the two names."""
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing is {sharing!r}; it is one of {get_args(Sharing)}")
    return sharing == "expand"


MIN_HALF_COLUMNS = 256
"""Fewest columns of a half that is worth a product of its own: copies of smaller ones cost what they save."""


@jax.default_matmul_precision("highest")
def _gram(x: Array) -> Array:
    """``x^T x``, with each product between two halves of the columns taken once: 3/4 of the operations or fewer."""
    x = tree.wide(tree.gathered(x))
    half = x.shape[1] // 2
    if half < MIN_HALF_COLUMNS:
        return x.T @ x
    left, right = x[:, :half], x[:, half:]
    across = left.T @ right
    # Concatenations: blocks written into zeros, or a triangle and its mirror image, take XLA minutes to compile.
    return jnp.concatenate(
        [jnp.concatenate([_gram(left), across], axis=1), jnp.concatenate([across.T, _gram(right)], axis=1)]
    )
