"""Convolutions that run well inside compiled loops and over seeds; `plastax.platforms` says which do where."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastax import platforms
from plastax.types import Array


def by_patches(inputs: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]]) -> Array:
    """A convolution over two axes as one matrix product with patches: the inputs of each place of the output.

    On CPU, XLA's convolutions are slow inside a loop and where kernels differ by seed: a gradient step of a network of
    three such layers took 5 to 14 times as long, and outside of loops no less than with patches. Patches take the
    memory of ``inputs`` times the number of the kernel's places.

    Args:
      inputs: ``[B, height, width, channels]``.
      kernel: ``[rows, columns, channels, out]``.
      strides: of the places.
      padding: "SAME", "VALID", or for each axis the number of zeros before and after.

    Returns:
      ``[B, rows, columns, out]``.

    Examples:
      >>> by_patches(jnp.ones((1, 8, 8, 3)), jnp.ones((5, 5, 3, 4)), (2, 2), "SAME").shape
      (1, 4, 4, 4)
    """
    size = kernel.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(inputs.shape[1:3], size, strides, padding)
    x = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    # One axis after the other: that takes the sum of a kernel's sides in slices, not their product.
    for axis, (width, stride) in enumerate(zip(size, strides), start=1):
        last = x.shape[axis] - width
        shifted = [jax.lax.slice_in_dim(x, i, last + i + 1, stride, axis) for i in range(width)]
        x = jnp.concatenate(shifted, axis=-1)
    # In the patches columns run slowest, then rows, then channels.
    flat = kernel.transpose(1, 0, 2, 3).reshape(-1, kernel.shape[-1])
    return (x.reshape(-1, len(flat)) @ flat).reshape(*x.shape[:3], -1)


def _convolve(inputs: Array, kernel: Array, window_strides: Sequence[int], padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` as Flax calls it; by patches where the device does better with them."""
    plain = all(set(options.get(name) or (1,)) == {1} for name in ("lhs_dilation", "rhs_dilation"))
    plain &= options.get("feature_group_count", 1) == 1 and options.get("precision") is None and inputs.ndim == 4
    if plain and platforms.chosen().convolutions == "patches":
        return by_patches(inputs, kernel, window_strides, padding)
    return jax.lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)


Conv = functools.partial(nn.Conv, conv_general_dilated=_convolve)
"""`flax.linen.Conv`, by patches where `platforms.chosen` says so."""
