"""Re-initialisation at every task switch: the reference arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax.methods.base import Settings
from plastax.types import Array, Key, Method, Params, Tree


def reset(inner: optax.GradientTransformation) -> Method:
    """At a boundary, replaces parameters by a fresh draw of the initialiser and the optimiser's state by its start.

    The update is ``fresh - w``, so the new parameters equal the draw up to one rounding. Elsewhere it is ``inner``.

    References:
      The RESET arm of arXiv 2509.22335 and of Dohare et al., Nature 632 (2024). Public code often resets the weights
      and keeps the optimiser's moments; here both go.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Tree,
        state: Tree,
        params: Params,
        *,
        key: Key,
        boundary: Array | bool,
        init_fn: Callable[[Key], Params],
        **extra: object,
    ) -> tuple[Tree, Tree]:
        def start_again(_: Tree, __: Tree) -> tuple[Tree, Tree]:
            fresh = init_fn(key)
            return jax.tree.map(jnp.subtract, fresh, params), inner.init(fresh)

        def go_on(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            return inner.update(updates, state, params, key=key, boundary=boundary, init_fn=init_fn, **extra)

        if isinstance(boundary, bool):
            return (start_again if boundary else go_on)(updates, state)
        return jax.lax.cond(boundary, start_again, go_on, updates, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


@dataclass(frozen=True)
class Reset(Settings):
    """A new network and a new optimiser at every task: the reference arm, no plasticity to lose."""

    needs_boundary: ClassVar[bool] = True
    starts_anew: ClassVar[bool] = True

    def build(self, inner: optax.GradientTransformation) -> Method:
        """``reset(inner)``."""
        return reset(inner)
