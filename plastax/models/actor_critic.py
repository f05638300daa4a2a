"""Separate actor and critic networks for PPO, and networks of action values for DQN."""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from plastax import linalg
from plastax.errors import ConfigError
from plastax.models import layers
from plastax.models.base import ModelConfig
from plastax.models.convolution import Conv
from plastax.types import Array, Features, Model


@dataclass(frozen=True)
class ActorCritic(ModelConfig):
    """Actor and critic as two separate multi-layer perceptrons; one of action values for DQN.

    Initialisation is orthogonal with gain sqrt(2) in hidden layers, 0.01 in the policy head and 1 in value heads,
    biases zero, as in CleanRL's and purejaxrl's PPO.
    """

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, in each network."""
    initial_log_std: float = 0.0
    """Continuous actions only: initial log standard deviation of the policy, one parameter per action dimension."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths("hidden", some=("hidden",))

    def build(self, observation_shape: tuple[int, ...], action_size: int, *, continuous: bool | None) -> Model:
        """Makes the model.

        Its outputs are a dict: ``policy`` ``[B, action_size]``, logits or the mean action; ``value`` ``[B]``; and for
        continuous actions ``log_std`` ``[B, action_size]``.

        Args:
          observation_shape: of one observation.
          action_size: number of actions, or of their dimensions.
          continuous: whether actions are real vectors; None: the outputs are action values ``[B, action_size]``.

        Raises:
          ConfigError: the observations do not fit, or heads cannot be injected.
        """
        return self._build((), observation_shape, action_size, continuous)

    def _build(
        self, channels: tuple[int, ...], observation_shape: tuple[int, ...], action_size: int, continuous: bool | None
    ) -> Model:
        widths = {f"conv_{i}": width for i, width in enumerate(channels)}
        widths |= {f"dense_{i}": width for i, width in enumerate(self.hidden)}
        if continuous is None:
            return self.as_model(_Network(self, channels, action_size, 1.0), observation_shape, self.chain(widths))
        units = self.chain(widths, "actor/") | self.chain(widths, "critic/")
        return self.as_model(_ActorCritic(self, channels, action_size, continuous), observation_shape, units)


@dataclass(frozen=True)
class ConvActorCritic(ActorCritic):
    """Actor and critic, each one 3x3 convolution and dense layers, for MinAtar's [10, 10, channels] observations."""

    hidden: tuple[int, ...] = (128,)
    """Units of each dense hidden layer, in each network."""
    channels: tuple[int, ...] = (16,)
    """Channels of each 3x3 convolution (stride 1, no padding); MinAtar's reference networks have one of 16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths("channels", some=("channels",))

    def build(self, observation_shape: tuple[int, ...], action_size: int, *, continuous: bool | None) -> Model:
        """Makes the model; raises `ConfigError` unless observations are ``[height, width, channels]``, large enough."""
        layers.check_image("conv", observation_shape)
        # Every convolution without padding takes two rows and two columns.
        most = (min(observation_shape[:2]) - 1) // 2
        if len(self.channels) > most:
            raise ConfigError(
                f"model.channels: {self.channels} is not allowed; observations {observation_shape} allow {most} of them"
            )
        return self._build(self.channels, observation_shape, action_size, continuous)


class _Network(nn.Module):
    """Convolutions, hidden dense layers and an output layer; returns its features too."""

    config: ActorCritic
    channels: tuple[int, ...]
    output_size: int
    output_gain: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        init = linalg.orthogonal(math.sqrt(2.0))
        features: Features = {}

        def hidden(name: str, z: Array) -> Array:
            features[name] = layers.activate(name, z, self.config.activation, self.config.layer_norm)
            return features[name]

        for i, channels in enumerate(self.channels):
            name = f"conv_{i}"
            x = hidden(name, Conv(channels, (3, 3), padding="VALID", kernel_init=init, name=name)(x))
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.config.hidden):
            name = f"dense_{i}"
            x = hidden(name, nn.Dense(size, kernel_init=init, name=name)(x))
        init = linalg.orthogonal(self.output_gain)
        return nn.Dense(self.output_size, kernel_init=init, dot_general=layers.by_column, name="output")(x), features


class _ActorCritic(nn.Module):
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
