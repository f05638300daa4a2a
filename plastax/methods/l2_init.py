"""Regularisation towards the initial parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax.methods.base import Settings, add_scaled, fresh_params, require_whole, transformation
from plastax.types import Array, Method, Model, Params, Tree

Variant = Literal["l2", "l1", "huber", "resampled"]


@dataclass(frozen=True)
class L2Init(Settings):
    """L2 Init (regenerative regularisation): an L2 pull towards the initial parameters."""

    off: ClassVar = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from the initial parameters (paper: 1e-2 to 1e-5)."""
    variant: Variant = "l2"
    """Distance: l2 | l1 | huber | resampled (l2 from a fresh draw of the initialiser at every step)."""
    delta: float = 1.0
    """For huber: the pull grows up to this distance (paper: 1); no effect on others."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(l2_init, inner)``."""
        return optax.chain(l2_init(**vars(self)), inner)


class L2InitState(NamedTuple):
    """The parameters that training started from; None if they are drawn at every step."""

    initial: Params | None


def l2_init(
    strength: float | Array = L2Init.strength, variant: Variant = L2Init.variant, delta: float | Array = L2Init.delta
) -> Method:
    """Adds the gradient of ``strength * sum rho(w - w_0)`` to the gradient, before the optimiser.

    ========= ============================================================= ==============
    variant   rho(d)                                                        its derivative
    ========= ============================================================= ==============
    l2        ``d^2``                                                       ``2 d``
    l1        ``|d|``                                                       ``sign d``
    huber     ``d^2 / 2`` up to ``|d| = delta``, then linear                ``clip(d, +-delta)``
    resampled ``d^2``, ``w_0`` a fresh draw of the initialiser at each step ``2 d``
    ========= ============================================================= ==============

    L2 Init is the paper's form, without the factor 1/2 of its released code. It includes all parameters: those of
    normalisation layers are pulled to their start as well. With an orthogonal initialiser the resampled variant costs
    more than a step; the paper finds it worse.

    References:
      Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative regularization",
      arXiv 2308.11958, eq. 1 and the comparison of its variants.

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(methods.l2_init(0.5), optax.sgd(1.0))
      >>> state = tx.init({"w": jnp.array([1.0])})
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, state, {"w": jnp.array([3.0])})
      >>> print(updates["w"])
      [-2.]
    """

    def init(params: Params) -> L2InitState:
        # A copy: the caller may donate the parameters' buffers.
        return L2InitState(None if variant == "resampled" else jax.tree.map(jnp.copy, params))

    def slope(away: Array) -> Array:
        if variant == "l1":
            return jnp.sign(away)
        return jnp.clip(away, -delta, delta) if variant == "huber" else 2 * away

    def update(updates: Tree, state: L2InitState, params: Params, **extra: Any) -> tuple[Tree, L2InitState]:
        start = state.initial
        if variant == "resampled":
            start = fresh_params(extra["init_fn"], extra["key"], require_whole(params, "l2_init"))
        away = jax.tree.map(jnp.subtract, params, start)
        return add_scaled(updates, strength, jax.tree.map(slope, away)), state

    return transformation("l2_init", init, update, strength=strength, delta=delta)
