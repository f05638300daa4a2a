"""Plain training: the optimiser alone."""

from __future__ import annotations

from dataclasses import dataclass

from plastax.methods.base import Settings


@dataclass(frozen=True)
class Backprop(Settings):
    """Plain backpropagation: the optimiser alone, the arm that loses plasticity."""
