"""What the methods share: the defaults of a configuration, checks of its numbers, and which entries are regularised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.types import Array, ConfigError, Method, Tree


@dataclass(frozen=True)
class Settings:
    """Base of the methods' configurations: an unchanged model, no action at switches, no negative number."""

    model_options: ClassVar[Mapping[str, Any]] = {}
    needs_boundary: ClassVar[bool] = False
    starts_anew: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Traced values (a hyperparameter axis) cannot be checked; they come from checked settings.
            if isinstance(value, int | float) and not value >= 0:
                message = f"{type(self).__name__}.{field.name}: {value} is not allowed; give 0 or more"
                raise ConfigError(message)

    def build(self, inner: optax.GradientTransformation) -> Method:
        """Wraps the optimiser ``inner``; without a change here."""
        return optax.with_extra_args_support(inner)


@dataclass(frozen=True)
class Periodic(Settings):
    """Base of the methods that act every so many gradient steps, because acting costs more than a step."""

    period: int = 16
    """Gradient steps from one action to the next; the default is one an update at 4 epochs x 4 minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.period, int | float) and self.period < 1:
            message = f"{type(self).__name__}.period: {self.period} is not allowed; give 1 or more"
            raise ConfigError(message)


def add_scaled(updates: Tree, scale: float | Array, direction: Tree) -> Tree:
    """``updates + scale * direction``, entry by entry."""
    return jax.tree.map(lambda u, d: u + scale * d, updates, direction)


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a normalisation layer, by its path name."""
    return "norm_" in name


def without_norms(params: Tree) -> Tree:
    """``params`` with zeros for the scales and biases of normalisation layers, whose natural centre is not zero."""
    return tree.map_named(lambda name, x: jnp.zeros_like(x) if is_norm(name) else x, params)
