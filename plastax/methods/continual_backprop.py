"""Continual backprop: replaces the least useful mature units, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.layers import Units
from plastax.methods import surgery
from plastax.methods.base import Settings, units_of
from plastax.methods.recycle import Watch, replace_watched
from plastax.types import Array, Key, Method, Model

UtilityName = Literal[
    "contribution",
    "adaptable_contribution",
    "zero_contribution",
    "weight",
    "adaptation",
    "feature_by_input",
    "random",
    "uselessness",
]


@dataclass(frozen=True)
class ContinualBackprop(Settings):
    """Continual backprop: re-initialises a few of the least useful units again and again."""

    replaces_units: ClassVar = True
    off: ClassVar = {"replacement_rate": 0.0}

    replacement_rate: float = 1e-4
    """Share of every layer's mature units that is replaced in a gradient step (Dohare et al. 2024: 1e-4 in PPO, 3e-4 in
    Continual ImageNet, 1e-5 in incremental CIFAR, 1e-4 to 1e-6 in permuted MNIST)."""
    decay: float = 0.99
    """Of the running averages of utility and activation: eta in the paper."""
    maturity: int = 100
    """Gradient steps for which a new unit is spared (Dohare et al. 2024: 100; CIFAR 1,000; PPO 10,000)."""
    utility: UtilityName = "contribution"
    """What makes a unit useful: contribution (in PPO and CIFAR), adaptable_contribution (in MNIST and ImageNet),
    zero_contribution, weight, adaptation, feature_by_input or random; uselessness, the negative of contribution,
    replaces the most useful units."""
    accumulate: bool = True
    """Save up fractions of a unit until they make a whole one; else replace one with the fraction's probability."""
    compensate: bool = True
    """Add to the readers' biases what a replaced unit gave on average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("replacement_rate", least=0, most=1)
        self.check("decay", below=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``continual_backprop(inner, model.units)``."""
        return continual_backprop(inner, units_of(model, "continual_backprop"), **vars(self))


class Layer(NamedTuple):
    """What is known of a hidden layer's units.

    Attributes:
      age: ``[width]`` int32, steps since the start or since the unit was replaced.
      utility: ``[width]``, decaying average, not corrected for its start at zero.
      mean: ``[copies * width * size]``, of the features, likewise.
      owed: scalar, the units still to be replaced; only whole ones are.
    """

    age: Array
    utility: Array
    mean: Array
    owed: Array


def utility_of(
    utility: UtilityName,
    units: Units,
    h: Array,
    fhat: Array,
    leaves: Mapping[str, Array],
    counted: Array | None = None,
) -> Array:
    """The utility ``[width]`` of a layer's units in one step: ``y`` in `continual_backprop`.

    Args:
      utility: its name.
      units: of the layer.
      h: its features ``[B, ..., copies * width * size]``.
      fhat: their running mean ``[copies * width * size]``.
      leaves: name -> parameter.
      counted: bool ``[B, T]``, the places that means are over; None: all.
    """

    def per_feature(x: Array) -> Array:
        return surgery.per_feature(x, counted)

    def per_unit(feature: Array) -> Array:
        return surgery.per_unit(feature, units)

    def w_out() -> Array:
        return surgery.magnitude(units.outgoing, leaves, h.shape[-1])

    def w_in() -> Array:
        return per_unit(surgery.magnitude(units.incoming, leaves, units.width * units.size))

    def spread() -> Array:
        return per_feature(jnp.abs(h - fhat.reshape((1,) * (h.ndim - 1) + (-1,))))

    y: dict[str, Callable[[], Array]] = {
        "contribution": lambda: per_unit(w_out() * per_feature(jnp.abs(h))),
        "adaptable_contribution": lambda: per_unit(w_out() * spread()) / w_in(),
        "zero_contribution": lambda: per_unit(w_out() * spread()),
        "weight": lambda: per_unit(w_out()),
        "adaptation": lambda: 1 / w_in(),
        "feature_by_input": lambda: per_unit(spread()) / w_in(),
        "random": lambda: jnp.zeros(units.width, h.dtype),
        "uselessness": lambda: -per_unit(w_out() * per_feature(jnp.abs(h))),
    }
    return y[utility]()


