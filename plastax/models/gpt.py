"""A small GPT for sequences of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.models import attention
from plastax.models.attention import SMALL, Transformer
from plastax.models.base import Network
from plastax.types import Array, Features, Model


@dataclass(frozen=True, kw_only=True)
class GPT(Transformer):
    """A decoder of tokens, as GPT-2: learned positions, pre-LayerNorm, causal attention, logits of the next token.

    Inputs are tokens, int32 ``[B, T]``; negative ones are padding. No place attends to padding, and a token's position
    is its number among the tokens that are not padding. So padding, wherever it is, changes no other place. At padding
    itself, features and logits are zero. For blocks, features, units and initialisation see `attention.Transformer`.

    The defaults have 120,928 parameters for a vocabulary of 64 and sequences of 32 tokens.
    """

    tied: bool = False
    """Read the logits with the embedding, transposed, instead of an output layer with a bias (GPT-2: True)."""

    def build(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Makes the model.

        Args:
          input_shape: ``(T,)``, the tokens of a sequence.
          outputs: the vocabulary: number of tokens, and of logits at each place.

        Raises:
          ConfigError: inputs are no sequences, or of fewer than two tokens; ``outputs`` is not positive; or heads
            are to be injected.
        """
        if len(input_shape) != 1 or input_shape[0] < 2:
            raise ConfigError(
                f"model: 'gpt' needs inputs [T], two or more tokens; this stream's are {tuple(input_shape)}"
            )
        found = self.blocks()
        units = {name: units for name, units in found.items() if units}
        module = _GPT(self, outputs, input_shape[0])
        return self.as_model(module, input_shape, units, hidden=tuple(found), counted=counted)


def counted(x: Array) -> Array:
    """Which tokens are not padding, bool ``[B, T]``."""
    return x >= 0


class _GPT(Network):
    length: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Features]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ConfigError(f"model: 'gpt' needs tokens, integers [B, T]; this stream's inputs are {x.dtype}")
        if x.shape[1] > self.length:
            raise ConfigError(f"x: {x.shape[1]} tokens are too many; this model was built for {self.length} or fewer")
        config, counts = self.config, counted(x)
        tokens = nn.Embed(self.outputs, config.width, embedding_init=SMALL, name="tokens")
        positions = nn.Embed(self.length, config.width, embedding_init=SMALL, name="positions")
        h = tokens(jnp.maximum(x, 0)) + positions(jnp.maximum(jnp.cumsum(counts, axis=1) - 1, 0))
        mask = nn.combine_masks(nn.make_causal_mask(x, dtype=bool), counts[:, None, None], dtype=bool)
        h, features = attention.transformed(config, h, mask, counts)
        logits = tokens.attend(h) if config.tied else config.dense(self.outputs, "output")(h)
        return jnp.where(counts[..., None], logits, 0), features
