"""Re-initialisation of the output layer at every task switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods import surgery
from plastax.methods.base import AtBoundary, Settings, at_boundary, fresh_params, require_draws, require_whole
from plastax.roles import STRUCTURE, RolesOf, of_model, outputs
from plastax.types import Key, Method, Model, Params, Tree


def reset_head(inner: optax.GradientTransformation, roles: RolesOf = STRUCTURE) -> Method:
    """At a task switch, replaces the output layers' parameters by a fresh draw and clears their moments.

    An actor-critic has two output layers; a policy's ``log_std`` stays. Step counts that parameters share stay too; see
    `surgery`.

    Dohare et al. set the new head to zero and keep the optimiser's state of the old one, as does ``training.head`` of
    the supervised experiments. Here, as with `reset`, both are new.

    ``roles`` says which layers are output layers.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024 (a new head for every task of
      Continual ImageNet).

    Examples:
      >>> import jax
      >>> from plastax import methods
      >>> from plastax.roles import Roles
      >>> tx = methods.reset_head(optax.adam(0.1), Roles(output=("head",)))
      >>> ones = {name: {"kernel": jnp.ones((1, 1))} for name in ("hidden", "head")}
      >>> args = {"key": jax.random.key(0), "init_fn": lambda key: jax.tree.map(lambda x: 7 * x, ones)}
      >>> updates, _ = tx.update(ones, tx.init(ones), ones, boundary=True, **args)
      >>> print(updates["hidden"]["kernel"], updates["head"]["kernel"])
      [[0.]] [[6.]]
    """

    def act(
        params: Params, state: Tree, *, key: Key, init_fn: Callable[[Key], Params], **_: Any
    ) -> tuple[Params, Tree]:
        fresh = fresh_params(init_fn, key, require_whole(params, "reset_head"))
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
    """A new output layer at every task: shows how much of the loss of plasticity is the old head's."""

    needs_boundary: ClassVar = True

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``reset_head(inner)``."""
        require_draws(model and model.init)
        return reset_head(inner, of_model(model))
