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
from plastax.methods.base import Settings
from plastax.types import Array, Method, Model, Params, Tree


class WeightClippingState(NamedTuple):
    """A tree of the parameters' structure: the bound of each array, a scalar, before ``kappa``."""

    bounds: Params


def weight_clipping(kappa: float | Array = 2.0) -> Method:
    """After every step ``w <- clip(w, -kappa s, kappa s)``, s the bound of the layer's uniform initialiser.

    s is the largest absolute value among the kernel's initial entries, which for a uniform initialiser is its bound
    less a share of about one in the number of entries. The paper defines s for uniform initialisers only; a normal or
    orthogonal one has no bound, and ``kappa`` counts in its largest entries (about sqrt(2 log n) standard deviations of
    n normal ones), so a value for the one does not carry over to the other. A bias has its kernel's bound, as PyTorch
    initialises it and the authors' code for reinforcement learning clips it. Normalisation layers and a policy's
    ``log_std`` are free.

    References:
      Elsayed et al., "Weight clipping for deep continual and reinforcement learning", RLC 2024, arXiv 2407.01704,
      algorithm 1. Their supervised code takes sqrt(1 / (fan in + fan out)) for kernels and 1 for biases by default.
    """

    def init(params: Params) -> WeightClippingState:
        named = tree.named_leaves(params)

        def bound(name: str, w: Array) -> Array:
            layer, _, part = name.rpartition("/")
            kernel = named.get(f"{layer}/kernel") if part in ("kernel", "bias") else None
            return jnp.full((), math.inf, w.dtype) if kernel is None else jnp.max(jnp.abs(kernel))

        return WeightClippingState(tree.map_named(bound, params))

    def update(
        updates: Tree, state: WeightClippingState, params: Params, **_: object
    ) -> tuple[Tree, WeightClippingState]:
        def clipped(u: Array, w: Array, s: Array) -> Array:
            # Where the box is not left, the step is as it was, bit for bit.
            box = kappa * s
            return jnp.where(jnp.abs(w + u) > box, jnp.clip(w + u, -box, box) - w, u)

        return jax.tree.map(clipped, updates, params, state.bounds), state

    return optax.GradientTransformationExtraArgs(init, update)


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
        return optax.chain(inner, weight_clipping(self.kappa))
