"""Decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from plastax.methods.base import Settings, check_numbers, towards_zero
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model


@dataclass(frozen=True)
class WeightDecay(Settings):
    """Weight decay, decoupled: the weights shrink outside the optimiser's moments (AdamW)."""

    off: ClassVar = {"decay": 0.0}

    decay: float = 1e-5
    """Share of every weight lost in a gradient step: AdamW's learning rate x weight decay (1e-3 x 1e-2)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, weight_decay)``."""
        return optax.chain(inner, weight_decay(self.decay, of_model(model)))


def weight_decay(rate: float | Array = WeightDecay.decay, roles: RolesOf = STRUCTURE) -> Method:
    """Shrinks the weights by ``rate`` a step, after the optimiser and outside its moments: ``update - rate * w``.

    Normalisation layers are left alone.

    Args:
      rate: the product of AdamW's learning rate and weight decay.
      roles: which layers are normalisations.

    References:
      Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(1.0), methods.weight_decay(0.25))
      >>> params = {"w": jnp.array([2.0])}
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params)
      >>> print(updates["w"])
      [-0.5]
    """
    check_numbers("weight_decay", rate=rate)
    return towards_zero("weight_decay", -rate, roles)
