"""Finds the layers, features and units of any network by tracing it.

A network is a function ``(params, x) -> (outputs, features)`` of named parameters. Its trace (a jaxpr) shows the same
primitives whoever wrote it, in Flax, Equinox or plain JAX: a layer is a matrix product or a convolution of the data
with one parameter. From there the trace is followed axis by axis. The units of a layer run along one axis of what it
gives; they stay apart through biases, normalisations, nonlinearities, pooling and flattening, up to the layers that
read them.

What is not found: layers inside `jax.lax.scan` and other loops, grouped convolutions, kernels computed from several
parameters, and layers that are called twice. Layers that are added up (residual connections) have features, but no
units: no parameter belongs to one of their units alone. `Found.lacking` says which layers lack what, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plastax import flow, platforms, tree
from plastax.flow import ELEMENTWISE, MOVING, NONLINEAR
from plastax.layers import Entries, LayerInputs, Units, Window
from plastax.roles import Kernel, Kind, Roles, TracedRoles
from plastax.types import Array, Params

Network = Callable[[Params, Array], tuple[Any, ...]]
"""``(params, x) -> (outputs, features, ...)``. Features that it names itself replace those found."""
_DRAWS = ("random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform")


class Found(NamedTuple):
    """What the trace of a network shows.

    Attributes:
      layers: names of the layers that can be tapped, in the order of the forward pass. A layer is named by the path of
        its parameters; where several kernels share a path, each by its own.
      hidden: names of the layers with features, in that order.
      units: hidden layer -> its units.
      roles: what every parameter is.
      activation: name of the hidden layers' nonlinearity, "other" if plastax does not know it, or they differ.
      lacking: layer or parameter -> what was not found, and why.
      draws: whether the network draws random numbers.
      factored: layer of `layers` -> names of its parameters.
    """

    layers: tuple[str, ...]
    hidden: tuple[str, ...]
    units: Mapping[str, Units]
    roles: TracedRoles
    activation: str
    lacking: Mapping[str, str]
    draws: bool
    factored: Mapping[str, tuple[str, ...]]


def discover(network: Network, params: Params, x: Array) -> Found:
    """Traces a network and finds its layers; nothing is computed.

    Args:
      network: ``(params, x) -> (outputs, features)``; the features are a dict, empty if the network names none.
      params: a tree of float arrays, or their shapes. Their path names are those of the result.
      x: a batch of inputs (a tree), or its shapes; the leading axis is that of the examples.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax.discovery import discover
      >>> params = {"in": {"w": jnp.ones((3, 4))}, "out": {"w": jnp.ones((4, 2))}}
      >>> def network(params, x):
      ...     return jnp.tanh(x @ params["in"]["w"]) @ params["out"]["w"], {}
      >>> found = discover(network, params, jnp.ones((5, 3)))
      >>> found.layers, found.hidden, found.roles.output, found.activation
      (('in', 'out'), ('in',), ('out',), 'tanh')
      >>> found.units["in"].incoming, found.units["in"].outgoing
      ((Entries(name='in/w', axis=1),), (Entries(name='out/w', axis=0),))
    """
    return _Trace(network, params, x).found()


def taps(network: Network, params: Params, x: Array) -> dict[str, Array]:
    """Zeros of the shape of the pre-activations of every tapped layer, ``[B, ..., units]``; see `types.Model.taps`."""
    trace, zeros = _Trace(network, params, x), {}
    for name, label in trace.tapped().items():
        out = trace.made[trace.layers[name].key].eqn.outvars[0].aval
        zeros[label] = jnp.zeros([out.shape[axis] for axis in trace.orders(name)[1]], out.dtype)
    return zeros


def tapped(network: Network, params: Params, taps: Mapping[str, Array], x: Array) -> tuple[Any, ...]:
    """The network with ``taps`` added to the pre-activations; see `types.Model.tapped`.

    Returns:
      The outputs; the features of the hidden layers, ``[B, ..., units]``; the inputs of the tapped layers; and what
      else the network gives.
    """
    trace = _Trace(network, params, x)
    values = trace.run(params, x, taps)
    outputs, _, *rest = jax.tree.map(lambda key: flow.read(values, key), trace.given)
    features = {one.name: jnp.moveaxis(flow.read(values, one.key), one.axis, -1) for one in trace.features()}
    inputs = {}
    for name, label in trace.tapped().items():
        layer = trace.layers[name]
        seen = flow.read(values, layer.data).transpose(trace.orders(name)[0])
        inputs[label] = LayerInputs(seen, layer.bias is not None, layer.window)
    return outputs, features, inputs, *rest


class _Layer(NamedTuple):
    """A matrix product or convolution of data with a parameter.

    Attributes:
      key: of what it gives.
      kernel: name of the parameter.
      axes: of its array.
      data: key of what the layer reads.
      order: axes of that as ``[B, ..., d_in]``, and of what it gives as ``[B, ..., units]``; None: it is not tapped.
      window: of a convolution.
      bias: the parameter that is added to its units, if any.
    """

    key: Any
    kernel: str
    axes: Kernel
    data: Any
    order: tuple[tuple[int, ...], tuple[int, ...]] | None
    window: Window | None = None
    bias: str | None = None


class _Feature(NamedTuple):
    """Features: name, layer (None: of several layers or of none), key of the value, and axis of the units."""

    name: str
    layer: str | None
    key: Any
    axis: int


def _path(name: str) -> str:
    """The path of a parameter's layer; nnx keeps an array in the attribute `value` of its variable."""
    return name.removesuffix("/value").rpartition("/")[0]


