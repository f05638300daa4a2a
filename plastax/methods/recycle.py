"""When units are replaced: every so often those that are dormant, or in any step those that a method watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.layers import Units
from plastax.methods import surgery
from plastax.methods.base import Timed, apply_if, due, fresh_params, never, transformation
from plastax.types import Array, Features, Key, Method, Params, Tree


def replace_dormant(
    method: str,
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    scores: Callable[..., Mapping[str, Array]],
    threshold: float | Array,
    period: int,
) -> Method:
    """Every ``period`` steps, except at the first, replaces units of low score after the optimiser's step.

    Args:
      method: its name, for messages.
      inner: the optimiser.
      units: of the model.
      scores: ``(**args) -> {layer: [width]}``, at least 0; it gets the arguments of `MethodArgs` by name.
      threshold: a unit is replaced if its score is at most this share of its layer's mean score.
      period: gradient steps.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> Timed:
        surgery.check(units, params, method)
        return Timed(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: Tree,
        state: Timed,
        params: Params,
        *,
        key: Key,
        clock: Array,
        features: Features,
        every_step: bool = False,
        **extra: Any,
    ) -> tuple[Tree, Timed]:
        extra = extra | {"clock": clock, "features": features, "every_step": every_step}
        updates, moved = inner.update(updates, state.inner, params, key=key, **extra)
        if not features:  # A call at a task switch.
            return updates, state._replace(inner=moved)

        def act(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            fresh = tree.named_leaves(fresh_params(extra["init_fn"], key, params))
            # No division by the mean, which is zero in a dead layer.
            chosen = {name: score <= threshold * jnp.mean(score) for name, score in scores(**extra).items()}
            return surgery.replace(units, chosen, fresh, params, updates, state, inner, rate=extra.get("rate", 1.0))

        now = (clock > 0) & due(period, clock, state.last, every_step)
        updates, moved = jax.lax.cond(now, act, lambda updates, state: (updates, state), updates, moved)
        return updates, Timed(moved, jnp.asarray(clock, jnp.int32))

    return transformation(method, init, update)


class WatchedState(NamedTuple):
    """State of a method that watches units in every step.

    Attributes:
      inner: of the optimiser.
      spare: name -> incoming entries of the units in a fresh draw of the network.
      layers: hidden layer -> what the method knows of its units.
      last: the clock of the last call that was applied.
    """

    inner: Tree
    spare: dict[str, Array]
    layers: dict[str, Any]
    last: Array


class Watch(NamedTuple):
    """What a method that watches units does with one hidden layer.

    Attributes:
      start: ``(units, dtype) -> layer``: what is known at the start.
      look: ``(units, layer, features, counted, leaves, key) -> (layer, wanted, mean)``: what is known after a step, the
        units to replace (above 0 if there are any), and the mean of each feature if readers' biases are compensated.
        ``counted`` is that of `Model.counted`, None for all; ``leaves`` are the parameters after the step, by name.
      choose: ``(units, layer, wanted, key) -> (mask, layer)``: the units to replace, and what is known after that.
        It is called only if some layer wants it.
    """

    start: Callable[[Units, Any], Any]
    look: Callable[[Units, Any, Array, Array | None, Mapping[str, Array], Key], tuple[Any, Array, Array | None]]
    choose: Callable[[Units, Any, Array, Key], tuple[Array, Any]]


def replace_watched(
    method: str,
    inner: optax.GradientTransformation,
    units: Mapping[str, Units],
    watch: Watch,
    renewal: int,
    *,
    compensate: bool = False,
) -> Method:
    """Watches all units in every step, and replaces some after the optimiser's step.

    New weights come from a spare draw of the network. It is renewed every ``renewal`` steps, so that drawing costs
    little. The spare takes as much memory as the hidden layers.

    Args:
      method: its name, for messages.
      inner: the optimiser.
      units: of the model.
      watch: what the method does with each layer.
      renewal: gradient steps; a unit must not be replaced twice within them, or it gets the same weights again.
      compensate: whether the readers' biases gain what a replaced unit gave on average.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> WatchedState:
        surgery.check(units, params, method, compensate=compensate)
        leaves = tree.named_leaves(params)
        layers = {
            name: watch.start(unit, tree.wide_type(leaves[unit.incoming[0].name])) for name, unit in units.items()
        }
        return WatchedState(inner.init(params), surgery.empty_spare(units, params), layers, never())

    def update(
        updates: Tree,
        state: WatchedState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        features: Features,
        init_fn: Callable[[Key], Params],
        every_step: bool = False,
        **extra: Any,
    ) -> tuple[Tree, WatchedState]:
        extra |= {"key": key, "clock": clock, "features": features, "init_fn": init_fn, "every_step": every_step}
        updates, moved = inner.update(updates, state.inner, params, **extra)
        if not features:  # A call at a task switch.
            return updates, state._replace(inner=moved)
        rate = extra.get("rate", 1.0)
        now = due(renewal, clock, state.last, every_step)
        spare = surgery.renewed(units, state.spare, now, init_fn, key, params)
        leaves = surgery.stepped(params, updates, rate)
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(units)}
        layers, wanted = {}, {}
        means: dict[str, Any] = {}
        counted = extra["counted_fn"](extra["batch"]) if "counted_fn" in extra else None
        for name, layer in state.layers.items():
            layers[name], wanted[name], means[name] = watch.look(
                units[name], layer, features[name], counted, leaves, keys[name]
            )

        def act(x: tuple[Tree, Tree, dict[str, Any]]) -> tuple[Tree, Tree, dict[str, Any]]:
            updates, moved, layers = x
            chosen, after = {}, {}
            for name, layer in layers.items():
                chosen[name], after[name] = watch.choose(units[name], layer, wanted[name], keys[name])
            mean = means if compensate else None
            updates, moved = surgery.replace(units, chosen, spare, params, updates, moved, inner, mean, rate)
            return updates, moved, after

        needed = jnp.any(jnp.concatenate([jnp.ravel(some) > 0 for some in wanted.values()]))
        updates, moved, layers = apply_if(needed, act, (updates, moved, layers))
        return updates, WatchedState(moved, spare, layers, jnp.asarray(clock, jnp.int32))

    return transformation(method, init, update)
