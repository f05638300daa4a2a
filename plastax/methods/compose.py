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
    """Those of all parts."""
    needs_boundary: bool
    restarts_statistics: bool
    replaces_units: bool
    replaces_optimizer: bool
    off: None = None
    """Switch off the parts instead."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps ``inner`` into the parts, one after the other."""
        inner = self.parts[0].build(inner, model)
        for part in self.parts[1:]:
            inner = part.build(_with_own_key(inner), model)
        return optax.with_extra_args_support(inner)


def _with_own_key(inner: optax.GradientTransformation) -> Method:
    """``inner`` with a key of its own, so that its random draws are not those of the method around it."""
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: Tree, params: Params, *, key: Key, **extra: Any) -> tuple[Tree, Tree]:
        return inner.update(updates, state, params, key=jax.random.fold_in(key, 2), **extra)

    # The type tells `base.at_boundary` what acts at switches.
    kind = AtBoundary if isinstance(inner, AtBoundary) else optax.GradientTransformationExtraArgs
    return kind(inner.init, update)


def compose(configs: Sequence[MethodConfig]) -> MethodConfig:
    """One method of several: each wraps those before it, so the last one acts on what the others have done.

    Three kinds have fixed places, whatever the order. Methods that act at task switches are outermost (see
    `base.at_boundary`). Next are methods that replace units, so that nothing is added to a new unit's parameters. A
    method that is an optimiser itself is innermost. Every part draws from its own key.

    Raises:
      ConfigError: two of them need different values of one option of the model, or both replace the optimiser.

    Examples:
      >>> from plastax.methods import METHODS, compose
      >>> both = compose([METHODS["reset"], METHODS["l2"]])
      >>> [type(part).__name__ for part in both.parts]
      ['L2', 'Reset']
    """
    if len(configs) == 1:
        return configs[0]
    options: dict[str, Any] = {}
    for config in configs:
        for name, value in config.model_options.items():
            if options.setdefault(name, value) != value:
                raise ConfigError(f"methods: one of them needs the model's {name} {options[name]!r}, another {value!r}")
    if sum(config.replaces_optimizer for config in configs) > 1:
        raise ConfigError("methods: two of them replace the optimiser; give one")
    order = sorted(
        configs, key=lambda config: (config.needs_boundary, config.replaces_units, not config.replaces_optimizer)
    )
    return Composed(
        tuple(order),
        options,
        needs_boundary=any(config.needs_boundary for config in configs),
        restarts_statistics=any(config.restarts_statistics for config in configs),
        replaces_units=any(config.replaces_units for config in configs),
        replaces_optimizer=any(config.replaces_optimizer for config in configs),
    )
