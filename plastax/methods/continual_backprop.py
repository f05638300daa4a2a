"""Continual backprop: replaces the least useful mature units, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods import surgery
from plastax.methods.base import Settings, due, never, transformation, units_of, when
from plastax.types import Array, Features, Key, Method, Model, Params, Tree, Units

UtilityName = Literal[
    "contribution",
    "adaptable_contribution",
    "zero_contribution",
    "weight",
    "adaptation",
    "feature_by_input",
    "random",
]


class Layer(NamedTuple):
    """What is known of a hidden layer's units.

    Attributes:
      age: ``[width]`` int32, steps since the start or since the unit was replaced.
      utility: ``[width]``, decaying average, not corrected for its start at zero.
      mean: ``[copies * width]``, of the features, likewise.
      owed: scalar, the units to be replaced, of which only whole ones are.
    """

    age: Array
    utility: Array
    mean: Array
    owed: Array


class ContinualBackpropState(NamedTuple):
    """State of `continual_backprop`.

    Attributes:
      inner: of the optimiser.
      spare: name -> incoming entries of the units in a fresh draw of the network.
      layers: hidden layer -> `Layer`.
      last: the clock of the last call that was applied.
    """

    inner: Tree
    spare: dict[str, Array]
    layers: dict[str, Layer]
    last: Array


def continual_backprop(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    replacement_rate: float | Array = 1e-4,
    decay: float | Array = 0.99,
    maturity: int = 100,
    utility: UtilityName = "contribution",
    accumulate: bool = True,
    compensate: bool = True,
) -> Method:
    """Replaces in every step the share ``replacement_rate`` of every layer's mature units, those of lowest utility.

    Behind the optimiser's step, with the features ``h`` that its gradient was taken on and the weights after it, in
    each hidden layer::

        age += 1
        f <- decay f + (1 - decay) mean h          fhat = f / (1 - decay^age)
        u <- decay u + (1 - decay) y               uhat = u / (1 - decay^age)

    with ``y`` one of: contribution, ``mean|w_out| mean|h|``; zero_contribution, ``mean|w_out| mean|h - fhat|``;
    adaptable_contribution, the same ``/ mean|w_in|``; weight, ``mean|w_out|``; adaptation, ``1 / mean|w_in|``;
    feature_by_input, ``mean|h - fhat| / mean|w_in|``. Under random, uhat is drawn anew. Means of features are over the
    examples and all places. Where a nonlinearity makes two features of a unit, the unit has the mean of both.

    Of E units with ``age > maturity``, ``n`` are replaced: with ``accumulate``, ``owed += replacement_rate E``, and n
    is its whole part, which is taken from it; otherwise n is the whole part of ``replacement_rate E`` if that is 1 or
    more, and else one with that probability. They are those of the lowest uhat. What becomes of them says `surgery`;
    with ``compensate`` the biases behind gain ``w_out fhat``. Then u = f = age = 0.

    The spare draw that the new weights come from is renewed every ``maturity + 1`` steps, so that drawing costs
    nothing, and no unit gets the same one twice: it cannot be replaced twice within that time. It costs the memory of
    the hidden layers once more.

    The authors' code differs: it clears f before it compensates, so that its biases behind never change; it draws from
    a uniform distribution of its own; of optimisers, it clears Adam's moments and step count (here: see `surgery`) but
    not the momentum of SGD. The paper's own code (KevinGuo27/lop-jax) replaces the units of *highest* utility and
    redraws their outgoing weights.

    Args:
      inner: the optimiser.
      units: of the model.
      replacement_rate: share of the mature units that is replaced in a step.
      decay: of the averages, eta in the paper.
      maturity: age in gradient steps up to which a unit is spared.
      utility: see above.
      accumulate: see above.
      compensate: see above.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, algorithm 1; for the
      utilities: arXiv 2108.06325.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> ContinualBackpropState:
        surgery.check(units, params, "continual_backprop", compensate=compensate)
        leaves = tree.named_leaves(params)
        layers = {}
        for name, (width, incoming, _, copies) in units.items():
            dtype = tree.wide_type(leaves[incoming[0].name])
            layers[name] = Layer(
                jnp.zeros(width, jnp.int32),
                jnp.zeros(width, dtype),
                jnp.zeros(copies * width, dtype),
                jnp.zeros((), dtype),
            )
        return ContinualBackpropState(inner.init(params), surgery.no_spare(units, params), layers, never())

    def look(layer: str, seen: Layer, h: Array, leaves: Mapping[str, Array], key: Key) -> tuple[Layer, Array, Array]:
        """The layer with this step's averages, its features' corrected mean, and how many units to replace."""
        width, incoming, outgoing, copies = units[layer]
        h = tree.wide(h)
        age = seen.age + 1
        correction = 1 - jnp.power(decay, age.astype(h.dtype))
        mean = decay * seen.mean + (1 - decay) * surgery.per_feature(h)
        fhat = mean / jnp.tile(correction, copies)

        def per_unit(feature: Array) -> Array:
            return surgery.per_unit(feature, width)

        def w_out() -> Array:
            return surgery.magnitude(outgoing, leaves, copies * width)

        def w_in() -> Array:
            return surgery.magnitude(incoming, leaves, width)

        def spread() -> Array:
            return surgery.per_feature(jnp.abs(h - fhat.reshape((1,) * (h.ndim - 1) + (-1,))))

        y: dict[str, Callable[[], Array]] = {
            "contribution": lambda: per_unit(w_out() * surgery.per_feature(jnp.abs(h))),
            "adaptable_contribution": lambda: per_unit(w_out() * spread()) / w_in(),
            "zero_contribution": lambda: per_unit(w_out() * spread()),
            "weight": lambda: per_unit(w_out()),
            "adaptation": lambda: 1 / w_in(),
            "feature_by_input": lambda: per_unit(spread()) / w_in(),
            "random": lambda: jnp.zeros(width, h.dtype),
        }
        u = decay * seen.utility + (1 - decay) * y[utility]()
        share = replacement_rate * jnp.sum(age > maturity, dtype=h.dtype)
        if accumulate:
            owed = seen.owed + share
            count = jnp.floor(owed)
            owed = owed - count
        else:
            owed = seen.owed
            drawn = jax.random.uniform(jax.random.fold_in(key, 1), (), h.dtype) < share
            count = jnp.where(share < 1, drawn.astype(h.dtype), jnp.floor(share))
        return Layer(age, u, mean, owed), fhat, count

    def choose(seen: Layer, count: Array, key: Key) -> Array:
        """The units to be replaced."""
        correction = 1 - jnp.power(decay, seen.age.astype(seen.utility.dtype))
        drawn = utility == "random"
        uhat = jax.random.uniform(key, correction.shape, correction.dtype) if drawn else seen.utility / correction
        return surgery.lowest(uhat, seen.age > maturity, count)

    def restart(seen: Layer, new: Array) -> Layer:
        """The layer with nothing known of its new units."""
        mean = jnp.where(jnp.tile(new, seen.mean.size // new.size), 0, seen.mean)
        return Layer(jnp.where(new, 0, seen.age), jnp.where(new, 0, seen.utility), mean, seen.owed)

    def update(
        updates: Tree,
        state: ContinualBackpropState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        features: Features,
        init_fn: Callable[[Key], Params],
        every_step: bool = False,
        **extra: Any,
    ) -> tuple[Tree, ContinualBackpropState]:
        extra |= {"key": key, "clock": clock, "features": features, "init_fn": init_fn, "every_step": every_step}
        updates, moved = inner.update(updates, state.inner, params, **extra)
        if not features:  # A call at a task switch.
            return updates, state._replace(inner=moved)
        rate = extra.get("rate", 1.0)
        now = due(maturity + 1, clock, state.last, every_step)
        spare = surgery.renewed(units, state.spare, now, init_fn, key, params)
        stepped = surgery.after(params, updates, rate)
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(units)}
        layers, means, counts = {}, {}, {}
        for name, seen in state.layers.items():
            layers[name], means[name], counts[name] = look(name, seen, features[name], stepped, keys[name])

        def act(x: tuple[Tree, Tree, dict[str, Layer]]) -> tuple[Tree, Tree, dict[str, Layer]]:
            updates, moved, layers = x
            chosen = {name: choose(seen, counts[name], keys[name]) for name, seen in layers.items()}
            mean = means if compensate else None
            updates, moved = surgery.replace(units, chosen, spare, params, updates, moved, inner, mean, rate)
            return updates, moved, {name: restart(seen, chosen[name]) for name, seen in layers.items()}

        # Ranking, too, is only for steps that replace something.
        needed = jnp.any(jnp.stack([*counts.values()]) > 0)
        updates, moved, layers = when(needed, act, (updates, moved, layers))
        return updates, ContinualBackpropState(moved, spare, layers, jnp.asarray(clock, jnp.int32))

    return transformation("continual_backprop", init, update)


@dataclass(frozen=True)
class ContinualBackprop(Settings):
    """Continual backprop: again and again re-initialises a few of the units that are of least use."""

    replaces_units: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"replacement_rate": 0.0}

    replacement_rate: float = 1e-4
    """Share of every layer's mature units that is replaced in a gradient step (Dohare et al. 2024: 1e-4 in PPO, 3e-4 in
    Continual ImageNet, 1e-5 in incremental CIFAR, 1e-4 to 1e-6 in permuted MNIST)."""
    decay: float = 0.99
    """Of the running averages of utility and activation."""
    maturity: int = 100
    """Gradient steps for which a new unit is spared (Dohare et al. 2024: 100; CIFAR 1,000; PPO 10,000)."""
    utility: UtilityName = "contribution"
    """What makes a unit useful: contribution (in PPO and CIFAR), adaptable_contribution (in MNIST and ImageNet),
    zero_contribution, weight, adaptation, feature_by_input or random."""
    accumulate: bool = True
    """Save up fractions of a unit until they make a whole one; else, replace one with the fraction's probability."""
    compensate: bool = True
    """Add to the biases behind what a replaced unit gave on average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, below in (("replacement_rate", "to 1"), ("decay", "up to, not including, 1")):
            value = getattr(self, name)
            if isinstance(value, int | float) and (value > 1 or (name == "decay" and value == 1)):
                message = f"{type(self).__name__}.{name}: {value} is not allowed; give a number from 0 {below}"
                raise ConfigError(message)
        if self.utility not in get_args(UtilityName):
            raise ConfigError.unknown(f"{type(self).__name__}.utility", self.utility, get_args(UtilityName))

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``continual_backprop(inner, model.units)``."""
        units = units_of(model, "continual_backprop")
        return continual_backprop(
            inner,
            units,
            self.replacement_rate,
            self.decay,
            self.maturity,
            self.utility,
            self.accumulate,
            self.compensate,
        )
