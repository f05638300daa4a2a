"""What the probes share: how often they are due, and the part of the batch that the dear ones look at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax

from plastax import tree
from plastax.errors import ConfigError
from plastax.types import ProbeInput


@dataclass(frozen=True)
class Settings:
    """Base of the probes' configurations."""

    name: ClassVar[str]

    every: int = dataclasses.field(default=1, kw_only=True)
    """Tasks from one measurement to the next, among those that probe_every leaves: tasks 0, every, 2 every, ..."""

    def __post_init__(self) -> None:
        self._positive("every")

    def _positive(self, *fields: str) -> None:
        """Raises `ConfigError` unless each of the settings is 1 or more."""
        for field in fields:
            if getattr(self, field) < 1:
                message = f"{self.name}.{field}: {getattr(self, field)} is not allowed; give 1 or more"
                raise ConfigError(message)


def thinned(seen: ProbeInput, examples: int) -> ProbeInput:
    """With at most so many examples, spread over the batch, whose order may be time."""
    batch = jax.tree.map(lambda x: x[:: max(1, -(-x.shape[0] // examples))], seen.batch)
    return seen._replace(batch=batch)


def order_within(order: int, seen: ProbeInput) -> int:
    """The order, no more than there are parameters."""
    return min(order, tree.size(seen.params))
