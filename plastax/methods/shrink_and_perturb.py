"""Shrink and perturb, a little at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax

from plastax.methods.base import Periodic
from plastax.types import Array, Key, Method, Model, Params, Tree


def shrink_and_perturb(shrink: float | Array = 1e-4, perturb: float | Array = 1e-4, period: int = 16) -> Method:
    """Every ``period`` optimiser steps ``w <- (1 - shrink) w + perturb * xi``, ``xi`` a fresh draw of the initialiser.

    The continual form of Kumar et al. (arXiv 2308.11958, appendix): the noise has each layer's own scale and is drawn
    anew every time (there at every step; an orthogonal draw at every step would cost more than the step). Others
    differ: Dohare et al. add Gaussian noise of one scale to an L2-regularised network, and Plasticine pulls to one
    frozen initial network, which is L2 Init.

    References:
      Ash and Adams, "On warm-starting neural network training", arXiv 1910.08475, section 4 (at a boundary).
    """

    def update(
        updates: Tree,
        state: optax.EmptyState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        init_fn: Callable[[Key], Params],
        **_: object,
    ) -> tuple[Tree, optax.EmptyState]:
        def move(updates: Tree) -> Tree:
            fresh = init_fn(key)
            return jax.tree.map(lambda u, w, xi: u - shrink * (w + u) + perturb * xi, updates, params, fresh)

        return jax.lax.cond(clock % period == 0, move, lambda u: u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


@dataclass(frozen=True)
class ShrinkAndPerturb(Periodic):
    """Shrink and Perturb: again and again shrinks the weights and adds a little of a fresh initialisation."""

    off: ClassVar[Mapping[str, Any] | None] = {"shrink": 0.0, "perturb": 0.0}

    shrink: float = 1e-4
    """Share of every weight lost each time (Kumar et al., at every step: 1e-2 to 1e-5)."""
    perturb: float = 1e-4
    """Share of a freshly initialised network added each time."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, shrink_and_perturb)``."""
        return optax.chain(inner, shrink_and_perturb(self.shrink, self.perturb, self.period))
