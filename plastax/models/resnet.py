"""A residual network with batch normalisation for classification."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.models import layers
from plastax.models.base import ModelConfig, Network
from plastax.models.convolution import Conv
from plastax.models.layers import ACTIVATIONS
from plastax.types import Array, Features, Model

_CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
_DENSE_INIT = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")


@dataclass(frozen=True)
class ResNet18(ModelConfig):
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of residual blocks, two more dense layers.

    Every convolution has a bias, and batch normalisation follows it. The first block of every stage but the first
    halves the image. The shortcut of a block that changes its input's shape is a 1x1 convolution (in every block, if
    the activation doubles the features). After the last block come the mean over all places and the dense layers.
    Kernels are drawn from truncated normal distributions of variance 2 / fan out (convolutions) and 1 / fan out (dense
    layers); biases start at zero.

    Features: ``stem``; ``block_<stage>_<i>/conv_0``, inside a block; ``block_<stage>_<i>/conv_1``, a block's output,
    which is the nonlinearity of its second convolution plus its shortcut; ``dense_0``, ... Only ``conv_0`` of the
    blocks and the dense layers have units. The channels of the stem and of the blocks' outputs are sums that several
    layers write and later blocks pass on, so no layer's parameters are theirs alone.

    `Model.apply` and `Model.tapped` normalise by the batch they are given, never by the running statistics, so an
    example's outputs depend on the others. `Model.train` does the same and moves the statistics on:
    ``momentum * old + (1 - momentum) * batch``, with the batch's variance not corrected for its size.
    `Model.evaluate` normalises by them.

    References:
      He et al., "Deep residual learning for image recognition", CVPR 2016. Dohare et al., "Loss of plasticity in deep
      continual learning", Nature 632, 2024, for incremental CIFAR-100: the stem and the stages. Here the convolutions
      have biases and there are two more dense layers, which makes 11,750,244 parameters for 32x32x3 inputs and 100
      outputs.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage; the stem has the first stage's."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of each stage."""
    hidden: tuple[int, ...] = (512, 512)
    """Units of each dense hidden layer."""
    momentum: float = 0.9
    """Share of the running statistics of batch normalisation that a step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths("channels", "blocks", "hidden", some=("channels", "blocks"))
        if len(self.blocks) != len(self.channels):
            raise ConfigError(f"model.blocks: {self.blocks} is not allowed; give one for each of {self.channels}")
        ranges.check(self, "model", "momentum", least=0, below=1)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: ``(height, width, channels)`` of one example.
          outputs: number of logits.

        Raises:
          ConfigError: inputs are no images, ``outputs`` is not positive, or heads cannot be injected.
        """
        layers.check_image("resnet18", input_shape)
        units, hidden = {}, ["stem"]
        for (stage, i), width in self._plan():
            inner, last = f"block_{stage}_{i}/conv_0", f"block_{stage}_{i}/conv_1"
            hidden += [inner, last]
            units[inner] = self.units(inner, width, last, norm=True)
        dense = self.chain({f"dense_{i}": width for i, width in enumerate(self.hidden)})
        module = _ResNet(self, outputs)
        return self.as_model(module, input_shape, units | dense, hidden=(*hidden, *dense), batch_norm=True)

    def _plan(self) -> list[tuple[tuple[int, int], int]]:
        """Stage and place of each block, and its channels."""
        stages = enumerate(zip(self.channels, self.blocks))
        return [((stage, i), width) for stage, (width, count) in stages for i in range(count)]


class _ResNet(Network):
    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> tuple[Array, Features]:
        config, features = self.config, Features()
        z = _normalized("stem", x, config.channels[0], 3, 1, config.momentum, train)
        x = features["stem"] = layers.activate("stem", z, config.activation, False)
        for (stage, i), width in config._plan():
            stride = 2 if stage and not i else 1
            name = f"block_{stage}_{i}"
            x, inside = _Block(config, width, stride, name=name)(x, train)
            features |= {f"{name}/{layer}": value for layer, value in inside.items()}
        x = jnp.mean(x, axis=(1, 2))
        for i, width in enumerate(config.hidden):
            name = f"dense_{i}"
            z = nn.Dense(width, kernel_init=_DENSE_INIT, name=name)(x)
            x = features[name] = layers.activate(name, z, config.activation, config.layer_norm)
        return nn.Dense(self.outputs, kernel_init=_DENSE_INIT, name="output")(x), features


class _Block(nn.Module):
    config: ResNet18
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Features]:
        activation, momentum = ACTIVATIONS[self.config.activation], self.config.momentum
        inner = activation(_normalized("conv_0", x, self.width, 3, self.stride, momentum, train))
        z = _normalized("conv_1", inner, self.width, 3, 1, momentum, train)
        if x.shape != z.shape:
            x = _normalized("shortcut", x, self.width, 1, self.stride, momentum, train)
        out = activation(z + x)
        return out, {"conv_0": inner, "conv_1": out}


def _normalized(name: str, x: Array, width: int, kernel: int, stride: int, momentum: float, train: bool) -> Array:
    """A convolution and its batch normalisation."""
    z = Conv(width, (kernel, kernel), strides=stride, kernel_init=_CONV_INIT, name=name)(x)
    return nn.BatchNorm(use_running_average=not train, momentum=momentum, name=layers.norm_name(name))(z)
