"""A small vision transformer for classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.models import attention, layers
from plastax.models.attention import SMALL, Transformer
from plastax.models.base import Network
from plastax.types import Array, Features, Model

Pool = Literal["class", "mean"]


@dataclass(frozen=True, kw_only=True)
class ViT(Transformer):
    """A vision transformer: square patches, learned positions, pre-LayerNorm, a class token or the mean of all places.

    The layer ``patches`` embeds the patches, row by row; the class token comes before them. For blocks, features, units
    and initialisation see `attention.Transformer`.

    The defaults have 116,938 parameters for 28x28x1 inputs and 10 outputs.

    References:
      Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1; for the mean: Beyer, Zhai and
      Kolesnikov, "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580.
    """

    patch: int = 4
    """Side of a patch; a divisor of the image's height and width."""
    pool: Pool = "class"
    """What the output layer reads: class, a class token's place | mean, of all places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, "model", "patch", least=1)
        ranges.check_choices(self, "model", pool=Pool)

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: ``(height, width, channels)`` of one example.
          outputs: number of logits.

        Raises:
          ConfigError: inputs are no images, patches do not fit, ``outputs`` is not positive, or heads are to be
            injected.
        """
        layers.check_image("vit", input_shape)
        if any(side % self.patch or not side for side in input_shape[:2]):
            raise ConfigError(
                f"model.patch: {self.patch} does not divide the height and width of inputs {tuple(input_shape)}; "
                "give a divisor of both"
            )
        found = self.blocks()
        units = {name: units for name, units in found.items() if units}
        return self.as_model(_ViT(self, outputs), input_shape, units, hidden=tuple(found))


class _ViT(Network):
    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        config = self.config
        h = config.dense(config.width, "patches")(patches(x, config.patch))
        if config.pool == "class":
            token = nn.Embed(1, config.width, embedding_init=SMALL, name="class_token")
            h = jnp.concatenate([token(jnp.zeros((len(h), 1), jnp.int32)), h], axis=1)
        places = jnp.broadcast_to(jnp.arange(h.shape[1]), h.shape[:2])
        h = h + nn.Embed(h.shape[1], config.width, embedding_init=SMALL, name="positions")(places)
        h, features = attention.transformed(config, h)
        h = h[:, 0] if config.pool == "class" else jnp.mean(h, axis=1)
        return config.dense(self.outputs, "output")(h), features


def patches(x: Array, side: int) -> Array:
    """Square patches of images ``[B, height, width, channels]``, row by row: ``[B, T, side * side * channels]``.

    Examples:
      >>> patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0].tolist()
      [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, side * side * channels)
