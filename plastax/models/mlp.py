"""A multi-layer perceptron for classification and regression."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import flax.linen as nn

from plastax.models import layers
from plastax.models.injection import with_injections
from plastax.models.layers import ACTIVATIONS, INITIALIZERS, ActivationName, InitializerName
from plastax.types import Array, Features, Model


@dataclass(frozen=True)
class MLP:
    """Fully connected layers on the flattened inputs; biases start at zero.

    The features are ``dense_0``, ``dense_1``, ... With layer normalisation the units of a layer see one another through
    its mean and variance: where a unit's outgoing kernel is zero its own feature has no effect, but a change of its
    kernel still moves the layer's other features.

    References:
      The defaults are the network of Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024,
      for permuted MNIST at half the width: 2,797,010 parameters for 784 inputs and 10 outputs.
    """

    hidden: tuple[int, ...] = (1000, 1000, 1000)
    """Units of each hidden layer; none: a linear model."""
    activation: ActivationName = "relu"
    """Nonlinearity of the hidden layers (leaky_relu: slope 0.1; crelu and deep_fourier make two features a unit)."""
    layer_norm: bool = False
    """LayerNorm with scale and bias before each nonlinearity."""
    initializer: InitializerName = "he_uniform"
    """How all kernels are drawn, the output layer's too (orthogonal: gain sqrt(2))."""
    injections: int = 0
    """Pairs of further heads, for the method plasticity_injection."""
    head_layers: int = 2
    """Layers of a head, the output layer included."""

    def __post_init__(self) -> None:
        layers.check_counts("model.hidden", self.hidden)
        layers.check_name("model.activation", self.activation, ACTIVATIONS)
        layers.check_name("model.initializer", self.initializer, INITIALIZERS)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: of one example; flattened.
          outputs: logits or regression targets.

        Raises:
          ConfigError: if ``outputs`` is not positive, or heads cannot be injected.
        """
        layers.check_counts("model.outputs", (outputs,))
        hidden = tuple(f"dense_{i}" for i in range(len(self.hidden)))
        units = {
            layer: layers.units(layer, width, (reader,), norm=self.layer_norm, activation=self.activation)
            for (layer, reader), width in zip(itertools.pairwise((*hidden, "output")), self.hidden)
        }
        model = layers.as_model(_MLP(self, outputs), input_shape, hidden, units, self.activation)
        return with_injections(model, self.injections, self.head_layers)


class _MLP(nn.Module):
    config: MLP
    outputs: int

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
