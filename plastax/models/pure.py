"""Modules of Flax (linen, nnx) and Equinox as pure functions of their parameters and running statistics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from plastax import tree
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Tapped
from plastax.models import taps, taps_nnx
from plastax.types import Array, Key, Tree


class Pure(NamedTuple):
    """A network as functions.

    Attributes:
      init: ``(key) -> params``, a tree with any leaves.
      call: ``(params, stats, x, train) -> (outputs, stats)``.
      stats: running statistics at the start.
      fixed: whether ``init`` draws nothing.
      tapped: ``(without) -> network``, its layers tapped but those of these names. In training: its ``params`` are
        pairs ``(params, stats)``, its outputs those of ``call``. None: not of Flax.
    """

    init: Callable[[Key], Tree]
    call: Callable[[Tree, Tree, Array, bool], tuple[Tree, Tree]]
    stats: Tree = ()
    fixed: bool = False
    tapped: Callable[[Collection[str]], Tapped] | None = None


def of_linen(module: nn.Module, name: str, example: Any) -> Pure:
    """A linen module, for batches like ``example``.

    Raises:
      ConfigError: with its ``name``, for other collections than ``batch_stats``.
    """
    takes = inspect.signature(type(module).__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        said = {"train": train, "training": train, "deterministic": True}
        return {argument: value for argument, value in said.items() if argument in takes}

    like = dict(jax.eval_shape(lambda key: module.lazy_init(key, example, **mode(True)), tree.key_like()))
    if others := set(like) - {"params", "batch_stats"}:
        raise ConfigError(f"model: {name} has the collections {', '.join(sorted(others))}; only batch_stats is kept")
    kept = tree.named_leaves(like.get("batch_stats", {}))
    if foreign := [at for at in kept if at.rpartition("/")[2] not in ("mean", "var")]:
        raise ConfigError(f"model: {name} has the statistics {', '.join(foreign)}; only those of BatchNorm are kept")
    starts = {"mean": np.zeros, "var": np.ones}
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: starts[path[-1].key](x.shape, x.dtype), like.get("batch_stats", {})
    )
    if stats and not {"train", "training"} & set(takes):
        raise ConfigError(f"model: {name} has batch statistics; let its __call__ take an argument train: bool")

    def call(params: Tree, stats: Tree, x: Array, train: bool) -> tuple[Tree, Tree]:
        variables = {"params": params} | ({"batch_stats": stats} if stats else {})
        if stats and train:
            out, moved = module.apply(variables, x, **mode(True), mutable=["batch_stats"])
            return out, moved["batch_stats"]
        return module.apply(variables, x, **mode(train)), stats

    def tapped(without: Collection[str]) -> Tapped:
        network = taps.tapped(module, without=without, mutable=["batch_stats"] if stats else (), **mode(True))

        def apply(given: tuple[Tree, Tree], taps: dict[str, Array], x: Array) -> tuple[Any, dict[str, LayerInputs]]:
            variables = {"params": given[0]} | ({"batch_stats": given[1]} if stats else {})
            out, inputs = network.apply(variables, taps, x)
            return (out[0], out[1]["batch_stats"]) if stats else (out, given[1]), inputs

        return network._replace(apply=apply)

    draw = lambda key: module.lazy_init(key, example, **mode(True)).get("params", {})  # noqa: E731
    return Pure(draw, call, stats, tapped=tapped)


def of_nnx(make: Callable[[Key], Any], *, fixed: bool) -> Pure:
    """The nnx modules that ``make`` makes from keys; ``fixed`` if it ignores them."""

    def split(key: Key) -> Any:
        return nnx.split(make(key), nnx.Param, nnx.BatchStat, ...)

    graphs: list[Any] = []

    def trace(key: Key) -> None:
        graphs.append(split(key)[0])

    jax.eval_shape(trace, tree.key_like())
    stats, rest = jax.jit(lambda key: split(key)[2:])(jax.random.key(0))
    stats = stats if jax.tree.leaves(stats) else ()

    def call(params: Tree, stats: Tree, x: Array, train: bool) -> tuple[Tree, Tree]:
        module = merged(params, stats, train)
        return module(x), nnx.state(module, nnx.BatchStat) if stats else stats

    def merged(params: Tree, stats: Tree, train: bool) -> Any:
        module = nnx.merge(graphs[0], params, *([stats] if stats else []), rest, copy=True)
        if stats:
            module.set_attributes(use_running_average=not train, raise_if_not_found=False)
        return module

    def tapped(without: Collection[str]) -> Tapped:
        module = merged(jax.eval_shape(lambda key: split(key)[1], tree.key_like()), stats, True)
        network = taps_nnx.tapped(module, lambda x: x, None, without, lambda x: None, {}, moving=True)

        def apply(given: tuple[Tree, Tree], taps: dict[str, Array], x: Array) -> tuple[Any, dict[str, LayerInputs]]:
            (out, moved), inputs = network.apply((given[0], given[1] if stats else nnx.State({})), taps, x)
            return (out, moved if stats else given[1]), inputs

        return network._replace(apply=apply)

    return Pure(lambda key: split(key)[1], call, stats, fixed, tapped)


def of_equinox(make: Callable[[Key], Any], *, fixed: bool) -> Pure:
    """The Equinox modules that ``make`` makes from keys; ``fixed`` if it ignores them."""
    import equinox

    statics: list[Any] = []

    def split(key: Key) -> tuple[Any, Any]:
        arrays, static = equinox.partition(make(key), equinox.is_array)
        statics.append(static)
        return equinox.partition(arrays, equinox.is_inexact_array)

    jax.eval_shape(split, tree.key_like())
    rest = jax.jit(lambda key: split(key)[1])(jax.random.key(0))

    def call(params: Tree, stats: Tree, x: Array, train: bool) -> tuple[Tree, Tree]:
        return jax.vmap(equinox.combine(params, rest, statics[0]))(x), stats

    return Pure(lambda key: split(key)[0], call, fixed=fixed)
