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


class Norm(NamedTuple):
    """A normalisation over the last axis, before its scale and offset.

    Attributes:
      epsilon: added to the variance.
      centred: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
      scale: whether it has a scale.
      offset: whether it has an offset.
    """

    epsilon: float
    centred: bool
    scale: bool
    offset: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerInputs:
    """What a layer is given, and how its parameters meet it; a pytree of arrays.

    Attributes:
      values: ``[B, ..., d_in]`` of a dense layer, ``[B, *space, channels]`` of a convolution; of an embedding indices
        ``[B, ...]``.
      bias: whether the layer has a bias. Static.
      window: the convolution's geometry, None for other layers. Static.
      groups: parts into which inputs and units are cut, each with a kernel of its own. Static.
      norm: of a normalisation, whose parameters are a scale and an offset and no kernel. Static.
      table: number of entries of an embedding. Where ``values`` are no integers, its units are the entries. Static.
      counted: bool ``[B, T]``, which places of the examples count (padding does not); None: all. Where the layer's
        places are others, those of an example count if any of its places does.
      others: the layer's further calls in the same pass. Its tap has the places of all calls, in turn.
    """

    values: jax.Array
    bias: bool = field(default=True, metadata={"static": True})
    window: Window | None = field(default=None, metadata={"static": True})
    groups: int = field(default=1, metadata={"static": True})
    norm: Norm | None = field(default=None, metadata={"static": True})
    table: int | None = field(default=None, metadata={"static": True})
    counted: jax.Array | None = None
    others: tuple[LayerInputs, ...] = ()


class Tapped(NamedTuple):
    """A network that exposes its layers, for Kronecker factors. `plastax.models.tapped` makes one.

    Attributes:
      taps: ``(data) -> dict``: zeros of the shape of every tapped layer's pre-activations, by layer name.
      apply: ``(params, taps, data) -> (outputs, inputs)``: the network with ``taps`` added to the pre-activations, and
        the layers' `LayerInputs` by name.
      parameters: ``(data) -> dict``: layer name -> names of its parameters; None: ``<layer>/kernel``, ``<layer>/bias``.
    """

    taps: Callable[[Any], dict[str, jax.Array]]
    apply: Callable[[Any, dict[str, jax.Array], Any], tuple[Any, dict[str, LayerInputs]]]
    parameters: Callable[[Any], dict[str, tuple[str, ...]]] | None = None


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
