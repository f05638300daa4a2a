"""Coupled L2 regularisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.methods.base import Settings, towards_zero
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model


def l2(strength: float | Array = 1e-3, roles: RolesOf = STRUCTURE) -> Method:
    """Adds the gradient of ``strength / 2 * sum w^2`` to the gradient, before the optimiser: ``g + strength * w``.

    Under Adam the term enters both moments, unlike `weight_decay`. All weights and biases are included, and a Gaussian
    policy's ``log_std``; scales and biases of normalisation layers are not (as in Kumar et al.; the paper's code decays
    those as well). Which layers those are says ``roles``.

    References:
      Krogh and Hertz, "A simple weight decay can improve generalization", NIPS 1991; for plasticity: Kumar et al.,
      arXiv 2308.11958, and arXiv 2509.22335, which calls the same coupled form weight decay.
    """
    return towards_zero("l2", strength, roles)


@dataclass(frozen=True)
class L2(Settings):
    """L2 regularisation, coupled: its gradient goes through the optimiser."""

    off: ClassVar[Mapping[str, Any] | None] = {"l2": 0.0}

    l2: float = 1e-3
    """Strength: the loss gains strength / 2 times the sum of squared weights (paper: 1e-3)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(l2, inner)``."""
        return optax.chain(l2(self.l2, of_model(model)), inner)
