"""A multi-layer perceptron for classification and regression."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn

from plastax import ranges
from plastax.models import layers
from plastax.models.base import ModelConfig, Network
from plastax.models.layers import INITIALIZERS, InitializerName
from plastax.types import Array, Features, Model


@dataclass(frozen=True)
class MLP(ModelConfig):
    """Fully connected layers on the flattened inputs; biases start at zero.

    The features are ``dense_0``, ``dense_1``, ... With layer normalisation the units of a layer interact through its
    mean and variance. A unit whose outgoing kernel is zero then has no direct effect, but its kernel still moves the
    layer's other features.

    References:
      The defaults are the network of Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024,
      for permuted MNIST at half the width: 2,797,010 parameters for 784 inputs and 10 outputs.
    """

    hidden: tuple[int, ...] = (1000, 1000, 1000)
    """Units of each hidden layer; none: a linear model."""
    initializer: InitializerName = "he_uniform"
    """How all kernels are drawn, the output layer's too (orthogonal: gain sqrt(2))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths("hidden")
        ranges.check_choices(self, "model", initializer=InitializerName)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: of one example; flattened.
          outputs: logits or regression targets.

        Raises:
          ConfigError: ``outputs`` is not positive, or heads cannot be injected.
        """
        units = self.chain({f"dense_{i}": width for i, width in enumerate(self.hidden)})
        return self.as_model(_MLP(self, outputs), input_shape, units)


class _MLP(Network):
    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        config, features = self.config, Features()
        init = INITIALIZERS[config.initializer]
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(config.hidden):
            name = f"dense_{i}"
            z = nn.Dense(width, kernel_init=init, name=name)(x)
            x = features[name] = layers.activate(name, z, config.activation, config.layer_norm)
        return nn.Dense(self.outputs, kernel_init=init, name="output")(x), features
