"""Separate actor and critic networks for PPO."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from plastax import linalg
from plastax.errors import ConfigError
from plastax.models import layers, taps
from plastax.models.convolution import Conv
from plastax.models.injection import with_injections
from plastax.models.layers import ACTIVATIONS, ActivationName
from plastax.types import Array, Features, Key, LayerInputs, Model, Params, Tree


@dataclass(frozen=True)
class ActorCritic:
    """Actor and critic as two separate multi-layer perceptrons.

    Initialisation is orthogonal with gain sqrt(2) in hidden layers, 0.01 in the policy head and 1 in the value head,
    biases zero, as in CleanRL's and purejaxrl's PPO.
    """

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, in both networks."""
    activation: ActivationName = "relu"
    """Nonlinearity of the hidden layers (leaky_relu: slope 0.1; crelu and deep_fourier make two features a unit)."""
    layer_norm: bool = False
    """LayerNorm with scale and bias before each nonlinearity."""
    initial_log_std: float = 0.0
    """Continuous actions only: start of the policy's log standard deviation, one parameter an action dimension."""
    injections: int = 0
    """Pairs of further heads, for the method plasticity_injection."""
    head_layers: int = 2
    """Layers of a head, the output layer included."""

    def __post_init__(self) -> None:
        _check_widths("model.hidden", self.hidden)
        if self.activation not in ACTIVATIONS:
            message = f"model.activation: {self.activation!r} is not allowed; give one of {', '.join(ACTIVATIONS)}"
            raise ConfigError(message)

    def build(self, observation_shape: tuple[int, ...], action_size: int, *, continuous: bool) -> Model:
        """Makes the model for observations of ``observation_shape`` and ``action_size`` logits (or dimensions)."""
        return _as_model(self, (), observation_shape, action_size, continuous)


@dataclass(frozen=True)
class ConvActorCritic(ActorCritic):
    """Actor and critic, each one 3x3 convolution and dense layers, for MinAtar's [10, 10, channels] observations."""

    hidden: tuple[int, ...] = (128,)
    """Units of each dense hidden layer, in both networks."""
    channels: tuple[int, ...] = (16,)
    """Channels of each 3x3 convolution (stride 1, no padding); MinAtar's reference networks use one of 16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_widths("model.channels", self.channels)

    def build(self, observation_shape: tuple[int, ...], action_size: int, *, continuous: bool) -> Model:
        """Makes the model; raises `ConfigError` unless observations are ``[height, width, channels]``, large enough."""
        if len(observation_shape) != 3:
            message = (
                f"model: 'conv' needs observations [height, width, channels]; this stream's are {observation_shape}"
            )
            raise ConfigError(message)
        # Every convolution without padding takes two rows and two columns.
        most = (min(observation_shape[:2]) - 1) // 2
        if len(self.channels) > most:
            message = (
                f"model.channels: {self.channels} is not allowed; observations {observation_shape} allow {most} of them"
            )
            raise ConfigError(message)
        return _as_model(self, self.channels, observation_shape, action_size, continuous)


def _check_widths(name: str, widths: tuple[int, ...]) -> None:
    if not widths or min(widths) < 1:
        message = f"{name}: {widths} is not allowed; give one or more positive numbers of units"
        raise ConfigError(message)


class _Network(nn.Module):
    """Convolutions, hidden dense layers and an output layer; gives the features out too."""

    config: ActorCritic
    channels: tuple[int, ...]
    output_size: int
    output_gain: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        activation = ACTIVATIONS[self.config.activation]
        init = linalg.orthogonal(math.sqrt(2.0))
        features: Features = {}

        def hidden(name: str, z: Array) -> Array:
            if self.config.layer_norm:
                z = nn.LayerNorm(name=f"norm_{name}")(z)
            features[name] = activation(z)
            return features[name]

        for i, channels in enumerate(self.channels):
            name = f"conv_{i}"
            x = hidden(name, Conv(channels, (3, 3), padding="VALID", kernel_init=init, name=name)(x))
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.config.hidden):
            name = f"dense_{i}"
            x = hidden(name, nn.Dense(size, kernel_init=init, name=name)(x))
        return nn.Dense(self.output_size, kernel_init=linalg.orthogonal(self.output_gain), name="output")(x), features


class _ActorCriticNetwork(nn.Module):
    config: ActorCritic
    channels: tuple[int, ...]
    action_size: int
    continuous: bool

    @nn.compact
    def __call__(self, x: Array) -> tuple[dict[str, Array], Features]:
        def run(name: str, size: int, gain: float) -> tuple[Array, Features]:
            out, features = _Network(self.config, self.channels, size, gain, name=name)(x)
            return out, {f"{name}/{layer}": value for layer, value in features.items()}

        policy, actor_features = run("actor", self.action_size, 0.01)
        value, critic_features = run("critic", 1, 1.0)
        outputs = {"policy": policy, "value": value[:, 0]}
        if self.continuous:
            init = nn.initializers.constant(self.config.initial_log_std)
            log_std = self.param("log_std", init, (self.action_size,), jnp.float32)
            outputs["log_std"] = jnp.broadcast_to(log_std, policy.shape)
        return outputs, actor_features | critic_features


def _as_model(
    config: ActorCritic,
    channels: tuple[int, ...],
    observation_shape: tuple[int, ...],
    action_size: int,
    continuous: bool,
) -> Model:
    """Gives the linen module out as pure functions.

    ``outputs`` is a dict: ``policy`` [B, action_size] (logits, or the mean action), ``value`` [B], and for continuous
    actions ``log_std`` [B, action_size].
    """
    module = _ActorCriticNetwork(config, channels, action_size, continuous)
    network = taps.tapped(module)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, *observation_shape)))["params"]

    def apply(params: Params, x: Array) -> tuple[dict[str, Array], Features]:
        return network.apply(params, {}, x)[0]

    def tapped(params: Params, taps: dict[str, Array], x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
        (outputs, features), inputs = network.apply(params, taps, x)
        return outputs, features, inputs

    hidden = (*(f"conv_{i}" for i in range(len(channels))), *(f"dense_{i}" for i in range(len(config.hidden))))

    def names(own: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{head}/{layer}" for head in ("actor", "critic") for layer in own)

    units = {
        f"{head}/{layer}": layers.units(
            f"{head}/{layer}", width, (f"{head}/{reader}",), norm=config.layer_norm, activation=config.activation
        )
        for head in ("actor", "critic")
        for (layer, reader), width in zip(itertools.pairwise((*hidden, "output")), channels + config.hidden)
    }
    own = names((*hidden, "output"))
    model = Model(
        init, apply, network.taps, tapped, own, names(hidden), units, activation=config.activation, roles=layers.ROLES
    )
    return with_injections(model, config.injections, config.head_layers)
