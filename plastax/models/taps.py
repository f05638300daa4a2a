"""Taps on the layers of a Flax module: what they are given, and a place to add to what they give.

`plastax.models.taps_linen` does it for layers of `flax.linen`, `plastax.models.taps_nnx` for those of `flax.nnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from plastax.errors import ConfigError, Refused
from plastax.layers import Tapped
from plastax.models import taps_linen, taps_nnx
from plastax.types import Array, Key, Tree


def tapped(
    module: nn.Module | nnx.Module,
    *,
    inputs: Callable[[Tree], Tree] = lambda data: data,
    layers: Collection[str] | None = None,
    without: Collection[str] = (),
    counted: Callable[[Tree], Array | None] | None = None,
    variables: Mapping[str, Tree] | None = None,
    rngs: Mapping[str, Key] | None = None,
    mutable: Sequence[str] = (),
    **arguments: Any,
) -> Tapped:
    """Gives out the layers of a Flax module, which stays as it is, for `plastax.curvature.kronecker`.

    Tapped are, of `flax.linen` and `flax.nnx` with their subclasses: dense layers of any axes (`Dense`, `DenseGeneral`,
    `Einsum`; `Linear`, `LinearGeneral`), and so the projections of attention; convolutions, grouped ones included;
    `Embed`; `LayerNorm` and `RMSNorm`. Layers have the path of their parameters as their name, ``encoder/Dense_0``. A
    layer may be called several times: its inputs are then those of all calls. `Embed.attend` (an output layer that
    shares the embedding's table) is a layer of its own, ``embed.attend``. Layers may be in `nn.remat` and `nn.jit`. In
    `nn.scan` and `nn.vmap` they may be stacked along the first axis of their parameters, and are named one by one:
    ``blocks/Dense_0/0``. Where the steps share their parameters (`nn.RNN`), they are refused.

    Other layers pass as they are, and so do those that compute something of their own (subclasses with another
    ``__call__``, layers in `WeightNorm` or `SpectralNorm`), that are called in a plain `jax.lax.scan`, that are called
    on something without an axis of examples (embeddings of positions: give ``[B, T]`` to have a factor), or whose
    parameters are also read elsewhere (``h @ embed.embedding.T``: call `Embed.attend`). `plastax.curvature.left_out`
    names the parameters that are then in no factor.

    Args:
      module: called with one argument, whose leading axis is that of the examples.
      inputs: picks that argument from the data: ``operator.itemgetter(0)`` where the data is ``(x, y)``.
      layers: names of the layers to tap; None: all.
      without: names of layers to leave out.
      counted: ``(data) -> bool [B, T]``, which places of the examples count: padding does not. None: all.
      variables: collections beside the parameters, such as batch statistics. What the module changes in them is lost.
      rngs: keys of what the module draws, ``{"dropout": key}``: the same draws in every pass.
      mutable: collections that are returned in a pair with the outputs, as `flax.linen.Module.apply` does.
      **arguments: further keyword arguments of the call, such as ``train=False``.

    `variables`, `rngs` and `mutable` are for linen. An nnx module has its own statistics and keys; every pass
    starts from those that it had when it was tapped.

    Returns:
      The network. ``params`` is ``module.init(...)["params"]``, or all variables; of nnx ``nnx.state(module,
      nnx.Param)`` (also as `nnx.to_pure_dict`, whose names are those of the layers), all state, or a module like this
      one. ``outputs`` is what the module gives.

    Raises:
      ConfigError: ``module`` is not of Flax, or an argument for linen is given for nnx. Where the network is applied:
        the module has no layer of a name in ``layers`` or ``without``, or it needs a collection that ``variables``
        lacks.
      Refused: (a ValueError) where the network is applied: steps share a layer's parameters, see above; no `Window`
        describes a convolution: masked, transposed by an input dilation, circular or reflecting, or with other than
        one batch axis; a product has the examples or the units in no axis of its result; a normalisation has a mask.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from plastax import models
      >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((5, 3))
      >>> network = models.tapped(module)
      >>> {name: tap.shape for name, tap in network.taps(x).items()}
      {'layers_0': (5, 4), 'layers_2': (5, 2)}
      >>> outputs, inputs = network.apply(module.init(jax.random.key(0), x)["params"], {}, x)
      >>> inputs["layers_2"].values.shape
      (5, 4)
    """
    mask = counted or _all
    if isinstance(module, nnx.Module):
        for name, given in (("variables", variables), ("rngs", rngs), ("mutable", mutable)):
            if given:
                raise ConfigError(f"{name}: not for nnx modules; {type(module).__name__} has its own state and keys")
        return taps_nnx.tapped(module, inputs, layers, without, mask, arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"module: {type(module).__module__}.{type(module).__name__} is not allowed; give a module of flax.linen "
            "or flax.nnx: layers of Equinox or plain functions cannot be tapped"
        )
    return taps_linen.tapped(module, inputs, layers, without, mask, variables or {}, rngs or {}, mutable, arguments)


def of_known(module: nn.Module, *, counted: Any = None, variables: Any = None, mutable: Sequence[str] = ()) -> Tapped:
    """As `tapped`, of a linen module of plastax, whose layers are known to be `alone`: a pass less."""
    return taps_linen.tapped(
        module, lambda x: x, None, (), counted or _all, variables or {}, {}, mutable, {}, known=True
    )


def _all(data: Tree) -> None:
    """Every place counts."""


def but_refused(
    network_of: Callable[[Collection[str]], Tapped], data: Tree
) -> tuple[Tapped, dict[str, tuple[str, ...]]]:
    """A network without the layers that are refused, and `parameters_of` it; ``network_of`` leaves out these names."""
    without: tuple[str, ...] = ()
    while True:
        try:
            network = network_of(without)
            return network, parameters_of(network, data)
        except Refused as error:
            without += error.layers


def parameters_of(network: Tapped, data: Tree) -> dict[str, tuple[str, ...]]:
    """The tapped layers in the order of the forward pass, and the names of their parameters; nothing is computed.

    Args:
      network: made by `tapped`.
      data: or its shapes.
    """
    found: dict[str, tuple[str, ...]] = {}
    of = network.parameters
    assert of is not None
    jax.eval_shape(lambda data: found.update(of(data)), data)
    return found
