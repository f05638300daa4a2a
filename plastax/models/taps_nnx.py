"""Taps on the layers of a `flax.nnx` module, which `plastax.models.tapped` sets.

Flax has the means: what a layer sows and where it may be perturbed, `nnx.capture` gives out, through `nnx.jit` and
`nnx.remat` too.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plastax import parameters, tree
from plastax.errors import ConfigError, Refused
from plastax.layers import LayerInputs, Tapped
from plastax.models import forms
from plastax.models.alone import Cut, alone
from plastax.models.forms import Form, Use
from plastax.types import Array, Params, Tree


class _Input(nnx.Variable):  # type: ignore[type-arg]
    """What a layer was given, once for every call."""


class _Tap(nnx.Variable):  # type: ignore[type-arg]
    """What is added to what a layer gives."""


class _Layer(NamedTuple):
    """A layer to tap: its name, and the sizes of the leading axes that stack layers of one kind."""

    name: str
    stack: tuple[int, ...]


def tapped(
    module: nnx.Module,
    inputs: Callable[[Tree], Tree],
    layers: Collection[str] | None,
    without: Collection[str],
    mask: Callable[[Tree], Array | None],
    arguments: dict[str, Any],
    moving: bool = False,
) -> Tapped:
    """The network of a module; the arguments are those of `plastax.models.tapped`.

    With ``moving`` batch statistics, ``params`` are a pair of parameters and statistics, and outputs are a pair with
    the statistics that the pass leaves.
    """
    graph, own, *others = nnx.split(module, nnx.Param, ...)
    (rest,) = jax.tree.map(lambda x: x, others)  # Of its own: the module's may change.
    places = _layers(module, layers, without)
    # Shapes of the data -> use -> number of the call -> its form, in the order of the forward pass; kept, as `nnx.jit`
    # calls no layer again.
    called: dict[Any, dict[str, dict[int, Form]]] = {}
    shapes: list[Any] = []  # The current pass's.

    @functools.cache
    def tapping(kind: Any) -> Any:
        """The class of a layer, with taps; one for each network, as `nnx.jit` keeps what it compiled by class."""

        def calling(method: str) -> Callable[..., Array]:
            def call(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
                out: Array = getattr(kind, method)(self, inputs, *args, **kwargs)
                if not forms.of_examples(self, method, inputs, shapes[-1][0][0]):
                    return out
                before: list[int] = []

                def append(old: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
                    before.append(len(old))
                    return *old, x

                self.sow(_Input, method, inputs, reduce_fn=append, init_fn=tuple)
                (number,) = before
                calls = called[shapes[-1]].setdefault(forms.use_of(self.tapped_as, method), {})
                calls[number] = forms.of(self.tapped_as, self, inputs, out, (*args, *kwargs.values()))
                tap = self.perturb(f"tap.{method}", jnp.zeros((), out.dtype), _Tap)
                return out + (forms.placed([calls[i] for i in range(number + 1)], number, tap) if tap.ndim else tap)

            return call

        return type(kind)(f"Tapped{kind.__name__}", (kind,), {name: calling(name) for name in _methods(kind)})

    def cutting(kind: Any, cut: Cut, examples: int) -> Any:
        """The class of a layer whose calls are cut."""

        def calling(method: str) -> Callable[..., Array]:
            def call(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
                out: Array = getattr(kind, method)(self, inputs, *args, **kwargs)
                own = forms.of_examples(self, method, inputs, examples)
                return cut(forms.use_of(self.tapped_as, method), inputs, out) if own else out

            return call

        return type(kind)(f"Cut{kind.__name__}", (kind,), {name: calling(name) for name in _methods(kind)})

    def network_of(params: Params, stats: nnx.State[Any, Any], kind_of: Callable[[Any], Any]) -> nnx.Module:
        """The network, with other classes of layers."""
        network = nnx.merge(graph, params, nnx.merge_state(rest, stats), copy=True)
        layer: Any
        for path, layer in nnx.iter_modules(network):
            if path in places:
                layer.__class__, layer.tapped_as = kind_of(layer.__class__), places[path].name
        return network

    def cut_at_layers(params: Params, stats: Tree, x: Tree, cut: Cut, examples: int) -> Tree:
        params = jax.tree.unflatten(jax.tree.structure(own), jax.tree.leaves(params))
        return network_of(params, stats, lambda kind: cutting(kind, cut, examples))(x, **arguments)

    checked: dict[Any, Callable[[Use], bool]] = {}  # Shapes of the data -> whether a use is alone.

    def run(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, Use]]:
        """Outputs, and the layers' uses."""
        stats: nnx.State[Any, Any] = nnx.State({})
        if moving:
            params, stats = params
        else:
            params = parameters.split(params)[0]
            names, mine = ([name.removesuffix("/value") for name in tree.named_leaves(p)] for p in (params, own))
            if names != mine:
                raise ConfigError(f"params: {', '.join(names)} are not allowed; give nnx.state(module, nnx.Param)")
            params = jax.tree.unflatten(jax.tree.structure(own), jax.tree.leaves(params))
        network = network_of(params, stats, tapping)
        placed, taps = {}, dict(taps)
        for path, one in places.items():
            for method in forms.METHODS:
                if (tap := forms.stacked(taps, forms.use_of(one.name, method), one.stack)) is not None:
                    placed[*path, f"tap.{method}"] = _Tap(tap)
        x = inputs(data)
        shapes.append(tuple(map(jnp.shape, jax.tree.leaves(x))))
        called.setdefault(shapes[-1], {})
        capturing = nnx.capture(network, _Input, _Tap, init=nnx.from_flat_state(placed))
        outputs, *states = capturing(x, **arguments)
        outputs = (outputs, nnx.state(network, nnx.BatchStat)) if moving else outputs
        given = {tuple(path): x.get_value() for path, x in nnx.to_flat_state(states[0])}
        uses = {}
        for use, calls in called[shapes[-1]].items():
            name, method = forms.of_use(use)
            path, stack = at[name]
            if (*path, method) in given:
                uses[use] = Use(use, [calls[i] for i in range(len(calls))], stack, given[*path, method])
        if shapes[-1] not in checked:
            checked[shapes[-1]] = alone(cut_at_layers, own, stats, x)
        return outputs, {name: use for name, use in uses.items() if checked[shapes[-1]](use)}

    at = {layer.name: (path, layer.stack) for path, layer in places.items()}

    def uses(data: Tree) -> Iterable[Use]:
        found: dict[str, Use] = {}
        given = (own, nnx.State({})) if moving else own
        jax.eval_shape(lambda given, data: found.update(run(given, {}, data)[1]), given, data)
        return found.values()

    def taps_of(data: Tree) -> dict[str, Array]:
        return {name: tap for use in uses(data) for name, tap in use.taps().items()}

    def parameters_of(data: Tree) -> dict[str, tuple[str, ...]]:
        return {name: own for use in uses(data) for name, own in use.parameters().items()}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        outputs, found = run(params, taps, data)
        counted = mask(data)
        return outputs, {name: x for use in found.values() for name, x in use.inputs(counted).items()}

    return Tapped(taps_of, apply, parameters_of)


