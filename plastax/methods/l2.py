"""Coupled L2 regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from plastax.methods.base import Settings, towards_zero
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model


@dataclass(frozen=True)
class L2(Settings):
    """L2 regularisation, coupled: its gradient goes through the optimiser."""

    off: ClassVar = {"l2": 0.0}

    l2: float = 1e-3
    """Strength: the loss gains strength / 2 times the sum of squared weights (paper: 1e-3)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(l2, inner)``."""
        return optax.chain(l2(self.l2, of_model(model)), inner)


def l2(strength: float | Array = L2.l2, roles: RolesOf = STRUCTURE) -> Method:
    """Adds the gradient of ``strength / 2 * sum w^2`` to the gradient, before the optimiser: ``g + strength * w``.

    Under Adam the term enters both moments, unlike `weight_decay`. It includes all weights and biases, and a Gaussian
    policy's ``log_std``, but not scales and biases of normalisation layers (as in Kumar et al.; the paper's code decays
    those as well).

    ``roles`` says which layers are normalisations.

    References:
      Krogh and Hertz, "A simple weight decay can improve generalization", NIPS 1991; for plasticity: Kumar et al.,
      arXiv 2308.11958, and arXiv 2509.22335, which calls the same coupled form weight decay.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import methods
      >>> tx = optax.chain(methods.l2(0.5), optax.sgd(1.0))
      >>> params = {"w": jnp.array([2.0])}
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params)
      >>> print(updates["w"])
      [-1.]
    """
    return towards_zero("l2", strength, roles)
