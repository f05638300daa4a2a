"""Taps on the layers of a `flax.nnx` module, which `plastax.models.tapped` sets.

Flax has the means: what a layer sows and where it may be perturbed, `nnx.capture` gives out, through `nnx.jit` and
`nnx.remat` too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx

from plastax import parameters, tree
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Tapped
from plastax.models.window import layer_inputs
from plastax.types import Array, Params, Tree


class _Input(nnx.Variable):  # type: ignore[type-arg]
    """What a layer was given, once for every call."""


class _Tap(nnx.Variable):  # type: ignore[type-arg]
    """What is added to what a layer gives."""


def tapped(
    module: nnx.Module, inputs: Callable[[Tree], Tree], layers: Collection[str] | None, arguments: dict[str, Any]
) -> Tapped:
    """The network of a module; the arguments are those of `plastax.models.tapped`."""
    graph, own, *others = nnx.split(module, nnx.Param, ...)
    (rest,) = jax.tree.map(lambda x: x, others)  # Of its own: the module's may change.
    names = _names(module, layers)
    layer_of = {names[path]: layer for path, layer in nnx.iter_modules(module) if path in names}
    called: dict[str, None] = {}  # In the order of the forward pass; kept, as `nnx.jit` calls no layer again.

    @functools.cache
    def tapping(kind: Any) -> Any:
        """The class of a layer, with taps; one for each network, as `nnx.jit` keeps what it compiled by class."""

        def call(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
            called.setdefault(self.tapped_as)
            self.sow(_Input, "x", inputs)
            out: Array = self.perturb("tap", kind.__call__(self, inputs, *args, **kwargs), _Tap)
            return out

        return type(kind)(f"Tapped{kind.__name__}", (kind,), {"__call__": call})

    def run(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, Array], dict[str, Array]]:
        """Outputs, what each layer was given, and its tap."""
        params = parameters.split(params)[0]
        given, mine = ([name.removesuffix("/value") for name in tree.named_leaves(p)] for p in (params, own))
        if given != mine:
            raise ConfigError(f"params: {', '.join(given)} are not allowed; give nnx.state(module, nnx.Param)")
        params = jax.tree.unflatten(jax.tree.structure(own), jax.tree.leaves(params))
        network = nnx.merge(graph, params, rest, copy=True)
        layer: Any
        for path, layer in nnx.iter_modules(network):
            if path in names:
                layer.__class__, layer.tapped_as = tapping(layer.__class__), names[path]
        places = {(*path, "tap"): _Tap(taps[name]) for path, name in names.items() if name in taps}
        capturing = nnx.capture(network, _Input, _Tap, init=nnx.from_flat_state(places))
        outputs, *states = capturing(inputs(data), **arguments)
        seen, free = ({names[path[:-1]]: x.get_value() for path, x in nnx.to_flat_state(state)} for state in states)
        for name, values in seen.items():
            if len(values) > 1:
                raise ValueError(
                    f"layer {name!r} is called twice, which Kronecker factors cannot describe; leave it out"
                )
        return outputs, {name: seen[name][0] for name in called if name in seen}, free

    def taps_of(data: Tree) -> dict[str, Array]:
        _, seen, zeros = jax.eval_shape(lambda data: run(own, {}, data), data)
        return {name: jax.numpy.zeros(zeros[name].shape, zeros[name].dtype) for name in called if name in seen}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        outputs, seen, _ = run(params, taps, data)
        return outputs, {name: layer_inputs(name, layer_of[name], x) for name, x in seen.items()}

    return Tapped(taps_of, apply)


def _names(module: nnx.Module, layers: Collection[str] | None) -> dict[tuple[Any, ...], str]:
    """Path -> name of the layers to tap.

    Raises:
      ConfigError: the module has no layer of a name in ``layers``.
      ValueError: a layer is several layers or steps in one.
    """
    modules = dict(nnx.iter_modules(module))
    found = {path: "/".join(map(str, path)) for path, one in modules.items() if isinstance(one, nnx.Linear | nnx.Conv)}
    for name in layers or ():
        if name not in found.values():
            raise ConfigError.unknown("layers", name, found.values())
    chosen = {path: name for path, name in found.items() if layers is None or name in layers}
    for path, name in chosen.items():
        layer: Any = modules[path]
        axes = 2 + len(layer.kernel_size) if isinstance(layer, nnx.Conv) else 2
        repeated = any(isinstance(one, nnx.RNN) and path[: len(at)] == at for at, one in modules.items())
        if repeated or layer.kernel.ndim != axes:
            raise ValueError(
                f"layer {name!r} is inside nnx.scan, nnx.vmap or nnx.RNN, which have several layers or steps in one; "
                "leave it out: models.tapped(module, layers=[...]) with the others"
            )
    return chosen
