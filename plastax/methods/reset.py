"""Re-initialisation at every task switch: the reference arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.methods.base import Settings, at_boundary, fresh_params, require_draws, require_whole
from plastax.types import Key, Method, Model, Params, Tree


def reset(inner: optax.GradientTransformation) -> Method:
    """At a task switch, replaces the parameters by a fresh draw of the initialiser and restarts the optimiser.

    Public code often resets the weights and keeps the optimiser's moments; here both are new.

    References:
      The RESET arm of arXiv 2509.22335 and of Dohare et al., Nature 632 (2024).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import methods
      >>> tx, params = methods.reset(optax.adam(0.1)), {"w": jnp.ones(1)}
      >>> args = {"key": jax.random.key(0), "init_fn": lambda key: {"w": jnp.full(1, 7.0)}, "boundary": True}
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params, **args)
      >>> print(optax.apply_updates(params, updates)["w"])
      [7.]
    """

    def act(
        params: Params, state: Tree, *, key: Key, init_fn: Callable[[Key], Params], **_: Any
    ) -> tuple[Params, Tree]:
        fresh = fresh_params(init_fn, key, require_whole(params, "reset"))
        return fresh, inner.init(fresh)

    return at_boundary(inner, act)


@dataclass(frozen=True)
class Reset(Settings):
    """A new network and a new optimiser at every task: the reference arm, with no plasticity to lose."""

    needs_boundary: ClassVar = True
    restarts_statistics: ClassVar = True

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``reset(inner)``."""
        require_draws(model and model.init)
        return reset(inner)