def continual_backprop(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    replacement_rate: float | Array = ContinualBackprop.replacement_rate,
    decay: float | Array = ContinualBackprop.decay,
    maturity: int = ContinualBackprop.maturity,
    utility: UtilityName = ContinualBackprop.utility,
    accumulate: bool = ContinualBackprop.accumulate,
    compensate: bool = ContinualBackprop.compensate,
) -> Method:
    """Replaces in every step the share ``replacement_rate`` of every layer's mature units, those of lowest utility.

    After the optimiser's step, with the features ``h`` that its gradient was taken on and the new weights, in each
    hidden layer::

        age += 1
        f <- decay f + (1 - decay) mean h          fhat = f / (1 - decay^age)
        u <- decay u + (1 - decay) y               uhat = u / (1 - decay^age)

    ``y`` is one of: contribution, ``mean|w_out| mean|h|``; zero_contribution, ``mean|w_out| mean|h - fhat|``;
    adaptable_contribution, the same ``/ mean|w_in|``; weight, ``mean|w_out|``; adaptation, ``1 / mean|w_in|``;
    feature_by_input, ``mean|h - fhat| / mean|w_in|``; uselessness, the negative of contribution. With random, uhat is
    drawn in every step. Means of features are over the examples and all places. If a nonlinearity makes two features of
    a unit, the unit has the mean of both.

    Let E units have ``age > maturity``. With ``accumulate``, ``owed += replacement_rate E``, and the whole part n is
    taken from it. Otherwise n is the whole part of ``replacement_rate E`` if that is 1 or more; else n is 1 with that
    probability. The n units of lowest uhat are replaced as `surgery` says; with ``compensate`` the readers' biases gain
    ``w_out fhat``. Then u = f = age = 0. The spare draw that new weights come from is renewed every ``maturity + 1``
    steps, and no unit can be replaced twice within them.

    The authors' code differs. It clears f before it compensates, so its biases never change. It draws from a uniform
    distribution of its own. It clears Adam's moments and step count (here: see `surgery`) but not the momentum of SGD.
    The code of arXiv 2509.22335 (KevinGuo27/lop-jax) replaces the units of *highest* utility, as uselessness does here,
    and redraws their outgoing weights.

    The settings are those of `ContinualBackprop`; ``units`` are the model's.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, algorithm 1; for the
      utilities: arXiv 2108.06325.

    Examples:
      >>> from plastax import methods, models
      >>> model = models.MLP(hidden=(4,)).build((3,), 2)
      >>> params = model.init(jax.random.key(0))
      >>> tx = methods.continual_backprop(optax.sgd(0.1), model.units, replacement_rate=0.25, maturity=0)
      >>> args = {"key": jax.random.key(1), "clock": 0, "init_fn": model.init}
      >>> updates, _ = tx.update(params, tx.init(params), params, features={"dense_0": jnp.eye(4)[:3]}, **args)
      >>> new = optax.apply_updates(params, updates)["output"]["kernel"]
      >>> print((new == 0).all(1))  # the unit that was never active is replaced
      [False False False  True]
    """

    def start(units: Units, dtype: Any) -> Layer:
        zeros = jnp.zeros(units.width, dtype)
        return Layer(
            jnp.zeros(units.width, jnp.int32),
            zeros,
            jnp.zeros(units.copies * units.width * units.size, dtype),
            jnp.zeros((), dtype),
        )

    def look(
        units: Units, seen: Layer, h: Array, counted: Array | None, leaves: Mapping[str, Array], key: Key
    ) -> tuple[Layer, Array, Array | None]:
        h = tree.wide(h)
        age = seen.age + 1
        correction = 1 - jnp.power(decay, age.astype(h.dtype))
        mean = decay * seen.mean + (1 - decay) * surgery.per_feature(h, counted)
        fhat = mean / surgery.to_features(correction, units)
        u = decay * seen.utility + (1 - decay) * utility_of(utility, units, h, fhat, leaves, counted)
        share = replacement_rate * jnp.sum(age > maturity, dtype=h.dtype)
        if accumulate:
            owed = seen.owed + share
            count = jnp.floor(owed)
            owed = owed - count
        else:
            owed = seen.owed
            one = jax.random.uniform(jax.random.fold_in(key, 1), (), h.dtype) < share
            count = jnp.where(share < 1, one.astype(h.dtype), jnp.floor(share))
        return Layer(age, u, mean, owed), count, fhat

    def choose(units: Units, seen: Layer, count: Array, key: Key) -> tuple[Array, Layer]:
        correction = 1 - jnp.power(decay, seen.age.astype(seen.utility.dtype))
        random = utility == "random"
        uhat = jax.random.uniform(key, correction.shape, correction.dtype) if random else seen.utility / correction
        new = surgery.lowest(uhat, seen.age > maturity, count)
        mean = jnp.where(surgery.to_features(new, units), 0, seen.mean)
        return new, Layer(jnp.where(new, 0, seen.age), jnp.where(new, 0, seen.utility), mean, seen.owed)

    watch = Watch(start, look, choose)
    return replace_watched("continual_backprop", inner, units, watch, maturity + 1, compensate=compensate)
