"""ReGraMa: recycles units that no longer learn, judged by their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from plastax.layers import Units
from plastax.methods.base import units_of
from plastax.methods.recycle import replace_dormant
from plastax.methods.redo import ReDo
from plastax.methods.surgery import mean_magnitude
from plastax.types import Array, Method, Model


@dataclass(frozen=True)
class ReGraMa(ReDo):
    """ReGraMa: re-initialises, once in a while, the units whose gradients vanish on the current minibatch."""

    period: int = 1000
    """Gradient steps from one recycling to the next."""
    threshold: float = 0.01
    """A unit is recycled if its mean gradient is at most this share of its layer's mean (AgileRL's default: 0.01)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``regrama(inner, model.units)``."""
        return regrama(inner, units_of(model, "regrama"), **vars(self))


def regrama(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    threshold: float | Array = ReGraMa.threshold,
    period: int = ReGraMa.period,
) -> Method:
    """Every ``period`` steps replaces the units of score ``mean|g_i| / mean_k mean|g_k| <= threshold`` in their layer.

    ``g`` is the gradient of the loss with respect to the unit's pre-activations (before a normalisation), from the
    step's own minibatch and backward pass. Means are over examples and places. All else is as in `redo`. A unit with
    zero outgoing weights has no gradient, so a unit that was just replaced counts as dormant until they have grown. The
    period should leave time for that.

    The paper defines its metric by the gradient's magnitude but does not say with respect to what. Code that follows it
    takes the pre-activations (AgileRL) or the kernel (averaged over incoming weights), which is the former weighted by
    the inputs.

    ``units`` are the model's; ``threshold`` is the paper's tau. Nothing happens in a run's first step.

    References:
      Liu et al., "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement learning",
      NeurIPS 2025, arXiv 2505.24061.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import methods, models
      >>> model = models.MLP(hidden=(4,)).build((3,), 2)
      >>> params, seen = model.init(jax.random.key(0)), {"dense_0": jnp.eye(4)[:3]}
      >>> tx = methods.regrama(optax.sgd(0.1), model.units, period=10)
      >>> args = {"key": jax.random.key(1), "clock": 10, "init_fn": model.init}
      >>> updates, _ = tx.update(params, tx.init(params), params, features=seen, tap_grads=seen, **args)
      >>> new = optax.apply_updates(params, updates)["output"]["kernel"]
      >>> print((new == 0).all(1))  # the unit without a gradient is replaced
      [False False False  True]
    """

    def scores(tap_grads: Mapping[str, Array], **_: Any) -> dict[str, Array]:
        return {name: mean_magnitude(tap_grads[name], unit) for name, unit in units.items()}

    return replace_dormant("regrama", inner, units, scores, threshold, period)
