"""Regularisation towards the initial parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax.methods.base import Settings, add_scaled
from plastax.types import Array, Method, Model, Params, Tree


class L2InitState(NamedTuple):
    """The parameters that training started from."""

    initial: Params


def l2_init(strength: float | Array = 1e-3) -> Method:
    """Adds the gradient of ``strength * sum (w - w_0)^2`` before the optimiser: ``g + 2 * strength * (w - w_0)``.

    The paper's form, without the factor 1/2 of its released code. All parameters are included: those of normalisation
    layers are pulled to their start as well.

    References:
      Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative regularization",
      arXiv 2308.11958, eq. 1.
    """

    def init(params: Params) -> L2InitState:
        # A copy: the caller may donate the parameters' buffers.
        return L2InitState(jax.tree.map(jnp.copy, params))

    def update(updates: Tree, state: L2InitState, params: Params, **_: object) -> tuple[Tree, L2InitState]:
        away = jax.tree.map(jnp.subtract, params, state.initial)
        return add_scaled(updates, 2 * strength, away), state

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class L2Init(Settings):
    """L2 Init (regenerative regularisation): an L2 pull towards the initial parameters."""

    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from the initial parameters (paper: 1e-2 to 1e-5)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(l2_init, inner)``."""
        return optax.chain(l2_init(self.strength), inner)
