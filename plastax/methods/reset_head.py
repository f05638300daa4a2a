"""Re-initialisation of the output layer at every task switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods import surgery
from plastax.methods.base import AtBoundary, Settings, at_boundary, drawn, whole
from plastax.roles import STRUCTURE, RolesOf, of_model, outputs
from plastax.types import Key, Method, Model, Params, Tree


def reset_head(inner: optax.GradientTransformation, roles: RolesOf = STRUCTURE) -> Method:
    """At a boundary, replaces the output layers' parameters by a fresh draw and their moments by the optimiser's start.

    Which are output layers says ``roles``: of an actor-critic both; a policy's ``log_std`` stays. The step counts that
    parameters share stay, too; see `surgery`.

    Dohare et al. set the new head to zero and keep the optimiser's state of the old one (``training.head`` of the
    supervised experiments keeps it as well); here, as with `reset`, both are new.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024 (a new head for every task of
      Continual ImageNet).
    """

    def act(
        params: Params, state: Tree, *, key: Key, init_fn: Callable[[Key], Params], **_: Any
    ) -> tuple[Params, Tree]:
        fresh = drawn(init_fn, key, whole(params, "reset_head"))
        leaves = tree.named_leaves(params)
        head = {name: jnp.ones_like(leaves[name], bool) for name in outputs(roles.of(params), "reset_head")}
        new = tree.map_named(lambda name, old, drawn: drawn if name in head else old, params, fresh)
        return new, surgery.clear(state, inner.init(new), (head,), leaves)

    method = at_boundary(inner, act)

    def init(params: Params) -> Tree:
        outputs(roles.of(params), "reset_head")
        return method.init(params)

    return AtBoundary(init, method.update)


@dataclass(frozen=True)
class ResetHead(Settings):
    """A new output layer at every task: how much of the loss of plasticity is the old head's."""

    needs_boundary: ClassVar[bool] = True

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``reset_head(inner)``."""
        return reset_head(inner, of_model(model))
