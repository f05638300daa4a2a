"""Replacing hidden units: which entries of parameters and optimiser state belong to a unit, and their new values.

A replaced unit gets, of its layer's `Units`:

- Incoming entries (kernel, bias, scale and bias of its normalisation): those of a fresh draw of the model's own
  initialiser, so zero biases and a scale of 1. Public code often draws all from one distribution (xavier uniform in
  dopamine's ReDo, uniform with the kaiming bound in Dohare et al.'s continual backprop).
- Outgoing entries: zero, so the unit has no effect. An entry between two units replaced at once is the incoming one's,
  because that draw is then complete; neither unit has an effect.
- If the method compensates, the biases of the layers that read it gain what the unit gave on average:
  ``b += w_out * mean activation``. That is exact for a constant feature. Between a feature and its reader there may be
  pooling or zero padding: the mean is that of the feature before them, at all places. A LayerNorm after the reader
  sees the same pre-activations as before, up to the feature's variation. A batch normalisation removes any shift, so
  compensation has no effect there.
- The optimiser's state, and that of methods inside, for exactly these entries (not for the readers' biases): the start
  values, of the network with its new units.

That covers any array in their state whose path ends in the parameter's path and whose shape is the parameter's: moments
of any optimiser, sums of `optax.MultiSteps`, running means (`upgd`, `dash`), and second copies of the network, which
get the new units (`hare_tortoise`, schedule-free optimisers). Values that a method compares with stay (`KEPT`). Adam's
step count is shared by all parameters: with `optax.adam` a replaced unit's first steps are up to six times too long,
because the bias of its cleared moments is no longer corrected. `adam_per_parameter` has a count for each entry.
Factored moments (Adafactor) belong to no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.layers import Entries, Units
from plastax.methods.base import apply_if, fresh_params, require_whole
from plastax.roles import STRUCTURE
from plastax.types import Array, Key, Params, Tree

Chosen = Mapping[str, Array]
"""Hidden layer -> bool ``[width]``: the units to replace."""

KEPT = frozenset({"initial", "reference", "previous", "bounds", "quantiles", "spare"})
"""Fields of methods' states that replacing units must not clear: the start of training, or the last step."""


class Touched(NamedTuple):
    """The entries of replaced units: parameter name -> bool, which broadcasts to its shape."""

    incoming: dict[str, Array]
    outgoing: dict[str, Array]


def along(values: Array, axis: int, like: Array) -> Array:
    """``values[i mod n]`` at index ``i`` of an axis of ``like``, in a shape that broadcasts against it.

    Args:
      values: ``[n]``, one for each unit, or each feature, of a layer.
      axis: an axis of ``like``; its size is a multiple of ``n``.
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
      method: its name, for messages.
      compensate: whether it compensates the readers' biases.
    """
    if not units:
        raise ConfigError(
            f"methods: {method} is not allowed for a model without hidden units; name another method or model"
        )
    leaves = tree.named_leaves(require_whole(params, method))
    for layer, unit in units.items():
        for name, axis in (*unit.incoming, *unit.outgoing):
            if name not in leaves:
                raise ConfigError.unknown(f"{method}: units[{layer!r}]", name, leaves)
            if leaves[name].shape[axis] % (unit.width * unit.size):
                raise ConfigError(
                    f"{method}: units[{layer!r}]: axis {axis} of {name!r} {list(leaves[name].shape)} is not one of "
                    f"{unit.width} units" + f" of {unit.size} entries" * (unit.size > 1)
                )
        if frozen := [name for name, _ in unit.outgoing if "/frozen/" in name]:
            raise ConfigError(
                f"{method}: plasticity_injection is not allowed beside it: replaced units of {layer!r} would keep "
                f"their effect through {frozen[0]!r}; name one of the two"
            )
        if compensate:
            for name, _ in unit.outgoing:
                reader_bias(name, leaves)


def touched(units: Mapping[str, Units], chosen: Chosen, leaves: Mapping[str, Array]) -> Touched:
    """The entries of the chosen units.

    Args:
      units: of the model.
      chosen: units to replace.
      leaves: name -> parameter.
    """
    found = Touched({}, {})
    for layer, mask in chosen.items():
        for masks, entries in ((found.incoming, units[layer].incoming), (found.outgoing, units[layer].outgoing)):
            for name, axis in entries:
                own = along(jnp.repeat(mask, units[layer].size), axis, leaves[name])
                masks[name] = masks[name] | own if name in masks else own
    return found


def magnitude(entries: tuple[Entries, ...], leaves: Mapping[str, Array], count: int) -> Array:
    """Mean absolute weight ``[count]`` of each feature over all its kernel entries."""
    kernels = [(tree.wide(leaves[name]), axis) for name, axis in entries if leaves[name].ndim > 1]
    total, size = jnp.zeros((), kernels[0][0].dtype), 0
    for w, axis in kernels:
        others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
        total = total + jnp.sum(jnp.abs(w), others).reshape(-1, count).sum(0)
        size += w.size // count
    return total / size


def per_feature(x: Array, counted: Array | None = None) -> Array:
    """Mean ``[width]`` of ``[B, ..., width]`` over examples and places; ``counted``: over these, bool ``[B, ...]``."""
    return jnp.mean(x, tuple(range(x.ndim - 1)), where=None if counted is None else counted[..., None])


def per_unit(values: Array, units: Units) -> Array:
    """Mean ``[width]`` over the features of each unit, of ``[copies * width * size]`` or ``[width * size]``."""
    return values.reshape(-1, units.width, units.size).mean((0, 2))


def to_features(values: Array, units: Units) -> Array:
    """The value of each feature's unit, ``[copies * width * size]``, of ``[width]``."""
    return jnp.tile(jnp.repeat(values, units.size), units.copies)


