"""What networks are made of: nonlinearities and initialisers by name, names and roles of layers, units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from plastax import linalg, platforms, tree
from plastax.errors import ConfigError
from plastax.layers import Entries, Units
from plastax.roles import Role, Roles, convolution
from plastax.types import Array, Params


def crelu(z: Array) -> Array:
    """Concatenated ReLU, ``[relu(z), relu(-z)]`` along the last axis, which doubles.

    References:
      Shang et al., "Understanding and improving convolutional neural networks via concatenated rectified linear units",
      ICML 2016, definition 2.1. For plasticity: Abbas et al., "Loss of plasticity in continual deep reinforcement
      learning", CoLLAs 2023.
    """
    return jnp.concatenate([nn.relu(z), nn.relu(-z)], axis=-1)


def smooth_leaky(z: Array) -> Array:
    """Smooth-Leaky, ``a z + (1 - a) z sigmoid(c z / p)`` with slope a = 0.1, p = 3 and c = 5.

    References:
      Lillo and Cheney, "Activation function design sustains plasticity in continual learning", arXiv 2509.22562,
      equation 1.
    """
    return 0.1 * z + 0.9 * z * nn.sigmoid(5.0 / 3.0 * z)


def deep_fourier(z: Array) -> Array:
    """Deep Fourier features, ``[sin(z), cos(z)]`` along the last axis, which doubles.

    A layer's width counts its units, as with `crelu`. The paper keeps the number of features: give half the width to
    compare as it does.

    References:
      Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", ICLR 2025, arXiv 2410.20634.
    """
    return jnp.concatenate([jnp.sin(z), jnp.cos(z)], axis=-1)


ActivationName = Literal["relu", "leaky_relu", "tanh", "silu", "gelu", "crelu", "smooth_leaky", "deep_fourier"]
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda z: nn.leaky_relu(z, 0.1),
    "tanh": jnp.tanh,
    "silu": nn.silu,
    "gelu": nn.gelu,  # With tanh, as in GPT-2.
    "crelu": crelu,
    "smooth_leaky": smooth_leaky,
    "deep_fourier": deep_fourier,
}

InitializerName = Literal["he_uniform", "lecun_normal", "lecun_uniform", "torch_uniform", "orthogonal"]
INITIALIZERS: Mapping[str, Callable[..., Array]] = {
    "he_uniform": nn.initializers.he_uniform(),
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    # The kernels of PyTorch's Linear and Conv2d, uniform within 1 / sqrt(fan in); its biases are not zero.
    "torch_uniform": nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"),
    "orthogonal": linalg.orthogonal(math.sqrt(2.0)),
}


def by_column(
    x: Array, kernel: Array, dimensions: lax.DotDimensionNumbers, precision: Any = None, **rest: Any
) -> Array:
    """The product of a dense layer with few outputs, as ``dot_general`` of `nn.Dense`; one output after another.

    With up to 8 outputs, a training step of a batch of kernels is 1.6 to 2.7 times as fast on CPUs: XLA's product of
    narrow matrices takes as long as that of wide ones. Other layers get `jax.lax.dot_general`, and so do all
    where `platforms` chooses it.

    Args:
      x: ``[B, inputs]``.
      kernel: ``[inputs, outputs]``.
      dimensions: the last axis of ``x`` and the first of ``kernel`` are contracted.
      precision: see `jax.lax.dot_general`.
      **rest: of it, too.
    """
    if kernel.shape[1] > 8 or platforms.chosen().narrow_layers == "xla":
        return lax.dot_general(x, kernel, dimensions, precision=precision, **rest)
    return jnp.stack([jnp.matmul(x, column, precision=precision) for column in jnp.unstack(kernel, axis=1)], axis=-1)


def check_image(model: str, input_shape: Sequence[int]) -> None:
    """Raises `ConfigError` unless inputs are ``[height, width, channels]``."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"model: {model!r} needs inputs [height, width, channels]; this stream's are {tuple(input_shape)}"
        )


def norm_name(layer: str) -> str:
    """The name of the normalisation between a layer and its nonlinearity: ``block_0/norm_conv_0``."""
    *path, last = layer.split("/")
    return "/".join([*path, f"norm_{last}"])


class OwnRoles:
    """The roles in plastax's networks: output layers are called ``output``, convolutions have two axes.

    The layers of further heads (`plastax.models.injection`) have the names of the first head's, with a prefix.
    """

    def of(self, params: Params) -> dict[str, Role]:
        """Path name -> role."""
        named = tree.named_leaves(params)
        kernels = [name for name in named if name.rpartition("/")[2] == "kernel"]
        layers = [name.removesuffix("/kernel") for name in kernels]
        return Roles(
            output=tuple(layer for layer in layers if layer.rpartition("/")[2] == "output"),
            kernels={name: convolution(2) for name in kernels if named[name].ndim == 4},
            others=tuple(name for name in named if name == "log_std"),
            normalized=tuple(layer for layer in layers if f"{norm_name(layer)}/scale" in named),
        ).of(params)


ROLES = OwnRoles()


def activate(name: str, z: Array, activation: str, layer_norm: bool) -> Array:
    """A hidden layer's features from its pre-activations; called within a compact Flax module.

    Args:
      name: the layer's, within the module.
      z: ``[B, ..., width]``.
      activation: a name of `ACTIVATIONS`.
      layer_norm: whether to normalise each example, at each place of an image, over its units first.

    Returns:
      ``[B, ..., width]``; twice as wide if the activation doubles.
    """
    if layer_norm:
        z = nn.LayerNorm(name=norm_name(name))(z)
    return ACTIVATIONS[activation](z)


def units(layer: str, width: int, readers: Sequence[str], *, norm: bool, activation: str) -> Units:
    """The units of a dense or convolutional layer.

    Args:
      layer: its name.
      width: its number of units, before an activation that doubles.
      readers: the layers that read its features, with nothing but pooling and flattening in between.
      norm: whether it is normalised.
      activation: its nonlinearity, a name of `ACTIVATIONS`.
    """
    last = [f"{layer}/bias"] + ([f"{norm_name(layer)}/{part}" for part in ("scale", "bias")] if norm else [])
    incoming = (Entries(f"{layer}/kernel", -1), *(Entries(name, -1) for name in last))
    copies = jax.eval_shape(ACTIVATIONS[activation], jax.ShapeDtypeStruct((1,), jnp.float32)).shape[0]
    return Units(width, incoming, tuple(Entries(f"{reader}/kernel", -2) for reader in readers), copies)
