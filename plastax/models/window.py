"""How the kernel of a Flax convolution, linen or nnx, meets its inputs."""

from __future__ import annotations

from typing import Any

import jax
from flax.linen.linear import canonicalize_padding

from plastax.errors import Refused
from plastax.layers import Window
from plastax.types import Array


def window(name: str, conv: Any, x: Array) -> Window:
    """The geometry of a convolution.

    Raises:
      ValueError: for convolutions that no `Window` describes.
    """
    size = (conv.kernel_size,) if isinstance(conv.kernel_size, int) else tuple(conv.kernel_size)

    def each(value: Any) -> tuple[int, ...]:
        return (value or 1,) * len(size) if value is None or isinstance(value, int) else tuple(value)

    padding = canonicalize_padding(conv.padding, len(size))
    refused = {
        f"input_dilation={conv.input_dilation}": set(each(conv.input_dilation)) != {1},
        f"padding={padding!r}": isinstance(padding, str) and padding not in ("SAME", "VALID"),
        "a mask": conv.mask is not None,
        f"inputs {x.shape}": x.ndim != len(size) + 2,
    }
    if any(refused.values()):
        what = ", ".join(reason for reason, holds in refused.items() if holds)
        why = f"layer {name!r} is a convolution with {what}, which Kronecker factors cannot describe; leave it out"
        raise Refused(why, [name])
    strides, dilation = each(conv.strides), each(conv.kernel_dilation)
    if isinstance(padding, str):
        reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    return Window(size, strides, tuple((int(low), int(high)) for low, high in padding), dilation)
