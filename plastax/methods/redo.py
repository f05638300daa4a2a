"""ReDo: recycles dormant units, judged by their activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optax

from plastax.layers import Units
from plastax.methods.base import Periodic, units_of
from plastax.methods.recycle import replace_dormant
from plastax.methods.surgery import mean_magnitude
from plastax.types import Array, Features, Method, Model


@dataclass(frozen=True)
class ReDo(Periodic):
    """ReDo: re-initialises, once in a while, the units that are dormant on the current minibatch."""

    replaces_units: ClassVar = True

    period: int = 1000
    """Gradient steps from one recycling to the next (Sokar et al. 2023: 1,000 in DQN; dopamine's default: 200,000)."""
    threshold: float = 0.025
    """A unit is recycled if its mean activity is at most this share of its layer's mean (Sokar et al. 2023: 0.025 to
    0.1; dopamine's default: 0)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``redo(inner, model.units)``."""
        return redo(inner, units_of(model, "redo"), **vars(self))


def redo(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    threshold: float | Array = ReDo.threshold,
    period: int = ReDo.period,
) -> Method:
    """Every ``period`` steps replaces the units of score ``mean|h_i| / mean_k mean|h_k| <= threshold`` in their layer.

    The means of ``|h|`` are over the minibatch of the step, all places, and the features of the unit. A layer that is
    entirely dead has the score 0. Replaced units get new incoming weights, zero outgoing weights and cleared moments;
    see `surgery`. With small batches, units may look dormant that have only seen none of their examples: with one
    example, about half of all ReLU units.

    Public code differs. Dopamine's, by the authors, draws all incoming weights from xavier uniform and keeps the
    moments of the biases. After a convolution it zeroes the weights of the wrong channels: it takes a contiguous block
    of the flattened features for each, although channels run fastest. Plasticine clears no moments. The code of l2_init
    restores the values that the unit started from.

    ``units`` are the model's; ``threshold`` is the paper's tau (0: only units that are exactly dead). Nothing happens
    in a run's first step.

    References:
      Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023, arXiv 2302.12902,
      definition 3.1 and algorithm 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import methods, models
      >>> model = models.MLP(hidden=(4,)).build((3,), 2)
      >>> params = model.init(jax.random.key(0))
      >>> tx = methods.redo(optax.sgd(0.1), model.units, period=10)
      >>> args = {"key": jax.random.key(1), "clock": 10, "init_fn": model.init}
      >>> updates, _ = tx.update(params, tx.init(params), params, features={"dense_0": jnp.eye(4)[:3]}, **args)
      >>> new = optax.apply_updates(params, updates)["output"]["kernel"]
      >>> print((new == 0).all(1))  # the unit that was never active is replaced
      [False False False  True]
    """

    def scores(features: Features, **_: Any) -> dict[str, Array]:
        return {name: mean_magnitude(features[name], unit) for name, unit in units.items()}

    return replace_dormant("redo", inner, units, scores, threshold, period)
