"""Replacing hidden units: which entries of parameters and optimiser state are a unit's, and what becomes of them.

What a replaced unit gets, of its layer's `Units`:

- incoming entries (kernel, bias, scale and bias of its normalisation): those of a fresh draw of the model's own
  initialiser, whichever it is: zero biases and a scale of 1. Public code often draws from one distribution for all
  (xavier uniform in dopamine's ReDo, a uniform one of the kaiming bound in Dohare et al.'s continual backprop).
- outgoing entries: zero, so it has no effect. An entry between two units that are replaced at once is the incoming
  one's, whose draw is complete; neither of them has an effect.
- where the method says so, the biases behind gain what the unit gave on average: ``b += w_out * mean activation``. That
  is exact for a feature that is constant. Between a feature and its reader there may be pooling, or padding with zeros:
  the mean is of the feature as it is before, at all places. A LayerNorm behind the reader sees the same pre-activations
  as before, up to the feature's variation; a batch normalisation takes any shift of them out again, so that there the
  compensation is without effect.
- moments of the optimiser, of exactly these entries (not of the biases behind): what the optimiser starts with.

Moments are found by name: an array in the optimiser's state is the moment of a parameter if the path to it ends in a
NamedTuple field of `MOMENTS` followed by the parameter's own path, and the shapes agree. So a method's own copy of the
parameters (`L2InitState.initial`) is none, and neither is Adam's step count, which all parameters share: with
`optax.adam` a replaced unit's first steps are up to some six times too long, because the bias of its cleared moments is
no longer corrected. `adam_per_parameter` has a count for each. Factored moments (Adafactor) belong to no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import when
from plastax.types import Array, Entries, Key, Params, Tree, Units

Chosen = Mapping[str, Array]
"""Hidden layer -> bool ``[width]``: its units to be replaced."""

MOMENTS = frozenset({"mu", "nu", "nu_max", "trace", "momentum", "sum_of_squares", "e_g", "e_x", "count"})
"""Fields of optimiser states that hold an entry for each of the parameters': Adam and its kin, SGD with momentum,
RMSprop, Adagrad, Adadelta, `adam_per_parameter`."""


class Touched(NamedTuple):
    """The entries of replaced units: parameter name -> bool, of its shape up to broadcasting."""

    incoming: dict[str, Array]
    outgoing: dict[str, Array]


def along(values: Array, axis: int, like: Array) -> Array:
    """``values[i mod n]`` at index ``i`` of an axis of ``like``, in a shape that broadcasts against it.

    Args:
      values: ``[n]``, one for each unit, or for each feature, of a layer.
      axis: of ``like``, whose size is a multiple of ``n``.
      like: an array.
    """
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return jnp.tile(values, like.shape[axis] // values.size).reshape(shape)


def touched(units: Mapping[str, Units], chosen: Chosen, leaves: Mapping[str, Array]) -> Touched:
    """The entries of the chosen units.

    Args:
      units: of the model.
      chosen: units to be replaced.
      leaves: name -> parameter.
    """
    found = Touched({}, {})
    for layer, mask in chosen.items():
        for masks, entries in ((found.incoming, units[layer].incoming), (found.outgoing, units[layer].outgoing)):
            for name, axis in entries:
                own = along(mask, axis, leaves[name])
                masks[name] = masks[name] | own if name in masks else own
    return found


def magnitude(entries: tuple[Entries, ...], leaves: Mapping[str, Array], count: int) -> Array:
    """Mean absolute weight ``[count]`` of each unit (or feature) over all its entries of kernels."""
    total, size = jnp.zeros(()), 0
    for name, axis in entries:
        if name.endswith("kernel"):
            w = leaves[name]
            others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
            total = total + jnp.sum(jnp.abs(w), others).reshape(-1, count).sum(0)
            size += w.size // count
    return total / size


def per_feature(x: Array) -> Array:
    """Mean ``[width]`` of ``[B, ..., width]`` over examples and places."""
    return jnp.mean(x, tuple(range(x.ndim - 1)))


def per_unit(features: Array, width: int) -> Array:
    """Mean ``[width]`` over the features of each unit, of ``[copies * width]``."""
    return features.reshape(-1, width).mean(0)


def lowest(scores: Array, eligible: Array, count: Array) -> Array:
    """Exactly ``count`` of the eligible entries (all, if fewer): those of lowest score; bool, of ties the first."""
    order = jnp.argsort(jnp.where(eligible, scores, jnp.inf), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    return eligible & (rank < count)


def replace(
    units: Mapping[str, Units],
    chosen: Chosen,
    fresh: Mapping[str, Array],
    params: Params,
    updates: Tree,
    state: Tree,
    inner: optax.GradientTransformation,
    means: Mapping[str, Array] | None = None,
    rate: float | Array = 1.0,
) -> tuple[Tree, Tree]:
    """Replaces units, behind a step of the optimiser.

    Args:
      units: of the model.
      chosen: units to be replaced.
      fresh: name -> parameter, of a fresh draw; at least those of incoming entries.
      params: before the step.
      updates: of the step. Those of the chosen units' entries become the way from ``params`` to their new values; all
        others stay as they are, bit for bit (but for the biases behind, where ``means`` are given).
      state: of ``inner`` after the step.
      inner: the optimiser, for what its state starts with.
      means: layer -> ``[copies * width]``, the mean of each feature, that the biases behind are to make up for.
      rate: see `MethodArgs`. Updates are divided by it, so that with one other than 1 new values are right up to
        rounding.

    Returns:
      Updates and state.
    """
    leaves = tree.named_leaves(params)
    found = touched(units, chosen, leaves)
    shift = {} if means is None else _shift(units, chosen, after(params, updates, rate), means)

    def entry(name: str, w: Array, u: Array) -> Array:
        u = u + shift[name] / rate if name in shift else u
        u = jnp.where(found.outgoing[name], -w / rate, u) if name in found.outgoing else u
        return jnp.where(found.incoming[name], (fresh[name] - w) / rate, u) if name in found.incoming else u

    return tree.map_named(entry, params, updates), clear(state, inner.init(params), found, leaves)


def clear(state: Tree, start: Tree, masks: Sequence[Mapping[str, Array]], leaves: Mapping[str, Array]) -> Tree:
    """An optimiser's state with the moments of some entries as they were at its start.

    Args:
      state: now.
      start: what the optimiser's ``init`` gives.
      masks: parameter name -> bool, of its shape up to broadcasting; entries of any of them are cleared.
      leaves: name -> parameter.
    """

    def moment(path: tuple[Any, ...], now: Array, before: Array) -> Array:
        name = moment_of(path, leaves)
        if name is None or now.shape != leaves[name].shape:
            return now
        for mask in masks:
            now = jnp.where(mask[name], before, now) if name in mask else now
        return now

    return jax.tree_util.tree_map_with_path(moment, state, start)


def any_of(chosen: Chosen) -> Array:
    """Whether any unit of any layer is chosen, a bool scalar."""
    return jnp.any(jnp.concatenate([*chosen.values()]))


def spare_of(units: Mapping[str, Units], params: Params) -> dict[str, Array]:
    """The incoming entries of a network's units, by name."""
    names = {name for layer in units.values() for name, _ in layer.incoming}
    return {name: leaf for name, leaf in tree.named_leaves(params).items() if name in names}


