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
- what the optimiser, and methods inside, keep of exactly these entries (not of the biases behind): what they start
  with, of the network with its new units.

That is any array in their state whose path ends in the parameter's own path and whose shape is the parameter's: moments
of whatever optimiser, sums of `optax.MultiSteps`, running means (`upgd`, `dash`), and second copies of the network,
which get the new units (`hare_tortoise`, schedule-free optimisers). What a method compares with stays (`KEPT`). Adam's
step count belongs to no entry, all parameters share it: with `optax.adam` a replaced unit's first steps are up to some
six times too long, because the bias of its cleared moments is no longer corrected. `adam_per_parameter` has a count for
each. Factored moments (Adafactor) belong to no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods.base import drawn, due, transformation, when, whole
from plastax.roles import STRUCTURE
from plastax.types import Array, Entries, Key, Params, Tree, Units

Chosen = Mapping[str, Array]
"""Hidden layer -> bool ``[width]``: its units to be replaced."""

KEPT = frozenset({"initial", "reference", "previous", "bounds", "quantiles", "spare"})
"""Fields of methods' states that training does not move on: where it began, or what the next step is compared with."""


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


def check(units: Mapping[str, Units], params: Params, method: str, *, compensate: bool = False) -> None:
    """Raises `ConfigError` unless a method can replace these units of this network.

    Args:
      units: of the model.
      params: of the network.
      method: who replaces them.
      compensate: whether the biases behind are to gain what a unit gave.
    """
    if not units:
        message = f"methods: {method} is not allowed for a model without hidden units; name another method or model"
        raise ConfigError(message)
    leaves = tree.named_leaves(whole(params, method))
    for layer, unit in units.items():
        for name, axis in (*unit.incoming, *unit.outgoing):
            if name not in leaves:
                raise ConfigError.unknown(f"{method}: units[{layer!r}]", name, leaves)
            if leaves[name].shape[axis] % unit.width:
                raise ConfigError(
                    f"{method}: units[{layer!r}]: axis {axis} of {name!r} {list(leaves[name].shape)} is not one of "
                    f"{unit.width} units"
                )
        if frozen := [name for name, _ in unit.outgoing if "/frozen/" in name]:
            raise ConfigError(
                f"{method}: plasticity_injection is not allowed beside it: what replaced units of {layer!r} still did "
                f"through {frozen[0]!r} could not be taken back; name one of the two"
            )
        if compensate:
            for name, _ in unit.outgoing:
                bias_behind(name, leaves)


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
    kernels = [(tree.wide(leaves[name]), axis) for name, axis in entries if leaves[name].ndim > 1]
    total, size = jnp.zeros((), kernels[0][0].dtype), 0
    for w, axis in kernels:
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

    moves = tree.cast(tree.map_named(entry, params, updates), updates)
    new = tree.cast(jax.tree.map(lambda w, u: w + rate * u, params, moves), params)
    return moves, clear(state, inner.init(new), found, leaves)


def clear(state: Tree, start: Tree, masks: Sequence[Mapping[str, Array]], leaves: Mapping[str, Array]) -> Tree:
    """The state of an optimiser, and of methods inside, with some parameters' entries as they were at its start.

    Args:
      state: now.
      start: what the optimiser's ``init`` gives.
      masks: parameter name -> bool, of its shape up to broadcasting; entries of any of them are cleared.
      leaves: name -> parameter.
    """

    def moment(path: tuple[Any, ...], now: Array, before: Array) -> Array:
        name = moment_of(path, leaves)
        if name is None or jnp.shape(now) != leaves[name].shape:
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
    units: Mapping[str, Units],
    spare: dict[str, Array],
    due: Array,
    init_fn: Callable[[Key], Params],
    key: Key,
    params: Params,
) -> dict[str, Array]:
    """Incoming entries for replaced units, drawn anew where ``due``: a bool scalar, of the shared clock in programs."""
    return when(due, lambda _: spare_of(units, drawn(init_fn, key, params)), spare)


def moment_of(path: tuple[Any, ...], names: Mapping[str, Any]) -> str | None:
    """Which parameter an array in an optimiser's state belongs to, by its key path; None: to none."""
    # The longest name that fits: that of one parameter may end in another's.
    for i in range(len(path)):
        if (name := tree.path_name(path[i:])) in names:
            kept = any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in KEPT for key in path[:i])
            return None if kept else name
    return None


def after(params: Params, updates: Tree, rate: float | Array = 1.0) -> dict[str, Array]:
    """The parameters after a step, by name."""
    return tree.named_leaves(jax.tree.map(lambda w, u: w + rate * u, params, updates))


def bias_behind(kernel: str, leaves: Mapping[str, Array]) -> str:
    """The bias of the layer of a kernel, by name; raises `ConfigError` where there is none to compensate with."""
    found = STRUCTURE.of(leaves)
    biases = [name for name, role in found.items() if role.kind == "bias" and role.layer == found[kernel].layer]
    if not biases:
        raise ConfigError(f"compensate: True is not allowed: the layer of {kernel!r} has no bias; give False")
    return biases[0]


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
            bias = bias_behind(name, leaves)
            shift[bias] = shift[bias] + given if bias in shift else given
    return shift


def mean_size(x: Array, width: int) -> Array:
    """Mean absolute value ``[width]`` of each unit, of ``[B, ..., copies * width]``."""
    return per_unit(per_feature(jnp.abs(tree.wide(x))), width)


class DormantState(NamedTuple):
    """State of the optimiser, and the clock of the last call that was applied."""

    inner: Tree
    last: Array


def replace_dormant(
    method: str,
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    scores: Callable[..., Mapping[str, Array]],
    threshold: float | Array,
    period: int,
) -> optax.GradientTransformationExtraArgs:
    """Every ``period`` steps, the first excepted, replaces units of small score behind the optimiser's step.

    Args:
      method: its name, for messages.
      inner: the optimiser.
      units: of the model.
      scores: of the extra arguments that it names: layer -> ``[width]``, at least 0.
      threshold: units are replaced up to this share of their layer's mean score.
      period: gradient steps.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> DormantState:
        check(units, params, method)
        return DormantState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: Tree,
        state: DormantState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        features: Any,
        every_step: bool = False,
        **extra: Any,
    ) -> tuple[Tree, DormantState]:
        extra = extra | {"clock": clock, "features": features, "every_step": every_step}
        updates, moved = inner.update(updates, state.inner, params, key=key, **extra)
        if not features:  # A call at a task switch.
            return updates, state._replace(inner=moved)

        def act(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            fresh = tree.named_leaves(drawn(extra["init_fn"], key, params))
            # Without the mean's division: a dead layer's is zero.
            chosen = {name: score <= threshold * jnp.mean(score) for name, score in scores(**extra).items()}
            return replace(units, chosen, fresh, params, updates, state, inner, rate=extra.get("rate", 1.0))

        now = (clock > 0) & due(period, clock, state.last, every_step)
        updates, moved = jax.lax.cond(now, act, lambda updates, state: (updates, state), updates, moved)
        return updates, DormantState(moved, jnp.asarray(clock, jnp.int32))

    return transformation(method, init, update)
