"""Weight clipping: keeps all weights in a box around zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Settings, matrices_of, transformation
from plastax.roles import STRUCTURE, RolesOf, of_model, shape_of
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class WeightClipping(Settings):
    """Weight clipping: puts the weights back into a box after every step, ``kappa`` times the initialiser's bound.

    It clips the optimiser's step together with what other methods inside add, but not the optimiser's state.
    """

    off: ClassVar = {"kappa": math.inf}

    kappa: float = 2.0
    """Size of the box, in bounds of the layer's uniform initialiser (paper: 1, 2, 3, ...); inf: none."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, weight_clipping)``."""
        return optax.chain(inner, weight_clipping(self.kappa, of_model(model)))


class WeightClippingState(NamedTuple):
    """A tree like the parameters: the bound of each array, before ``kappa``; a scalar, or one for each of a stack."""

    bounds: Params


def weight_clipping(kappa: float | Array = WeightClipping.kappa, roles: RolesOf = STRUCTURE) -> Method:
    """After every step ``w <- clip(w, -kappa s, kappa s)``, where s is the bound of the layer's uniform initialiser.

    s is the largest absolute value among the kernel's initial entries. With n entries of a uniform initialiser that is
    its bound, less a share of about 1/n. The paper defines s for uniform initialisers only. A normal or orthogonal one
    has no bound, and ``kappa`` then counts in its largest entry (about sqrt(2 log n) standard deviations of n normal
    ones), so a value for one initialiser does not carry over to another. A bias has its kernel's bound, as PyTorch
    initialises it and the authors' code for reinforcement learning clips it. Normalisation layers, a policy's
    ``log_std``, and layers whose kernel starts at zero are free.

    ``roles`` says what the parameters are.

    References:
      Elsayed et al., "Weight clipping for deep continual and reinforcement learning", RLC 2024, arXiv 2407.01704,
      algorithm 1. Their supervised code takes sqrt(1 / (fan in + fan out)) for kernels and 1 for biases by default.

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(1.0), methods.weight_clipping(2.0))
      >>> params = {"dense": {"kernel": jnp.array([[0.5, 0.1]])}}
      >>> updates, _ = tx.update({"dense": {"kernel": jnp.array([[-3.0, 0.0]])}}, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["dense"]["kernel"])
      [[1.  0.1]]
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
            # A step that stays in the box is left alone, bit for bit.
            box, new = kappa * s, w + rate * u
            return jnp.where(jnp.abs(new) > box, (jnp.clip(new, -box, box) - w) / rate, u)

        return jax.tree.map(clipped, updates, params, state.bounds), state

    return transformation("weight_clipping", init, update, kappa=kappa)