def lowest(scores: Array, eligible: Array, count: Array) -> Array:
    """The ``count`` eligible entries of lowest score (or all, if fewer), as a mask; the first of equal ones."""
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
    """Replaces units after a step of the optimiser.

    Args:
      units: of the model.
      chosen: units to replace.
      fresh: name -> parameter of a fresh draw; at least those with incoming entries.
      params: before the step.
      updates: of the step. For the chosen units' entries they become the way from ``params`` to the new values. All
        others stay the same, bit for bit, except the readers' biases if ``means`` are given.
      state: of ``inner`` after the step.
      inner: the optimiser; its ``init`` gives the start values of its state.
      means: layer -> ``[copies * width * size]``, the mean of each feature, if the readers' biases are to be
        compensated.
      rate: see `MethodArgs`. Updates are divided by it; if it is not 1, new values are right up to rounding.

    Returns:
      Updates and state.
    """
    leaves = tree.named_leaves(params)
    found = touched(units, chosen, leaves)
    shift = {} if means is None else _shift(units, chosen, stepped(params, updates, rate), means)

    def entry(name: str, w: Array, u: Array) -> Array:
        u = u + shift[name] / rate if name in shift else u
        u = jnp.where(found.outgoing[name], -w / rate, u) if name in found.outgoing else u
        return jnp.where(found.incoming[name], (fresh[name] - w) / rate, u) if name in found.incoming else u

    moves = tree.cast(tree.map_named(entry, params, updates), updates)
    new = tree.cast(jax.tree.map(lambda w, u: w + rate * u, params, moves), params)
    return moves, clear(state, inner.init(new), found, leaves)


def clear(state: Tree, start: Tree, masks: Sequence[Mapping[str, Array]], leaves: Mapping[str, Array]) -> Tree:
    """The state of an optimiser, and of methods inside, with its start values for some parameters' entries.

    Args:
      state: now.
      start: from the optimiser's ``init``.
      masks: parameter name -> bool, which broadcasts to its shape; entries of any mask are cleared.
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


def spare_of(units: Mapping[str, Units], params: Params) -> dict[str, Array]:
    """The incoming entries of a network's units, by name."""
    names = {name for layer in units.values() for name, _ in layer.incoming}
    return {name: leaf for name, leaf in tree.named_leaves(params).items() if name in names}


def empty_spare(units: Mapping[str, Units], params: Params) -> dict[str, Array]:
    """The start of `renewed`: zeros."""
    return jax.tree.map(jnp.zeros_like, spare_of(units, params))


def renewed(
    units: Mapping[str, Units],
    spare: dict[str, Array],
    due: Array,
    init_fn: Callable[[Key], Params],
    key: Key,
    params: Params,
) -> dict[str, Array]:
    """Incoming entries for replaced units: ``spare``, or a fresh draw if ``due``, a bool scalar."""
    return apply_if(due, lambda _: spare_of(units, fresh_params(init_fn, key, params)), spare)


def moment_of(path: tuple[Any, ...], names: Mapping[str, Any]) -> str | None:
    """The parameter that an array in an optimiser's state belongs to, by its key path; None if there is none."""
    # The longest name that fits, because one parameter's name may end in another's.
    for i in range(len(path)):
        if (name := tree.path_name(path[i:])) in names:
            kept = any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in KEPT for key in path[:i])
            return None if kept else name
    return None


def stepped(params: Params, updates: Tree, rate: float | Array = 1.0) -> dict[str, Array]:
    """The parameters after a step, by name."""
    return tree.named_leaves(jax.tree.map(lambda w, u: w + rate * u, params, updates))


def reader_bias(kernel: str, leaves: Mapping[str, Array]) -> str:
    """The name of the bias in the layer of a kernel; raises `ConfigError` if there is none to compensate with."""
    found = STRUCTURE.of(leaves)
    biases = [name for name, role in found.items() if role.kind == "bias" and role.layer == found[kernel].layer]
    if not biases:
        raise ConfigError(f"compensate: True is not allowed: the layer of {kernel!r} has no bias; give False")
    return biases[0]


def _reader_axis(shape: tuple[int, ...], axis: int, size: int) -> int:
    """The axis of a kernel's own units, ``size`` in number; ``axis`` is that of the units it reads."""
    last = axis % len(shape) == len(shape) - 2  # [..., inputs, units], as in Flax; else [units, inputs, ...]
    order = range(len(shape))[::-1] if last else range(len(shape))
    return next(i for i in order if i != axis % len(shape) and shape[i] == size)


def _shift(
    units: Mapping[str, Units], chosen: Chosen, leaves: Mapping[str, Array], means: Mapping[str, Array]
) -> dict[str, Array]:
    """Bias name -> what the chosen units gave its layer on average; ``leaves`` are the parameters after the step."""
    shift: dict[str, Array] = {}
    for layer, mask in chosen.items():
        lost = jnp.where(to_features(mask, units[layer]), means[layer], 0)
        for name, axis in units[layer].outgoing:
            w, bias = leaves[name], reader_bias(name, leaves)
            readers = _reader_axis(w.shape, axis, leaves[bias].size)
            given = jnp.sum(w * along(lost, axis, w), tuple(i for i in range(w.ndim) if i != readers))
            given = given.reshape(leaves[bias].shape)
            shift[bias] = shift[bias] + given if bias in shift else given
    return shift


def mean_magnitude(x: Array, units: Units) -> Array:
    """Mean absolute value ``[width]`` of each unit, of its layer's features ``[B, ..., copies * width * size]``."""
    return per_unit(per_feature(jnp.abs(tree.wide(x))), units)
