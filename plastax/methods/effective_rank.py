"""Effective-rank regularisation: keeps the features of every hidden layer from collapsing onto few directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax import linalg
from plastax.methods.base import Periodic, add_scaled
from plastax.types import Array, Features, Method, Model, Params, Tree


def mean_effective_rank(features: Features) -> Array:
    """Mean over layers of the effective rank of the uncentred features, a scalar; see `linalg.effective_rank`.

    Convolutional features ``[B, h, w, c]`` count as ``B h w`` rows of ``c`` columns.
    """
    ranks = [linalg.effective_rank(h.reshape(-1, h.shape[-1])) for h in features.values()]
    return sum(ranks, jnp.zeros(())) / len(ranks)


def effective_rank(er_lr: float | Array = 1e-3, period: int = 16) -> Method:
    """Gradient ascent on the mean effective rank, beside the optimiser: ``update + er_lr * grad mean_l erank(H_l)``.

    A plain step of its own, behind the optimiser in a chain, so that it touches no moments; every ``period`` gradient
    steps, on the current minibatch. That is the form of the paper's code, which takes one such step an update of the
    agent. Unlike there, value and gradient share one eigendecomposition of the smaller Gram matrix, and the actor's and
    critic's layers are averaged, not added network by network.

    References:
      arXiv 2509.22335, section 7 (the regulariser); Roy and Vetterli, EUSIPCO 2007 (effective rank).
    """

    def update(
        updates: Tree,
        state: optax.EmptyState,
        params: Params,
        *,
        clock: Array,
        batch: Tree,
        features_fn: Callable[[Params, Tree], Features],
        **_: object,
    ) -> tuple[Tree, optax.EmptyState]:
        def ascend(updates: Tree) -> Tree:
            direction = jax.grad(lambda p: mean_effective_rank(features_fn(p, batch)))(params)
            return add_scaled(updates, er_lr, direction)

        return jax.lax.cond(clock % period == 0, ascend, lambda u: u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


@dataclass(frozen=True)
class EffectiveRank(Periodic):
    """ER: gradient ascent on the effective rank of every hidden layer's features."""

    off: ClassVar[Mapping[str, Any] | None] = {"er_lr": 0.0}

    er_lr: float = 1e-3
    """Step size of the ascent (paper: PPO 1e-5 to 1e-7, supervised 1e-2 to 1e-5; 1e-3 was the best of 1e-3 and 1e-2 on
    cartpole_chain, four seeds that are not reported)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, effective_rank)``."""
        return optax.chain(inner, effective_rank(self.er_lr, self.period))
