"""ReGraMa: recycles units that no longer learn, judged by their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.methods import surgery
from plastax.methods.base import Periodic, units_of
from plastax.types import Array, Method, Model, Units


def regrama(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    threshold: float | Array = 0.01,
    period: int = 1000,
) -> Method:
    """Every ``period`` steps replaces the units of score ``mean|g_i| / mean_k mean|g_k| <= threshold`` in their layer.

    ``g`` is the gradient of the loss with respect to the unit's pre-activations (before a normalisation), of the
    minibatch of the step and the same backward pass; means are over examples and places. Otherwise `redo`. A unit with
    zero outgoing weights has no gradient: one that was just replaced counts as dormant until these have grown, so the
    period should leave it the time.

    The paper defines its metric by the gradient's magnitude and leaves open of what; code that follows it takes the
    pre-activations (AgileRL) or the kernel (averaged over incoming weights), which weighs the former by the inputs.

    Args:
      inner: the optimiser.
      units: of the model.
      threshold: tau, of the score.
      period: gradient steps between replacements; none in the first step of a run.

    References:
      Liu et al., "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement learning",
      NeurIPS 2025, arXiv 2505.24061.
    """

    def scores(tap_grads: Mapping[str, Array], **_: Any) -> dict[str, Array]:
        return {name: surgery.mean_size(tap_grads[name], unit.width) for name, unit in units.items()}

    return surgery.replace_dormant("regrama", inner, units, scores, threshold, period)


@dataclass(frozen=True)
class ReGraMa(Periodic):
    """ReGraMa: every so often re-initialises the units whose gradients vanish on the current minibatch."""

    replaces_units: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"period": 2**31 - 1}

    period: int = 1000
    """Gradient steps from one recycling to the next."""
    threshold: float = 0.01
    """Recycled are units whose mean gradient is at most this share of their layer's mean (AgileRL's default: 0.01)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``regrama(inner, model.units)``."""
        return regrama(inner, units_of(model, "regrama"), self.threshold, self.period)
