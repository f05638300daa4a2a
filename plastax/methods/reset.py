"""Re-initialisation at every task switch: the reference arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.methods.base import Settings, at_boundary, drawn, whole
from plastax.types import Key, Method, Model, Params, Tree


def reset(inner: optax.GradientTransformation) -> Method:
    """At a boundary, replaces parameters by a fresh draw of the initialiser and the optimiser's state by its start.

    References:
      The RESET arm of arXiv 2509.22335 and of Dohare et al., Nature 632 (2024). Public code often resets the weights
      and keeps the optimiser's moments; here both go.
    """

    def act(
        params: Params, state: Tree, *, key: Key, init_fn: Callable[[Key], Params], **_: Any
    ) -> tuple[Params, Tree]:
        fresh = drawn(init_fn, key, whole(params, "reset"))
        return fresh, inner.init(fresh)

    return at_boundary(inner, act)


@dataclass(frozen=True)
class Reset(Settings):
    """A new network and a new optimiser at every task: the reference arm, no plasticity to lose."""

    needs_boundary: ClassVar[bool] = True
    restarts_statistics: ClassVar[bool] = True

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``reset(inner)``."""
        return reset(inner)
