"""What the networks share: nonlinearities and initialisers by name, units, and the way out of Flax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plastax import linalg, tree
from plastax.errors import ConfigError
from plastax.models import taps
from plastax.roles import Role, Roles, convolution
from plastax.types import Array, Entries, Features, Key, LayerInputs, Model, Params, Tree, Units


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

    A layer's width counts its units, as with `crelu`. The paper keeps the number of features instead: to compare as it
    does, give half the width.

    References:
      Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", ICLR 2025, arXiv 2410.20634.
    """
    return jnp.concatenate([jnp.sin(z), jnp.cos(z)], axis=-1)


ActivationName = Literal["relu", "leaky_relu", "tanh", "silu", "crelu", "smooth_leaky", "deep_fourier"]
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda z: nn.leaky_relu(z, 0.1),
    "tanh": jnp.tanh,
    "silu": nn.silu,
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


def check_name(setting: str, name: str, allowed: Collection[str]) -> None:
    """Raises `ConfigError` unless ``name`` is among ``allowed``."""
    if name not in allowed:
        raise ConfigError.unknown(setting, name, allowed)


def check_counts(setting: str, counts: Sequence[int], *, least: int = 0) -> None:
    """Raises `ConfigError` unless ``counts`` are positive and at least ``least`` in number."""
    if len(counts) < least or any(count < 1 for count in counts):
        many = "one or more positive numbers" if least else "positive numbers, or none"
        message = f"{setting}: {tuple(counts)} is not allowed; give {many}"
        raise ConfigError(message)


def check_image(model: str, input_shape: Sequence[int]) -> None:
    """Raises `ConfigError` unless inputs are ``[height, width, channels]``."""
    if len(input_shape) != 3:
        message = f"model: {model!r} needs inputs [height, width, channels]; this stream's are {tuple(input_shape)}"
        raise ConfigError(message)


def norm_name(layer: str) -> str:
    """The name of the normalisation between a layer and its nonlinearity: ``block_0/norm_conv_0``."""
    *path, last = layer.split("/")
    return "/".join([*path, f"norm_{last}"])


class OwnRoles:
    """What every parameter of the networks here is: output layers are called ``output``, convolutions have two axes.

    Further heads (`plastax.models.injection`) have the layers of the first, and their names behind a prefix.
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
    """A hidden layer's features from its pre-activations; to be called within a compact Flax module.

    Args:
      name: the layer's, within the module.
      z: ``[B, ..., width]``.
      activation: a name of `ACTIVATIONS`.
      layer_norm: normalise each example (at each place of an image) over its units before, with scale and bias.

    Returns:
      ``[B, ..., width]``, twice as wide where the activation doubles.
    """
    if layer_norm:
        z = nn.LayerNorm(name=norm_name(name))(z)
    return ACTIVATIONS[activation](z)


def units(layer: str, width: int, readers: Sequence[str], *, norm: bool, activation: str) -> Units:
    """The units of a dense or convolutional layer.

    Args:
      layer: its name.
      width: its number of units, before an activation that doubles.
      readers: the layers that get its features, and nothing else in between but pooling and flattening.
      norm: whether it is normalised.
      activation: its nonlinearity, a name of `ACTIVATIONS`.
    """
    last = [f"{layer}/bias"] + ([f"{norm_name(layer)}/{part}" for part in ("scale", "bias")] if norm else [])
    incoming = (Entries(f"{layer}/kernel", -1), *(Entries(name, -1) for name in last))
    copies = jax.eval_shape(ACTIVATIONS[activation], jax.ShapeDtypeStruct((1,), jnp.float32)).shape[0]
    return Units(width, incoming, tuple(Entries(f"{reader}/kernel", -2) for reader in readers), copies)


def as_model(
    module: nn.Module,
    input_shape: tuple[int, ...],
    hidden: tuple[str, ...],
    units: Mapping[str, Units],
    activation: str,
    *,
    batch_norm: bool = False,
) -> Model:
    """Gives a Flax module out as pure functions.

    Args:
      module: ``(x) -> (outputs, features)``; with batch normalisation also with an argument ``train``, True by default:
        normalise by the batch and move the running statistics on.
      input_shape: of one example.
      hidden: names of the features, in the order of the forward pass.
      units: hidden layer -> its units.
      activation: name of their nonlinearity.
      batch_norm: whether the module has running statistics, in Flax's collection ``batch_stats``.
    """
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    plain = taps.tapped(module)
    # Flax's own argument: the running statistics may change, and come back beside the outputs.
    moving = functools.partial(taps.tapped, module, mutable=["batch_stats"])

    def init(key: Key) -> Params:
        return module.lazy_init(key, example)["params"]

    def train(
        params: Params, stats: Tree, taps: dict[str, Array], x: Array
    ) -> tuple[Tree, Features, dict[str, LayerInputs], Tree]:
        # Where there are none to start from, Flax starts afresh; `tapped` has no use for what comes of that.
        network = moving(variables={"batch_stats": stats} if stats else {})
        ((outputs, features), moved), inputs = network.apply(params, taps, x)
        return outputs, features, inputs, moved.get("batch_stats", {})

    def tapped(params: Params, taps: dict[str, Array], x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
        outputs, features, inputs, _ = train(params, {}, taps, x)
        return outputs, features, inputs

    def apply(params: Params, x: Array) -> tuple[Tree, Features]:
        outputs, features, _ = tapped(params, {}, x)
        return outputs, features

    def evaluate(params: Params, stats: Tree, x: Array) -> tuple[Tree, Features]:
        given: Any = module.apply({"params": params, "batch_stats": stats}, x, train=False)
        return given

    names = taps.names(plain, example)
    model = Model(init, apply, plain.taps, tapped, names, hidden, units, activation=activation, roles=ROLES)
    if not batch_norm:
        return model
    # As Flax starts them, in NumPy: building a model compiles nothing.
    like = jax.eval_shape(lambda key: module.lazy_init(key, example)["batch_stats"], tree.key_like())
    starts = {"mean": np.zeros, "var": np.ones}
    stats = jax.tree_util.tree_map_with_path(lambda path, x: starts[path[-1].key](x.shape, x.dtype), like)
    return model._replace(stats=stats, train=train, evaluate=evaluate)
