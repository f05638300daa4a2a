"""Separate actor and critic networks for PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from plastax import linalg
from plastax.types import Array, ConfigError, Features, Key, Model, Params

ActivationName = Literal["relu", "tanh", "leaky_relu", "silu"]
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.1),
    "silu": nn.silu,
}


@dataclass(frozen=True)
class ActorCritic:
    """Actor and critic as two separate multi-layer perceptrons.

    Initialisation is orthogonal with gain sqrt(2) in hidden layers, 0.01 in the policy head and 1 in the value head,
    biases zero, as in CleanRL's and purejaxrl's PPO.
    """

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, in both networks."""
    activation: ActivationName = "relu"
    """Nonlinearity of the hidden layers (leaky_relu: slope 0.1)."""
    layer_norm: bool = False
    """LayerNorm with scale and bias before each nonlinearity."""
    initial_log_std: float = 0.0
    """Continuous actions only: start of the policy's log standard deviation, one parameter an action dimension."""

    def __post_init__(self) -> None:
        _check_widths("model.hidden", self.hidden)
        if self.activation not in _ACTIVATIONS:
            message = f"model.activation: {self.activation!r} is not allowed; give one of {', '.join(_ACTIVATIONS)}"
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
    """Convolutions, hidden dense layers and an output layer; records features and the dense layers' inputs."""

    config: ActorCritic
    channels: tuple[int, ...]
    output_size: int
    output_gain: float

    @nn.compact
    def __call__(self, x: Array, taps: dict[str, Array]) -> tuple[Array, Features, dict[str, Array]]:
        activation = _ACTIVATIONS[self.config.activation]
        features: Features = {}
        inputs: dict[str, Array] = {}

        def hidden(name: str, z: Array) -> Array:
            if self.config.layer_norm:
                z = nn.LayerNorm(name=f"norm_{name}")(z)
            features[name] = activation(z)
            return features[name]

        def dense(name: str, x: Array, size: int, gain: float) -> Array:
            inputs[name] = x
            z = nn.Dense(size, kernel_init=linalg.orthogonal(gain), name=name)(x)
            return z + taps[name] if name in taps else z

        for i, channels in enumerate(self.channels):
            name = f"conv_{i}"
            conv = nn.Conv(channels, (3, 3), padding="VALID", kernel_init=linalg.orthogonal(math.sqrt(2.0)), name=name)
            x = hidden(name, conv(x))
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.config.hidden):
            x = hidden(f"dense_{i}", dense(f"dense_{i}", x, size, math.sqrt(2.0)))
        return dense("output", x, self.output_size, self.output_gain), features, inputs


class _ActorCriticNetwork(nn.Module):
    config: ActorCritic
    channels: tuple[int, ...]
    action_size: int
    continuous: bool

    @nn.compact
    def __call__(self, x: Array, taps: dict[str, Array]) -> tuple[dict[str, Array], Features, dict[str, Array]]:
        def run(name: str, size: int, gain: float) -> tuple[Array, Features, dict[str, Array]]:
            network = _Network(self.config, self.channels, size, gain, name=name)
            prefix = f"{name}/"
            out, *recorded = network(x, {k.removeprefix(prefix): v for k, v in taps.items() if k.startswith(prefix)})
            features, inputs = ({prefix + k: v for k, v in tree.items()} for tree in recorded)
            return out, features, inputs

        policy, actor_features, actor_inputs = run("actor", self.action_size, 0.01)
        value, critic_features, critic_inputs = run("critic", 1, 1.0)
        outputs = {"policy": policy, "value": value[:, 0]}
        if self.continuous:
            init = nn.initializers.constant(self.config.initial_log_std)
            log_std = self.param("log_std", init, (self.action_size,))
            outputs["log_std"] = jnp.broadcast_to(log_std, policy.shape)
        return outputs, actor_features | critic_features, actor_inputs | critic_inputs


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
    widths = {
        f"{network}/{layer}": size
        for network, last in (("actor", action_size), ("critic", 1))
        for layer, size in (*((f"dense_{i}", size) for i, size in enumerate(config.hidden)), ("output", last))
    }

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, *observation_shape)), {})["params"]

    def tapped(params: Params, taps: dict[str, Array], x: Array):
        return module.apply({"params": params}, x, taps)

    def apply(params: Params, x: Array) -> tuple[dict[str, Array], Features]:
        outputs, features, _ = tapped(params, {}, x)
        return outputs, features

    def taps(x: Array) -> dict[str, Array]:
        return {name: jnp.zeros((x.shape[0], size)) for name, size in widths.items()}

    hidden = tuple(
        f"{network}/{layer}"
        for network in ("actor", "critic")
        for layer in (*(f"conv_{i}" for i in range(len(channels))), *(f"dense_{i}" for i in range(len(config.hidden))))
    )
    return Model(init, apply, taps, tapped, tuple(widths), hidden)
