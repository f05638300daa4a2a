"""What the attention models share: their settings, and residual blocks of attention and an MLP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.layers import Entries, Units
from plastax.models import layers
from plastax.models.base import ModelConfig
from plastax.models.layers import INITIALIZERS, ActivationName
from plastax.types import Array, Features

SMALL = nn.initializers.normal(0.02)
"""How embeddings are drawn, and with ``gpt2`` kernels."""
Initializer = Literal["gpt2", "he_uniform", "lecun_normal", "lecun_uniform", "torch_uniform", "orthogonal"]


@dataclass(frozen=True, kw_only=True)
class Transformer(ModelConfig):
    """The settings of `GPT` and `ViT`, whose blocks are the same.

    ``depth`` blocks, each ``x + attention(norm(x))`` and then ``x + mlp(norm(x))`` (pre-LayerNorm), and a last
    LayerNorm. With D the width and r the ``mlp_ratio`` a block has ``(4 + 2r) D^2 + (9 + r) D`` parameters. Embeddings
    are drawn from N(0, 0.02^2); biases start at zero.

    Features of a block: ``block_0/attention/value``, the heads' outputs side by side, which the layer ``out`` reads;
    ``block_0/mlp/up``, after the nonlinearity; ``block_0/mlp/down``, the residual stream after the block. The units of
    the first are the heads: incoming are their columns of ``query``, ``key`` and ``value``, outgoing their rows of
    ``out``. Those of the second are the MLP's neurons. The stream has no units: all blocks write to it. With
    ``layer_norm`` a further LayerNorm precedes the MLP's nonlinearity.

    References:
      Radford et al., "Language models are unsupervised multitask learners" (GPT-2), 2019, section 2.3: the blocks, and
      the initialisation ``gpt2``, with which GPTs are mostly trained. Methods that go back to the start (resets, L2 to
      the initial weights, clipping) go back to it.
    """

    activation: ActivationName = "gelu"
    """Nonlinearity of the MLPs (gelu: GPT-2's, with tanh; crelu and deep_fourier make two features a unit)."""
    width: int = 48
    """Width D of the residual stream."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads of a block; a divisor of the width."""
    mlp_ratio: int = 4
    """Units of an MLP over the width."""
    initializer: Initializer = "gpt2"
    """How kernels are drawn. gpt2: N(0, 0.02^2), divided by sqrt(2 depth) where they write to the residual stream
    (`out` and `down`). All others: alike in all layers (orthogonal: gain sqrt(2))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, "model", "width", "depth", "heads", "mlp_ratio", least=1)
        ranges.check_choices(self, "model", initializer=Initializer)
        if self.width % self.heads:
            divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
            raise ConfigError(
                f"model.heads: {self.heads} does not divide the width {self.width}; "
                f"give one of {', '.join(map(str, divisors))}, or another width"
            )

    def dense(self, width: int, name: str, *, writes: bool = False) -> nn.Dense:
        """A dense layer; ``writes``: whether to the residual stream."""
        init = INITIALIZERS.get(self.initializer, SMALL)
        if writes and self.initializer == "gpt2":
            init = nn.initializers.normal(0.02 / math.sqrt(2 * self.depth))
        return nn.Dense(width, kernel_init=init, name=name)

    def blocks(self) -> Mapping[str, Units | None]:
        """The features of all blocks, in the order of the forward pass, and their units."""
        found: dict[str, Units | None] = {}
        for at in (f"block_{i}" for i in range(self.depth)):
            parts = (f"{at}/attention/{layer}/{part}" for layer in QKV for part in ("kernel", "bias"))
            heads = Units(
                self.heads,
                tuple(Entries(name, -1) for name in parts),
                (Entries(f"{at}/attention/out/kernel", -2),),
                size=self.width // self.heads,
            )
            neurons = self.units(f"{at}/mlp/up", self.mlp_ratio * self.width, f"{at}/mlp/down")
            found |= {f"{at}/attention/value": heads, f"{at}/mlp/up": neurons, f"{at}/mlp/down": None}
        return found


QKV = ("query", "key", "value")


def transformed(
    config: Transformer, x: Array, mask: Array | None = None, counted: Array | None = None
) -> tuple[Array, Features]:
    """All blocks and the last LayerNorm; called within a compact Flax module.

    Args:
      config: the settings.
      x: the embeddings ``[B, T, D]``.
      mask: bool ``[B, 1, T or 1, T]``: which places (last axis) each place attends to; None: to all.
      counted: bool ``[B, T]``; features are zero at places that do not count. None: all count.

    Returns:
      ``[B, T, D]``, and the features of all blocks.
    """
    features: Features = {}
    for i in range(config.depth):
        x, inside = _Block(config, name=f"block_{i}")(x, mask)
        features |= {f"block_{i}/{name}": h for name, h in inside.items()}
    if counted is not None:
        features = {name: jnp.where(counted[..., None], h, 0) for name, h in features.items()}
    return nn.LayerNorm(name="norm_last")(x), features


class _Block(nn.Module):
    config: Transformer

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Features]:
        written, heads = _Attention(self.config, name="attention")(nn.LayerNorm(name="norm_attention")(x), mask)
        x = x + written
        written, neurons = _MLP(self.config, name="mlp")(nn.LayerNorm(name="norm_mlp")(x))
        x = x + written
        return x, {"attention/value": heads, "mlp/up": neurons, "mlp/down": x}


class _Attention(nn.Module):
    config: Transformer

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """What it writes to the stream, and the heads' outputs, both ``[B, T, D]``."""
        heads: Any = (self.config.heads, -1)
        q, k, v = (self.config.dense(x.shape[-1], name)(x).reshape(*x.shape[:-1], *heads) for name in QKV)
        given = nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        return self.config.dense(x.shape[-1], "out", writes=True)(given), given


class _MLP(nn.Module):
    config: Transformer

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """What it writes to the stream ``[B, T, D]``, and its units' features."""
        config = self.config
        z = config.dense(config.mlp_ratio * config.width, "up")(x)
        h = layers.activate("up", z, config.activation, config.layer_norm)
        return config.dense(config.width, "down", writes=True)(h), h
