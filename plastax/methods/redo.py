"""ReDo: recycles dormant units, judged by their activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.methods import surgery
from plastax.methods.base import Periodic, units_of
from plastax.types import Array, Features, Method, Model, Units


def redo(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    threshold: float | Array = 0.025,
    period: int = 1000,
) -> Method:
    """Every ``period`` steps replaces the units of score ``mean|h_i| / mean_k mean|h_k| <= threshold`` in their layer.

    The means of ``|h|`` are over the minibatch of the step, all places, and the features of the unit; a layer that is
    dead altogether has the score 0. What becomes of the units says `surgery`: new incoming weights, nothing outgoing,
    moments cleared. Small batches make units look dormant that only have seen nothing of theirs: with one example,
    about half of all ReLU units.

    Public code differs. Dopamine's, by the authors, draws all incoming weights from xavier uniform, keeps the moments
    of the biases, and behind a convolution zeroes the weights of the wrong channels (it gives each a contiguous block
    of the flattened features, in which channels run fastest). Plasticine clears no moments, and l2_init's goes back to
    the very values that the unit started from.

    Args:
      inner: the optimiser.
      units: of the model.
      threshold: tau, of the score; 0: units that are exactly dead.
      period: gradient steps between replacements; none in the first step of a run.

    References:
      Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023, arXiv 2302.12902,
      definition 3.1 and algorithm 1.
    """

    def scores(features: Features, **_: Any) -> dict[str, Array]:
        return {name: surgery.mean_size(features[name], unit.width) for name, unit in units.items()}

    return surgery.replace_dormant("redo", inner, units, scores, threshold, period)


@dataclass(frozen=True)
class ReDo(Periodic):
    """ReDo: every so often re-initialises the units that are dormant on the current minibatch."""

    replaces_units: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"period": 2**31 - 1}

    period: int = 1000
    """Gradient steps from one recycling to the next (Sokar et al. 2023: 1,000 in DQN; dopamine's default: 200,000)."""
    threshold: float = 0.025
    """Recycled are units whose mean activity is at most this share of their layer's mean (Sokar et al. 2023: 0.025 to
    0.1; dopamine's default: 0)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``redo(inner, model.units)``."""
        return redo(inner, units_of(model, "redo"), self.threshold, self.period)
