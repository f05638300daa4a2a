"""Several methods as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from plastax.errors import ConfigError
from plastax.methods.base import AtBoundary
from plastax.types import Key, Method, MethodConfig, Model, Params, Tree


@dataclass(frozen=True)
class Composed:
    """Methods around one optimiser; see `compose`."""

    parts: tuple[MethodConfig, ...]
    """From the innermost to the outermost."""
    model_options: Mapping[str, Any]
    """What the parts ask of the model, together."""

    @property
    def needs_boundary(self) -> bool:
        """Whether any part does."""
        return any(part.needs_boundary for part in self.parts)

    @property
    def restarts_statistics(self) -> bool:
        """Whether any part does."""
        return any(part.restarts_statistics for part in self.parts)

    @property
    def replaces_units(self) -> bool:
        """Whether any part does."""
        return any(part.replaces_units for part in self.parts)

    @property
    def replaces_optimizer(self) -> bool:
        """Whether the innermost part does."""
        return self.parts[0].replaces_optimizer

    @property
    def off(self) -> None:
        """Set the parts' own."""
        return None

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps ``inner`` into the parts, one after the other."""
        inner = self.parts[0].build(inner, model)
        for part in self.parts[1:]:
            inner = part.build(_with_own_key(inner), model)
        return optax.with_extra_args_support(inner)


def _with_own_key(inner: optax.GradientTransformation) -> Method:
    """``inner`` with random draws of its own, where what goes around it draws from the same key."""
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: Tree, params: Params, *, key: Key, **extra: Any) -> tuple[Tree, Tree]:
        return inner.update(updates, state, params, key=jax.random.fold_in(key, 2), **extra)

    # Of the same type: `base.at_boundary` knows by it what acts at switches.
    kind = AtBoundary if isinstance(inner, AtBoundary) else optax.GradientTransformationExtraArgs
    return kind(inner.init, update)


def compose(configs: Sequence[MethodConfig]) -> MethodConfig:
    """One method of several: each wraps those before it, so the last one acts on what the others have done.

    Whatever the order, those that act at task switches go around the others (see `base.at_boundary`), then come those
    that replace units, so that nothing is added to a new unit's parameters, and one that is an optimiser itself goes
    below all. Every part draws from a key of its own.

    Raises:
      ConfigError: two of them ask for different values of one option of the model, or both replace the optimiser.
    """
    if len(configs) == 1:
        return configs[0]
    options: dict[str, Any] = {}
    for config in configs:
        for name, value in config.model_options.items():
            if options.setdefault(name, value) != value:
                message = f"methods: one of them needs the model's {name} {options[name]!r}, another {value!r}"
                raise ConfigError(message)
    if sum(config.replaces_optimizer for config in configs) > 1:
        message = "methods: two of them replace the optimiser; give one"
        raise ConfigError(message)
    order = sorted(
        configs, key=lambda config: (config.needs_boundary, config.replaces_units, not config.replaces_optimizer)
    )
    return Composed(tuple(order), options)
