"""Several methods as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from plastax.types import ConfigError, Method, MethodConfig, Model


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
    def starts_anew(self) -> bool:
        """Whether any part does."""
        return any(part.starts_anew for part in self.parts)

    @property
    def off(self) -> None:
        """Set the parts' own."""
        return None

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps ``inner`` into the parts, one after the other."""
        for part in self.parts:
            inner = part.build(inner, model)
        return optax.with_extra_args_support(inner)


def compose(configs: Sequence[MethodConfig]) -> MethodConfig:
    """One method of several: each wraps those before it, so the last one acts on what the others have done.

    Those that act at task switches go around the others, whatever the order: see `base.at_boundary`.

    Raises:
      ConfigError: two of them ask for different values of one option of the model.
    """
    if len(configs) == 1:
        return configs[0]
    options: dict[str, Any] = {}
    for config in configs:
        for name, value in config.model_options.items():
            if options.setdefault(name, value) != value:
                message = f"methods: one of them needs the model's {name} {options[name]!r}, another {value!r}"
                raise ConfigError(message)
    return Composed(tuple(sorted(configs, key=lambda config: config.needs_boundary)), options)
