"""Self-normalised resets: replaces units that have been silent for longer than their own past explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods import surgery
from plastax.methods.base import Settings, at_least_one, due, never, transformation, units_of, when
from plastax.types import Array, Features, Key, Method, Model, Params, Tree, Units


class Gaps(NamedTuple):
    """How a hidden layer's units fire, each ``[width]``.

    Attributes:
      silent: int32, steps since the unit fired or was replaced.
      total: decaying sum of the gaps between firings, in steps.
      number: decaying number of them.
    """

    silent: Array
    total: Array
    number: Array


class SelfNormalizedResetsState(NamedTuple):
    """State of `self_normalized_resets`.

    Attributes:
      inner: of the optimiser.
      spare: name -> incoming entries of the units in a fresh draw of the network.
      layers: hidden layer -> `Gaps`.
      last: the clock of the last call that was applied.
    """

    inner: Tree
    spare: dict[str, Array]
    layers: dict[str, Gaps]
    last: Array


def self_normalized_resets(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    level: float | Array = 0.01,
    decay: float | Array = 0.99,
    first_gap: float | Array = 16.0,
    patience: int = 100,
) -> Method:
    """Replaces a unit that is silent for so long that its own rate of firing makes it unlikely.

    A unit fires in a step if its feature is positive for any example (at any place) of the minibatch; of two features
    that a nonlinearity makes, the first counts. If it fires after ``a`` silent steps, a gap of ``a + 1`` steps is
    recorded: ``total <- decay total + a + 1``, ``number <- decay number + 1``. Gaps are taken as geometric with mean
    ``m = total / number``, so that a gap A outlasts the present silence with probability::

        P(A > a) = (1 - 1/m)^a

    A unit with ``P < level`` and ``a >= patience`` is replaced, behind the optimiser's step (see `surgery`), and its
    silence recorded as a gap of ``a``, so that what was in vain makes the next test more patient. At the start, each
    unit has one gap of ``first_gap``.

    The rule is the paper's hypothesis test of whether the rate has dropped to zero. It leaves open how the distribution
    is estimated, over which history, and what holds before there is one; the released code (ajozefiak/
    SelfNormalizedResets) says that its algorithm 1 omits this. There, thresholds on the silence are renewed every few
    tasks: the 99th percentile of a histogram of gaps, or twice the old threshold if that is less. Copies of it for
    transformers take an exponential distribution with the mean gap, which is the form here, but without thresholds that
    are held fixed. The released code has no patience (it resets a unit at the first silent minibatch, if its past says
    so) and does not count gaps without a silent minibatch.

    The spare draw that the new weights come from is renewed every ``patience`` steps, so that no unit gets the same one
    twice; see `continual_backprop`. The test needs units that are silent at times: under tanh, sin or a normalisation
    few ever are.

    Args:
      inner: the optimiser.
      units: of the model.
      level: of the test, eta in the paper; 0: no unit is ever replaced.
      decay: of the history of gaps, an entry; its length is about ``1 / (1 - decay)`` gaps.
      first_gap: steps.
      patience: steps of silence below which no unit is replaced.

    References:
      Farias and Jozefiak, "Self-normalized resets for plasticity in continual learning", ICLR 2025, arXiv 2410.20098.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SelfNormalizedResetsState:
        surgery.check(units, params, "self_normalized_resets")
        leaves = tree.named_leaves(params)
        layers = {}
        for name, unit in units.items():
            one = jnp.ones(unit.width, tree.wide_type(leaves[unit.incoming[0].name]))
            layers[name] = Gaps(jnp.zeros(unit.width, jnp.int32), one * first_gap, one)
        return SelfNormalizedResetsState(inner.init(params), surgery.no_spare(units, params), layers, never())

    def look(seen: Gaps, h: Array) -> tuple[Gaps, Array]:
        """The layer's new gaps, and the units to be replaced."""
        width = seen.silent.size
        fired = jnp.any(h[..., :width] > 0, tuple(range(h.ndim - 1)))
        silent = jnp.where(fired, 0, seen.silent + 1)
        unlikely = jnp.power(1 - seen.number / seen.total, silent.astype(seen.total.dtype)) < level
        chosen = ~fired & (silent >= patience) & unlikely
        gap = jnp.where(fired, seen.silent + 1, silent).astype(seen.total.dtype)
        ends = fired | chosen
        return Gaps(
            jnp.where(chosen, 0, silent),
            jnp.where(ends, decay * seen.total + gap, seen.total),
            jnp.where(ends, decay * seen.number + 1, seen.number),
        ), chosen

    def update(
        updates: Tree,
        state: SelfNormalizedResetsState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        features: Features,
        init_fn: Callable[[Key], Params],
        every_step: bool = False,
        **extra: Any,
    ) -> tuple[Tree, SelfNormalizedResetsState]:
        extra |= {"key": key, "clock": clock, "features": features, "init_fn": init_fn, "every_step": every_step}
        updates, moved = inner.update(updates, state.inner, params, **extra)
        if not features:  # A call at a task switch.
            return updates, state._replace(inner=moved)
        spare = surgery.renewed(units, state.spare, due(patience, clock, state.last, every_step), init_fn, key, params)
        looked = {name: look(seen, features[name]) for name, seen in state.layers.items()}
        chosen = {name: mask for name, (_, mask) in looked.items()}
        updates, moved = when(
            surgery.any_of(chosen),
            lambda x: surgery.replace(units, chosen, spare, params, x[0], x[1], inner, rate=extra.get("rate", 1.0)),
            (updates, moved),
        )
        layers = {name: gaps for name, (gaps, _) in looked.items()}
        return updates, SelfNormalizedResetsState(moved, spare, layers, jnp.asarray(clock, jnp.int32))

    return transformation("self_normalized_resets", init, update)


@dataclass(frozen=True)
class SelfNormalizedResets(Settings):
    """SNR: re-initialises units whose silence is too long for the rate at which they used to fire."""

    replaces_units: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"level": 0.0}

    level: float = 0.01
    """Level of the test: a unit is replaced when so long a silence had a smaller probability (released code: 0.01)."""
    decay: float = 0.99
    """Of the history of gaps between firings, at each of them."""
    first_gap: float = 16.0
    """Gradient steps between firings that a unit is taken to have before it has a history."""
    patience: int = 100
    """Silent gradient steps below which no unit is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.decay, int | float) and self.decay > 1:
            message = f"{type(self).__name__}.decay: {self.decay} is not allowed; give a number from 0 to 1"
            raise ConfigError(message)
        if isinstance(self.first_gap, int | float):
            at_least_one(self, "first_gap")
        at_least_one(self, "patience")

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``self_normalized_resets(inner, model.units)``."""
        units = units_of(model, "self_normalized_resets")
        return self_normalized_resets(inner, units, self.level, self.decay, self.first_gap, self.patience)
