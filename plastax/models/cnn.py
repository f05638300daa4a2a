"""A small convolutional network for classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.models import layers
from plastax.models.base import ModelConfig, Network
from plastax.models.convolution import Conv
from plastax.models.layers import INITIALIZERS, InitializerName
from plastax.types import Array, Features, Model

Padding = Literal["SAME", "VALID"]


@dataclass(frozen=True)
class CNN(ModelConfig):
    """Convolutions, each followed by a 2x2 maximum, then fully connected layers; biases start at zero.

    The features are ``conv_0``, ... (``[B, height, width, channels]``, before the maximum) and ``dense_0``, ... A unit
    of a convolution is a channel. With layer normalisation units see one another, as in `MLP`.

    References:
      The defaults are the network of Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024,
      for Continual ImageNet. Theirs has no padding, and 512 features after the last maximum for 32x32 inputs. With
      padding it has 2048, and 373,826 parameters for 32x32x3 inputs and 2 outputs.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of each convolution."""
    kernels: tuple[int, ...] = (5, 3, 3)
    """Height and width of each convolution's kernel."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of each dense hidden layer."""
    padding: Padding = "SAME"
    """SAME: zeros around an image keep its size; VALID: no zeros, a side loses the kernel's size less one."""
    initializer: InitializerName = "lecun_normal"
    """How all kernels are drawn, the output layer's too (orthogonal: gain sqrt(2))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths("channels", "kernels", "hidden", some=("channels",))
        if len(self.kernels) != len(self.channels):
            raise ConfigError(f"model.kernels: {self.kernels} is not allowed; give one for each of {self.channels}")
        ranges.check_choices(self, "model", padding=Padding, initializer=InitializerName)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: ``(height, width, channels)`` of one example.
          outputs: number of logits.

        Raises:
          ConfigError: inputs are no images or too small, ``outputs`` is not positive, or heads cannot be injected.
        """
        layers.check_image("cnn", input_shape)
        side = min(input_shape[:2])
        for kernel in self.kernels:
            side = (side - (kernel - 1 if self.padding == "VALID" else 0)) // 2
            if side < 1:
                raise ConfigError(
                    f"model.channels: {self.channels} with kernels {self.kernels} and padding {self.padding} leave "
                    f"nothing of inputs {tuple(input_shape)}; give fewer or smaller ones, or padding SAME"
                )
        widths = {f"conv_{i}": width for i, width in enumerate(self.channels)}
        widths |= {f"dense_{i}": width for i, width in enumerate(self.hidden)}
        return self.as_model(_CNN(self, outputs), input_shape, self.chain(widths))


class _CNN(Network):
    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        config, features = self.config, Features()
        init = INITIALIZERS[config.initializer]
        for i, (width, kernel) in enumerate(zip(config.channels, config.kernels)):
            name = f"conv_{i}"
            z = Conv(width, (kernel, kernel), padding=config.padding, kernel_init=init, name=name)(x)
            features[name] = layers.activate(name, z, config.activation, config.layer_norm)
            x = max_pool(features[name])
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(config.hidden):
            name = f"dense_{i}"
            z = nn.Dense(width, kernel_init=init, name=name)(x)
            x = features[name] = layers.activate(name, z, config.activation, config.layer_norm)
        return nn.Dense(self.outputs, kernel_init=init, name="output")(x), features


def max_pool(x: Array) -> Array:
    """The maximum of each 2x2 square of ``[B, height, width, channels]``; an odd last row or column is left out.

    The same values as `flax.linen.max_pool`, whose gradient takes five times as long on CPU and more.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    top = jnp.maximum(x[:, 0:height:2, 0:width:2], x[:, 0:height:2, 1:width:2])
    bottom = jnp.maximum(x[:, 1:height:2, 0:width:2], x[:, 1:height:2, 1:width:2])
    return jnp.maximum(top, bottom)
