"""The nouns of a network's inside: layers as Kronecker factors see them, units as methods that replace them do.

Types only, no logic; axis names are those of `plastax.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax


class Window(NamedTuple):
    """The geometry of a convolution, one entry a spatial axis.

    Attributes:
      size: of the kernel.
      strides: of the output's places.
      padding: zeros before and after.
      dilation: of the kernel.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerInputs:
    """The inputs of a layer with a kernel, and how the kernel is applied to them; a pytree of one array.

    Attributes:
      values: ``[B, ..., d_in]`` of a dense layer, ``[B, *space, channels]`` of a convolution.
      bias: whether the layer has a bias. Static.
      window: the convolution's geometry, None for a dense layer. Static.
    """

    values: jax.Array
    bias: bool = field(default=True, metadata={"static": True})
    window: Window | None = field(default=None, metadata={"static": True})


class Tapped(NamedTuple):
    """A network that exposes its layers, for Kronecker factors. `plastax.models.tapped` makes one.

    Attributes:
      taps: ``(data) -> dict``: zeros of the shape of every tapped layer's pre-activations, by layer name.
      apply: ``(params, taps, data) -> (outputs, inputs)``: the network with ``taps`` added to the pre-activations, and
        the layers' `LayerInputs` by name. A layer's parameters are ``<layer>/kernel`` and ``<layer>/bias``.
    """

    taps: Callable[[Any], dict[str, jax.Array]]
    apply: Callable[[Any, dict[str, jax.Array], Any], tuple[Any, dict[str, LayerInputs]]]


class Entries(NamedTuple):
    """Entries of one parameter that belong to a layer's units, along ``axis``.

    Index ``i`` belongs to unit ``(i // size) mod width``, see `Units`. The rule covers a channel that is flattened into
    many inputs of a dense layer (channels run fastest), nonlinearities with several features a unit, in blocks (CReLU),
    and attention heads, each of which is ``size`` columns side by side.
    """

    name: str
    axis: int


class Units(NamedTuple):
    """The units of one hidden layer, and where their parameters are.

    Attributes:
      width: number of units (of a convolution: channels; of an attention: heads).
      incoming: parameters that compute a unit: kernel, bias, the scale and bias of its normalisation.
      outgoing: parameters that read it: the kernels of the next layers. Where these are zero, the unit has no effect.
      copies: 2 where the nonlinearity doubles the features, else 1.
      size: neighbouring features that are one unit: the width of an attention head, else 1. Of the ``copies * width *
        size`` features, feature ``i`` belongs to unit ``(i // size) mod width``.
    """

    width: int
    incoming: tuple[Entries, ...]
    outgoing: tuple[Entries, ...]
    copies: int = 1
    size: int = 1