class _Trace:
    """A network's primitives, and what is known of every value."""

    def __init__(self, network: Network, params: Params, x: Array) -> None:
        # The columns of a narrow layer are no layer of the trace.
        with platforms.using(narrow_layers="xla"):
            closed, out = jax.make_jaxpr(network, return_shape=True)(params, x)
        named = tree.named_leaves(params)
        self.params, self.x = {name: object() for name in named}, [object() for _ in jax.tree.leaves(x)]
        self.steps, outs = flow.flat(*flow.opened(closed, [*self.params.values(), *self.x]))
        self.given: Any = jax.tree.unflatten(jax.tree.structure(out), outs)
        self.made = {key: step for step in self.steps for key in step.outs}
        self.uses = dict.fromkeys(named, 0)
        self.layers: dict[str, _Layer] = {}
        self.incoming: dict[str, list[Entries]] = {}
        self.outgoing: dict[str, list[Entries]] = {}
        self.read: dict[str, Any] = {}
        self.normalized: dict[str, None] = {}
        self.kinds: dict[str, Kind] = {}
        self.lacking: dict[str, str] = {}
        self.values = {
            key: flow.Value(jnp.shape(leaf), batch=0, data=True) for key, leaf in zip(self.x, jax.tree.leaves(x))
        }
        for name, key in self.params.items():
            shape = tuple(named[name].shape)
            self.values[key] = flow.Value(shape, name, frozenset((name, i, i) for i in range(len(shape))))
        self._follow(flow.needed(self.steps, jax.tree.leaves(self.given[:2])))
        self.output = {layer for key in jax.tree.leaves(self.given[0]) for layer in self._value(key).layers}

    def run(self, params: Params, x: Array, taps: Mapping[str, Array]) -> dict[Any, Array]:
        """All values, by key."""
        leaves = jax.tree.leaves((params, x))
        values: dict[Any, Any] = dict(zip((*self.params.values(), *self.x), leaves, strict=True))
        tapped = {self.layers[name].key: (self.orders(name)[1], label) for name, label in self.tapped().items()}
        for eqn, ins, outs in self.steps:
            with eqn.ctx.manager:
                bound = eqn.primitive.get_bind_params(eqn.params)
                given = eqn.primitive.bind(*(flow.read(values, key) for key in ins), **bound)
            order, label = tapped.get(outs[0], ((), ""))
            if order and label in taps:  # A layer may have the empty name.
                given = given + taps[label].transpose([order.index(i) for i in range(given.ndim)])
            values |= zip(outs, given if eqn.primitive.multiple_results else [given], strict=True)
        return values

    def label(self, kernel: str) -> str:
        """The name of a kernel's layer: the path, or the kernel's own name where several share it."""
        paths = [_path(one) for one in self.layers]
        path = _path(kernel)
        return path if paths.count(path) == 1 else kernel

    def tapped(self) -> dict[str, str]:
        """The layers that can be tapped, and their names."""
        found = {name: layer for name, layer in self.layers.items() if layer.order is not None}
        once = {name for name, layer in found.items() if all(self.uses[p] == 1 for p in (name, layer.bias) if p)}
        return {name: self.label(name) for name in found if name in once}

    def orders(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `_Layer.order`, of a tapped layer."""
        order = self.layers[name].order
        assert order is not None
        return order

    def features(self) -> list[_Feature]:
        """The features of the hidden layers: those that the network names, else those found."""
        if self.given[1]:
            named = {name: (key, self._value(key)) for name, key in self.given[1].items()}
            axis = {name: len(v.shape) - 1 if v.unit is None else v.unit for name, (_, v) in named.items()}
            return [_Feature(name, v.layer, key, axis[name]) for name, (key, v) in named.items()]
        found = []
        for name in self.layers:
            if name in self.read and name not in self.output:
                key = self._feature(name)
                value = self._value(key)
                if value.batch == 0 and value.unit is not None:
                    found.append(_Feature(self.label(name), name, key, value.unit))
        return found

    def found(self) -> Found:
        """What `discover` returns."""
        hidden, tapped, units = self.features(), self.tapped(), {}
        for label, name, key, axis in hidden:
            if name is None:
                self.lacking[label] = "its units are not those of a layer"
                continue
            alone = all(self.uses[entry.name] == 1 for entry in self.incoming[name])
            if not alone or name not in tapped or not self.outgoing[name]:
                self.lacking.setdefault(name, "its parameters have another use, or its units have several axes")
            if name not in self.lacking:
                width = self.made[self.layers[name].key].eqn.outvars[0].aval.shape[self.orders(name)[1][-1]]
                copies = self._value(key).shape[axis] // width
                units[label] = Units(width, tuple(self.incoming[name]), tuple(self.outgoing[name]), copies)
        kinds = {self._activation(one.layer, one.key) for one in hidden if one.layer} - {""}
        activation = kinds.pop() if len(kinds) == 1 else "other"
        lacking = {self.label(name): why for name, why in self.lacking.items() if name not in self.output}
        for name, key in self.params.items():
            if name not in self.kinds and len(self.values[key].shape) > 1:
                lacking[name] = "no layer was found that has it"
        labels = tuple(one.name for one in hidden)
        draws = any(step.name in _DRAWS for step in self.steps)
        own = {label: (name, self.layers[name].bias) for name, label in tapped.items()}
        factored = {label: tuple(name for name in names if name) for label, names in own.items()}
        return Found(tuple(tapped.values()), labels, units, self.roles(), activation, lacking, draws, factored)

    def roles(self) -> TracedRoles:
        """The parameters' roles."""
        owners = {entry.name: name for name, entries in self.incoming.items() for entry in entries}
        return TracedRoles(
            Roles(kernels={name: layer.axes for name, layer in self.layers.items()}),
            self.kinds,
            {name: self.label(owner) for name, owner in owners.items() if self.kinds[name] in ("kernel", "bias")},
            tuple(self.label(name) for name in self.layers if name in self.output) or None,
            tuple(self.label(name) for name in self.normalized if name not in self.output),
        )

    def _value(self, key: Any) -> flow.Value:
        return flow.Value(jnp.shape(key.val)) if flow.is_fixed(key) else self.values[key]

    def _mixed(self, layers: frozenset[str], why: str) -> None:
        """Notes why no unit of these layers acts through its readers alone."""
        for name in layers:
            self.lacking.setdefault(name, why)

    def _follow(self, steps: list[flow.Step], *, inside: bool = False) -> None:
        for step in steps:
            ins = [self._value(key) for key in step.ins]
            if step.name.startswith("custom_") and (inner := step.eqn.params.get("call_jaxpr")) is not None:
                nested, outs = flow.flat(*flow.opened(inner, list(step.ins)))
                self._follow(nested, inside=True)
                self.values |= {key: self._value(out) for key, out in zip(step.outs, outs, strict=True)}
            elif inside or not self._is_layer(step, ins):
                for value in ins:
                    if value.param and step.name not in MOVING:
                        self.uses[value.param] += 1
                for key, var in zip(step.outs, step.eqn.outvars, strict=True):
                    self.values[key] = self._after(step, ins, tuple(var.aval.shape))

    def _after(self, step: flow.Step, ins: list[flow.Value], shape: tuple[int, ...]) -> flow.Value:
        """What is known of a primitive's result, from what is known of its operands."""

        def moved(i: int, axis: int | None) -> int | None:
            return None if axis is None else flow.carried(step.eqn, i, ins[i].shape, axis, shape)

        elementwise, moves = step.name in ELEMENTWISE, step.name in MOVING
        axes = frozenset(
            (name, of, to) for i, v in enumerate(ins) for name, of, at in v.axes if (to := moved(i, at)) is not None
        )
        if not any(value.data for value in ins):
            whole = moves and {of for _, of, _ in axes} >= {of for _, of, at in ins[0].axes if ins[0].shape[at] > 1}
            return flow.Value(shape, ins[0].param if whole else None, axes)
        if step.name == "gather" and not ins[0].data:  # The rows of a table that the data choose: an embedding.
            if ins[0].param:
                self.kinds[ins[0].param] = "embedding"
            places = [i for i in range(len(shape)) if i not in step.eqn.params["dimension_numbers"].offset_dims]
            return flow.Value(shape, batch=None if ins[1].batch is None else places[ins[1].batch], data=True)
        layers = frozenset().union(*(value.layers for value in ins))
        batches = {moved(i, v.batch) for i, v in enumerate(ins) if v.batch is not None}
        units = {(v.layer, moved(i, v.unit)) for i, v in enumerate(ins) if v.unit is not None}
        batch, unit, layer = (batches.pop() if len(batches) == 1 else None), None, None
        if len({axis for _, axis in units}) == 1 and (elementwise or len({name for name, _ in units}) == 1):
            layer, unit = max(units, key=lambda one: list(self.layers).index(one[0] or ""))
        if unit is None:
            layer = None
        if elementwise:
            if len(layers) > 1:
                self._mixed(layers, "its features are added to those of other layers, or multiplied by them")
        elif unit is None and not (step.name.startswith("reduce_") or (moves and not units)):
            self._mixed(layers, f"its units go through {step.name!r}")
        raw = moves and ins[0].raw
        if elementwise and layer is not None:
            if any(value.layers and not value.own for value in ins) and any(value.own for value in ins):
                self.normalized[layer] = None
            entries = [Entries(name, of) for name, of, at in sorted(axes) if at == unit]
            self.incoming[layer] += [entry for entry in entries if entry not in self.incoming[layer]]
            bias = step.name == "add" and any(value.raw for value in ins) and len(entries) == 1
            if bias:
                self.layers[layer] = self.layers[layer]._replace(bias=entries[0].name)
            kind: Kind = "offset" if step.name in ("add", "sub") else "scale"
            for name, _ in entries:
                self.kinds.setdefault(name, "bias" if bias else kind if layer in self.normalized else "other")
            axes = frozenset()
        return flow.Value(shape, None, axes, batch, layer, unit, layers, raw, True)

    def _is_layer(self, step: flow.Step, ins: list[flow.Value]) -> bool:
        """Enters a product of data and one parameter as a layer; False if it is no layer."""
        if step.name not in ("dot_general", "conv_general_dilated") or len(ins) != 2:
            return False
        i = next((i for i in (0, 1) if ins[i].param and not ins[i].data and ins[1 - i].data), None)
        product = None if i is None else (flow.dense if step.name == "dot_general" else flow.convolution)(step.eqn, i)
        if i is None or product is None:
            return False
        kernel, data = ins[i], ins[1 - i]
        of = {at: axis for _, axis, at in kernel.axes}
        if sorted(of) != list(range(len(kernel.shape))) or len({*of.values()}) < len(of):
            return False
        assert kernel.param is not None
        name = kernel.param
        self.uses[kernel.param] += 1
        read = next((k for k, axis in zip(product.rows, product.read, strict=True) if axis == data.unit), None)
        if read is None or data.layer is None:
            self._mixed(data.layers, "its units are mixed before the next layer reads them")
        else:
            self.read.setdefault(data.layer, step.ins[1 - i])
            self.outgoing[data.layer].append(Entries(kernel.param, of[read]))
            if len(data.layers) > 1:
                self._mixed(data.layers, "its features are added to those of other layers")
        axes = Kernel(*(tuple(of[at] for at in group) for group in (product.rows, product.units, product.places)))
        order, to = None, None if data.batch is None else product.to.get(data.batch)
        given = product.given
        if data.batch is not None and to is not None and len(product.read) == len(given) == 1 and product.plain:
            others = [axis for axis in product.to if axis not in (data.batch, *product.read)]
            order = (data.batch, *others, *product.read), (to, *(product.to[axis] for axis in others), *given)
        shape = tuple(step.eqn.outvars[0].aval.shape)
        if name in self.layers:
            self.lacking[name], order = "it is called twice", None
        self.layers[name] = _Layer(step.outs[0], kernel.param, axes, step.ins[1 - i], order, product.window)
        self.incoming[name] = [Entries(name, of[product.units[0]])]
        self.kinds[name] = "kernel"
        self.outgoing.setdefault(name, [])
        unit = given[0] if len(given) == 1 else None
        self.values[step.outs[0]] = flow.Value(shape, None, frozenset(), to, name, unit, frozenset({name}), True, True)
        return True

    def _feature(self, layer: str) -> Any:
        """The key of a layer's features: what its last nonlinearity gives before another layer reads it."""
        key = self.read[layer]
        linear = None
        while (step := self.made.get(key)) is not None and key not in {one.key for one in self.layers.values()}:
            own = {k for k in step.ins if self._value(k).own}
            if step.name in NONLINEAR or step.name.startswith("custom_") or len(own) != 1:
                return key
            linear = key if step.name in ELEMENTWISE else linear
            key = own.pop()
        return key if linear is None else linear

    def _activation(self, layer: str, key: Any) -> str:
        """The name of the nonlinearity whose result has this key; empty for none."""
        found: set[str] = set()
        last, rest, seen = self.made[key], [key], set()
        while rest:
            step = self.made.get(key := rest.pop())
            if step is None or key in seen or key == self.layers[layer].key:
                continue
            seen.add(key)
            inner = step.eqn.params.get("call_jaxpr") if step.name.startswith("custom_") else None
            parts = [step] if inner is None else flow.flat(*flow.opened(inner, list(step.ins)))[0]
            found |= {part.name for part in parts} & NONLINEAR
            rest += [k for k in step.ins if self._value(k).own and self._value(k).layer == layer]
        if not found:
            return ""
        doubled = last.name == "concatenate"
        kinds = {"max": "crelu" if doubled else "relu", "tanh": "tanh", "select_n": "leaky_relu", "logistic": "silu"}
        if doubled and found == {"sin", "cos"}:
            return "deep_fourier"
        return kinds.get(found.pop(), "other") if len(found) == 1 else "other"
