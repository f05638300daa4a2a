"""Self-normalised resets: replaces units that have been silent for longer than their own past explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import optax

from plastax.layers import Units
from plastax.methods.base import Settings, units_of
from plastax.methods.recycle import Watch, replace_watched
from plastax.types import Array, Key, Method, Model


@dataclass(frozen=True)
class SelfNormalizedResets(Settings):
    """SNR: re-initialises units whose silence is too long for the rate at which they used to fire."""

    replaces_units: ClassVar = True
    off: ClassVar = {"level": 0.0}

    level: float = 0.01
    """Level of the test: a unit is replaced if so long a silence had a smaller probability (released code: 0.01)."""
    decay: float = 0.99
    """Of the history of gaps, at each firing; about ``1 / (1 - decay)`` gaps are remembered."""
    first_gap: float = 16.0
    """Gradient steps between firings that a unit without a history is assumed to have."""
    patience: int = 100
    """Silent gradient steps below which no unit is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("decay", least=0, most=1)
        self.check("first_gap", "patience", least=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``self_normalized_resets(inner, model.units)``."""
        return self_normalized_resets(inner, units_of(model, "self_normalized_resets"), **vars(self))


class Gaps(NamedTuple):
    """How a hidden layer's units fire, each ``[width]``.

    Attributes:
      silent: int32, steps since the unit fired or was replaced.
      total: decaying sum of the gaps between firings, in steps.
      number: decaying number of gaps.
    """

    silent: Array
    total: Array
    number: Array


def self_normalized_resets(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    level: float | Array = SelfNormalizedResets.level,
    decay: float | Array = SelfNormalizedResets.decay,
    first_gap: float | Array = SelfNormalizedResets.first_gap,
    patience: int = SelfNormalizedResets.patience,
) -> Method:
    """Replaces a unit whose silence is unlikely, given how often it used to fire.

    A unit fires in a step if its feature is positive for any example (at any place) of the minibatch. If a nonlinearity
    makes two features of it, the first counts; of an attention head, any. When it fires after ``a`` silent steps, a gap
    of ``a + 1`` steps is recorded: ``total <- decay total + a + 1``, ``number <- decay number + 1``. Gaps are taken as
    geometric with mean ``m = total / number``. A gap A then outlasts the present silence with probability::

        P(A > a) = (1 - 1/m)^a

    A unit with ``P < level`` and ``a >= patience`` is replaced after the optimiser's step (see `surgery`). Its silence
    is recorded as a gap of ``a``, so a replacement that did not help makes the next test more patient. At the start
    each unit has one gap of ``first_gap``. The spare draw that new weights come from is renewed every ``patience``
    steps, and no unit can be replaced twice within them.

    The rule is the paper's hypothesis test of whether the rate has dropped to zero. The paper does not say how the
    distribution is estimated, over which history, and what holds before there is one; the released code
    (ajozefiak/SelfNormalizedResets) says that its algorithm 1 omits this. That code renews thresholds on the silence
    every few tasks: the 99th percentile of a histogram of gaps, or twice the old threshold if that is less. Its copies
    for transformers use an exponential distribution with the mean gap, which is the form here, but with thresholds held
    fixed. The released code has no patience (it resets a unit at the first silent minibatch, if its past says so) and
    does not count gaps without a silent minibatch.

    The test needs units that are silent at times: with tanh, sin or a normalisation few ever are.

    The settings are those of `SelfNormalizedResets` (``level`` is the paper's eta); ``units`` are the model's.

    References:
      Farias and Jozefiak, "Self-normalized resets for plasticity in continual learning", ICLR 2025, arXiv 2410.20098.

    Examples:
      >>> import jax
      >>> from plastax import methods, models
      >>> model = models.MLP(hidden=(4,)).build((3,), 2)
      >>> params = model.init(jax.random.key(0))
      >>> tx = methods.self_normalized_resets(optax.sgd(0.1), model.units, level=0.9, first_gap=2.0, patience=1)
      >>> args = {"key": jax.random.key(1), "clock": 0, "init_fn": model.init}
      >>> updates, _ = tx.update(params, tx.init(params), params, features={"dense_0": jnp.eye(4)[:3]}, **args)
      >>> new = optax.apply_updates(params, updates)["output"]["kernel"]
      >>> print((new == 0).all(1))  # the silent unit is replaced
      [False False False  True]
    """

    def start(units: Units, dtype: Any) -> Gaps:
        one = jnp.ones(units.width, dtype)
        return Gaps(jnp.zeros(units.width, jnp.int32), one * first_gap, one)

    def look(
        units: Units, seen: Gaps, h: Array, counted: Array | None, leaves: Mapping[str, Array], key: Key
    ) -> tuple[Gaps, Array, Array | None]:
        first = h[..., : units.width * units.size]
        fired = jnp.any((first > 0).reshape(-1, units.width, units.size), (0, 2))
        silent = jnp.where(fired, 0, seen.silent + 1)
        unlikely = jnp.power(1 - seen.number / seen.total, silent.astype(seen.total.dtype)) < level
        chosen = ~fired & (silent >= patience) & unlikely
        gap = jnp.where(fired, seen.silent + 1, silent).astype(seen.total.dtype)
        ends = fired | chosen
        gaps = Gaps(
            jnp.where(chosen, 0, silent),
            jnp.where(ends, decay * seen.total + gap, seen.total),
            jnp.where(ends, decay * seen.number + 1, seen.number),
        )
        return gaps, chosen, None

    watch = Watch(start, look, lambda _, gaps, chosen, key: (chosen, gaps))
    return replace_watched("self_normalized_resets", inner, units, watch, patience)
