"""Methods that can make a whole step of training, and not only its updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from plastax.types import Params, Tree


class Moving(optax.GradientTransformationExtraArgs):
    """A method that can also make the whole step: ``move(grads, state, params, **args) -> (params, state)``.

    This saves most of the cost of a method that acts only in some steps. Updates that leave a `lax.cond` are written to
    memory and read again, whereas ``move`` changes the parameters in place. ``update`` returns updates, like that of
    every optax transformation. Only the program, which holds the outermost method, calls ``move``.
    """

    move: Callable[..., tuple[Params, Tree]]

    def __new__(cls, init: Any, update: Any, move: Callable[..., tuple[Params, Tree]]) -> Moving:
        """The transformation ``(init, update)`` that can also ``move``."""
        self = super().__new__(cls, init, update)
        self.move = move
        return self
