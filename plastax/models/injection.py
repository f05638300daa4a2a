"""Further heads for plasticity injection: a new head is added to a network's outputs and its frozen copy subtracted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from plastax import tree
from plastax.errors import ConfigError
from plastax.layers import Entries, LayerInputs, Units
from plastax.types import Array, Features, Key, Model, Params, Tree

Taps = dict[str, Array]


def with_injections(model: Model, injections: int, depth: int) -> Model:
    """``h(x) + sum_i (new_i(x) - frozen_i(x))``: pairs of heads beside the network's own head h.

    A head is the last ``depth`` layers of each branch that ends in an output layer (actor and critic are two), with
    the normalisations between them. All heads share the layers before. The two heads of a pair start equal to the last
    bit, so the sum is h until one of them is trained. The method `plastax.methods.plasticity_injection` decides which
    heads are trained. Their parameters are ``injection_<i>/new/<layer>/...`` and ``injection_<i>/frozen/<layer>/...``;
    their layers are named alike.

    The forward pass of the shared layers is traced once for each head. The compiler merges these forward passes, but
    not the backward passes. Features are those of the network itself and of the new heads. Only shared layers have
    units: the others have copies.

    Args:
      model: the network.
      injections: pairs of heads; 0: the model as it is.
      depth: layers of a head, the output layer included.

    Raises:
      ConfigError: a head would be the output layer alone, or have more layers than the network.
    """
    if not injections:
        return model
    head = _head(model.layers, injections, depth)
    heads = [(f"injection_{i}/{kind}/", sign) for i in range(injections) for kind, sign in (("new", 1), ("frozen", -1))]
    hidden = [name for name in model.hidden if name in head]
    tapped_head = [name for name, own in model.factored.items() if tree.layer_of(own[0]) in head]

    def init(key: Key) -> Params:
        flat = flatten_dict(model.init(key), sep="/")
        for i in range(injections):
            fresh = flatten_dict(model.init(jax.random.fold_in(key, i)), sep="/")
            copies = {name: x for name, x in fresh.items() if tree.layer_of(name) in head}
            for kind in ("new", "frozen"):
                flat |= {f"injection_{i}/{kind}/{name}": x for name, x in copies.items()}
        return unflatten_dict(flat, sep="/")

    def pick(prefix: str, params: Params) -> Params:
        """The network with the head of this prefix in place of its own; the empty prefix is its own head."""
        flat = flatten_dict(params, sep="/")
        own = {name: x for name, x in flat.items() if not name.startswith("injection_")}
        if prefix:
            own |= {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}
        return unflatten_dict(own, sep="/")

    def pick_taps(prefix: str, taps: Taps) -> Taps:
        named = {name: prefix + name if name in tapped_head else name for name in model.factored}
        return {name: taps[given] for name, given in named.items() if given in taps}

    def total(base: Tree, others: list[Tree]) -> Tree:
        # A pair's difference first: for equal heads it is zero, and the sum is exactly the network's own output.
        for new, frozen in zip(others[::2], others[1::2]):
            base = jax.tree.map(lambda out, a, b: out + (a - b), base, new, frozen)
        return base

    def features_of(base: Features, others: list[Features]) -> Features:
        new = {p + name: f[name] for (p, sign), f in zip(heads, others) if sign > 0 for name in hidden}
        return base | new

    def inputs_of(base: dict[str, LayerInputs], others: list[dict[str, LayerInputs]]) -> dict[str, LayerInputs]:
        return base | {p + name: seen[name] for (p, _), seen in zip(heads, others) for name in tapped_head}

    def all_of(run: Callable[[Params, Taps], tuple[Any, ...]], params: Params, taps: Taps) -> tuple[Any, ...]:
        """``run`` summed over the network itself and all heads: (outputs, features, inputs, *rest of the network)."""
        outputs, features, inputs, *rest = run(pick("", params), pick_taps("", taps))
        seen = [run(pick(prefix, params), pick_taps(prefix, taps)) for prefix, _ in heads]
        outs, feats, ins = ([one[k] for one in seen] for k in range(3))
        return total(outputs, outs), features_of(features, feats), inputs_of(inputs, ins), *rest

    def tapped(params: Params, taps: Taps, x: Array) -> tuple[Any, ...]:
        return all_of(lambda params, taps: model.tapped(params, taps, x), params, taps)

    def apply(params: Params, x: Array) -> tuple[Tree, Features]:
        outputs, features, _ = tapped(params, {}, x)
        return outputs, features

    def train(params: Params, stats: Tree, taps: Taps, x: Array) -> tuple[Any, ...]:
        assert model.train is not None
        step = model.train
        return all_of(lambda params, taps: step(params, stats, taps, x), params, taps)

    def evaluate(params: Params, stats: Tree, x: Array) -> tuple[Tree, Features]:
        assert model.evaluate is not None
        outputs, features = model.evaluate(pick("", params), stats, x)
        seen = [model.evaluate(pick(prefix, params), stats, x) for prefix, _ in heads]
        return total(outputs, [out for out, _ in seen]), features_of(features, [f for _, f in seen])

    def taps_of(x: Array) -> Taps:
        own = model.taps(x)
        return own | {prefix + name: jnp.zeros_like(own[name]) for prefix, _ in heads for name in tapped_head}

    return model._replace(
        init=init,
        apply=apply,
        taps=taps_of,
        tapped=tapped,
        layers=(*model.layers, *(prefix + name for prefix, _ in heads for name in head)),
        factored={
            **model.factored,
            **{p + name: tuple(p + own for own in model.factored[name]) for p, _ in heads for name in tapped_head},
        },
        hidden=(*model.hidden, *(prefix + name for prefix, sign in heads if sign > 0 for name in hidden)),
        units=_units(model.units, head, [prefix for prefix, _ in heads]),
        train=train if model.train is not None else None,
        evaluate=evaluate if model.evaluate is not None else None,
    )


def _head(layers: tuple[str, ...], injections: int, depth: int) -> tuple[str, ...]:
    branches = [name.removesuffix("output") for name in layers if name.rpartition("/")[-1] == "output"]
    if not branches:
        raise ConfigError(f"model.injections: {injections} is not allowed without an output layer; give 0")
    found: list[str] = []
    for branch in branches:
        own = [n for n in layers if n.startswith(f"{branch}dense_") or n == f"{branch}output"]
        if len(own) < 2:
            raise ConfigError(
                f"model.injections: {injections} is not allowed without dense hidden layers in front of the output "
                "layer (plasticity_injection draws them again); give 0, or another model"
            )
        if not 2 <= depth <= len(own):
            raise ConfigError(
                f"model.head_layers: {depth} is not allowed; give 2 (a hidden layer and the output layer) to {len(own)}"
            )
        found += own[-depth:]
    return tuple(found)


def _units(units: Mapping[str, Units], head: tuple[str, ...], prefixes: list[str]) -> dict[str, Any]:
    """Units of the shared layers, with the copies among their readers."""
    kept = {}
    for layer, found in units.items():
        if layer not in head:
            copies = [
                Entries(prefix + entry.name, entry.axis)
                for entry in found.outgoing
                if tree.layer_of(entry.name) in head
                for prefix in prefixes
            ]
            kept[layer] = found._replace(outgoing=(*found.outgoing, *copies))
    return kept
