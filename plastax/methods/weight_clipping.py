"""Weight clipping: no weight leaves a box around zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Settings, matrices_of, transformation
from plastax.roles import STRUCTURE, RolesOf, of_model, shape_of
from plastax.types import Array, Method, Model, Params, Tree


class WeightClippingState(NamedTuple):
    """A tree of the parameters' structure: the bound of each array, a scalar, before ``kappa``; of a stack, of each."""

    bounds: Params


def weight_clipping(kappa: float | Array = 2.0, roles: RolesOf = STRUCTURE) -> Method:
    """After every step ``w <- clip(w, -kappa s, kappa s)``, s the bound of the layer's uniform initialiser.

    s is the largest absolute value among the kernel's initial entries, which for a uniform initialiser is its bound
    less a share of about one in the number of entries. The paper defines s for uniform initialisers only; a normal or
    orthogonal one has no bound, and ``kappa`` counts in its largest entries (about sqrt(2 log n) standard deviations of
    n normal ones), so a value for the one does not carry over to the other. A bias has its kernel's bound, as PyTorch
    initialises it and the authors' code for reinforcement learning clips it. Normalisation layers, a policy's
    ``log_std``, and layers whose kernel starts at zero are free. Which are what says ``roles``.

    References:
      Elsayed et al., "Weight clipping for deep continual and reinforcement learning", RLC 2024, arXiv 2407.01704,
      algorithm 1. Their supervised code takes sqrt(1 / (fan in + fan out)) for kernels and 1 for biases by default.
    """

    def init(params: Params) -> WeightClippingState:
        named, found = tree.named_leaves(params), roles.of(params)
        kernels, largest = matrices_of(params, roles, "weight_clipping"), dict[str, Array]()
        for name, (role, kernel) in kernels.items():
            _, rows, units = shape_of(role, kernel)
            most = jnp.max(jnp.abs(named[name]), rows + units)
            largest[role.layer] = jnp.maximum(largest[role.layer], most) if role.layer in largest else most

        def bound(name: str, w: Array) -> Array:
            role = found[name]
            if role.kind not in ("kernel", "bias"):
                return jnp.full((), math.inf, w.dtype)
            most = jnp.where(largest[role.layer] > 0, largest[role.layer], jnp.inf)
            if not most.ndim:
                return most
            _, rows, units = shape_of(*kernels[name]) if name in kernels else ((), tuple(range(most.ndim, w.ndim)), ())
            return jnp.expand_dims(most, rows + units)

        return WeightClippingState(tree.map_named(bound, params))

    def update(
        updates: Tree, state: WeightClippingState, params: Params, *, rate: float | Array = 1.0, **_: object
    ) -> tuple[Tree, WeightClippingState]:
        def clipped(u: Array, w: Array, s: Array) -> Array:
            # Where the box is not left, the step is as it was, bit for bit.
            box, new = kappa * s, w + rate * u
            return jnp.where(jnp.abs(new) > box, (jnp.clip(new, -box, box) - w) / rate, u)

        return jax.tree.map(clipped, updates, params, state.bounds), state

    return transformation("weight_clipping", init, update, kappa=kappa)


@dataclass(frozen=True)
class WeightClipping(Settings):
    """Weight clipping: after every step the weights go back into a box, ``kappa`` times the initialiser's bound.

    The step of the optimiser and what other methods inside add are clipped together; the optimiser's state is not.
    """

    off: ClassVar[Mapping[str, Any] | None] = {"kappa": math.inf}

    kappa: float = 2.0
    """Size of the box, in bounds of the layer's uniform initialiser (paper: 1, 2, 3, ...); inf: none."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, weight_clipping)``."""
        return optax.chain(inner, weight_clipping(self.kappa, of_model(model)))