def no_spare(units: Mapping[str, Units], params: Params) -> dict[str, Array]:
    """What `renewed` starts from."""
    return jax.tree.map(jnp.zeros_like, spare_of(units, params))


def renewed(
    units: Mapping[str, Units], spare: dict[str, Array], due: Array, init_fn: Callable[[Key], Params], key: Key
) -> dict[str, Array]:
    """Incoming entries for replaced units, drawn anew where ``due``: a bool scalar of the shared clock alone."""
    return when(due, lambda _: spare_of(units, init_fn(key)), spare)


def moment_of(path: tuple[Any, ...], names: Mapping[str, Any]) -> str | None:
    """Which parameter an array in an optimiser's state is a moment of, by its key path; None: of none."""
    for i, key in enumerate(path):
        if isinstance(key, jax.tree_util.GetAttrKey) and key.name in MOMENTS:
            name = tree.path_name(path[i + 1 :])
            if name in names:
                return name
    return None


def after(params: Params, updates: Tree, rate: float | Array = 1.0) -> dict[str, Array]:
    """The parameters after a step, by name."""
    return tree.named_leaves(jax.tree.map(lambda w, u: w + rate * u, params, updates))


def bias_behind(kernel: str) -> str:
    """The bias of the layer of a kernel, by name."""
    return kernel.removesuffix("kernel") + "bias"


def _shift(
    units: Mapping[str, Units],
    chosen: Chosen,
    leaves: Mapping[str, Array],
    means: Mapping[str, Array],
) -> dict[str, Array]:
    """Bias name -> what the chosen units gave the layer on average, with the weights ``leaves`` after the step."""
    shift: dict[str, Array] = {}
    for layer, mask in chosen.items():
        lost = jnp.where(jnp.tile(mask, units[layer].copies), means[layer], 0)
        for name, axis in units[layer].outgoing:
            w = leaves[name]
            given = jnp.sum(w * along(lost, axis, w), tuple(range(w.ndim - 1)))
            bias = bias_behind(name)
            shift[bias] = shift[bias] + given if bias in shift else given
    return shift


def mean_size(x: Array, width: int) -> Array:
    """Mean absolute value ``[width]`` of each unit, of ``[B, ..., copies * width]``."""
    return per_unit(per_feature(jnp.abs(x)), width)


def replace_dormant(
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    scores: Callable[..., Mapping[str, Array]],
    threshold: float | Array,
    period: int,
) -> optax.GradientTransformationExtraArgs:
    """Every ``period`` steps, the first excepted, replaces units of small score behind the optimiser's step.

    Args:
      inner: the optimiser; the state is its own.
      units: of the model.
      scores: of the extra arguments that it names: layer -> ``[width]``, at least 0.
      threshold: units are replaced up to this share of their layer's mean score.
      period: gradient steps.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Tree, state: Tree, params: Params, *, key: Key, clock: Array, features: Any, **extra: Any
    ) -> tuple[Tree, Tree]:
        extra = extra | {"clock": clock, "features": features}
        updates, state = inner.update(updates, state, params, key=key, **extra)
        if not features:  # A call at a task switch.
            return updates, state

        def act(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            fresh = tree.named_leaves(extra["init_fn"](key))
            # Without the mean's division: a dead layer's is zero.
            chosen = {name: score <= threshold * jnp.mean(score) for name, score in scores(**extra).items()}
            return replace(units, chosen, fresh, params, updates, state, inner, rate=extra.get("rate", 1.0))

        due = (clock > 0) & (clock % period == 0)
        return jax.lax.cond(due, act, lambda updates, state: (updates, state), updates, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