def _methods(kind: Any) -> list[str]:
    return [name for name in forms.METHODS if hasattr(kind, name)]


def _layers(
    module: nnx.Module, layers: Collection[str] | None, without: Collection[str]
) -> dict[tuple[Any, ...], _Layer]:
    """Path -> layer to tap.

    Raises:
      ConfigError: the module has no layer of a name in ``layers`` or ``without``.
      Refused: several steps share a layer.
    """
    modules = dict(nnx.iter_modules(module))
    found = {path: "/".join(map(str, path)) for path, one in modules.items() if forms.has(one, "__call__")}
    # Below these, and where two layers have one variable, a layer's parameters are not what it alone applies.
    changed = [path for path, one in modules.items() if isinstance(one, nnx.WeightNorm | nnx.SpectralNorm)]
    held = collections.Counter(id(own) for path in found for own in forms.variables(modules[path]))
    shared = {path for path in found if any(held[id(own)] > 1 for own in forms.variables(modules[path]))}
    found = {
        path: name
        for path, name in found.items()
        if path not in shared and not any(path[: len(at)] == at for at in changed)
    }
    for name in (*(layers or ()), *without):
        if name not in found.values():
            raise ConfigError.unknown("layers", name, found.values())
    chosen = {path: name for path, name in found.items() if name not in without and (layers is None or name in layers)}
    loops = [path for path, one in modules.items() if isinstance(one, nnx.RNN)]
    if inside := [name for path, name in chosen.items() if any(path[: len(at)] == at for at in loops)]:
        raise Refused(
            f"layer {inside[0]!r} is inside nnx.scan, nnx.vmap or nnx.RNN, whose steps share its parameters; leave it "
            f"out: models.tapped(module, without={inside})",
            inside,
        )
    return {path: _Layer(name, forms.stack_of(modules[path])) for path, name in chosen.items()}
