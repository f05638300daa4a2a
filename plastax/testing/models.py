"""What every model promises: its names, its taps, its units, its seeds."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax import roles, tree
from plastax.curvature.moments import rows
from plastax.layers import Entries, LayerInputs, Units
from plastax.models import own
from plastax.testing.promises import Promise, check_pure, close, difference, plain, quick
from plastax.types import Array, Features, Key, Model, Params, Tree

EXAMPLES = 4
PADDING = -1
"""The last token of the first example, of networks that take tokens."""


class Trial:
    """A model, parameters with nothing left at zero, inputs, and the compiled `apply`."""

    def __init__(self, model: Model, input_shape: tuple[int, ...], who: str = "model", outputs: int = 3) -> None:
        self.model, self.who = model, who
        rng = np.random.default_rng(1)

        def draw(x: Any) -> Array:
            floats = jnp.issubdtype(x.dtype, jnp.floating)
            # NumPy casts: JAX would compile a program for every shape, here and below.
            return jnp.asarray((0.5 * rng.standard_normal(x.shape) if floats else np.zeros(x.shape)).astype(x.dtype))

        with Promise(Model, "init").kept(who, "init", "let init be a function of a key that JAX can trace"):
            self.params = jax.tree.map(draw, jax.eval_shape(model.init, tree.key_like()))
        x = rng.standard_normal((EXAMPLES, *input_shape)).astype(np.float32)
        if model.counted is not None:
            x = rng.integers(outputs, size=(EXAMPLES, *input_shape)).astype(np.int32)
            x[0, -1] = PADDING
        self.x = jnp.asarray(x)
        self.apply = quick(model.apply)

    def outputs(self, params: Params) -> np.ndarray:
        """All outputs of every example in a row, ``[B, C]``."""
        leaves = jax.tree.leaves(self.apply(params, self.x)[0])
        return np.concatenate([plain(x).reshape(len(x), -1) for x in leaves], axis=1)


def check_model(model: Any, input_shape: tuple[int, ...] = (4,), outputs: int = 3) -> None:
    """Checks that a network keeps what `plastax.types.Model` promises; takes some seconds.

    Give a small one: every hidden layer's units are changed and cut off, two of each.

    Args:
      model: settings of a model, or their class; a `Model`; or anything that `plastax.models.own` takes: a module of
        linen, nnx or Equinox, or a pair of functions.
      input_shape: of one example.
      outputs: number of outputs that it is built for.

    Raises:
      AssertionError: a promise is broken; it says what is wrong, where the promise stands, and what to do.

    Examples:
      >>> from plastax import models, testing
      >>> testing.check_model(models.MLP(hidden=(5, 4)), (3,))
    """
    who = getattr(model, "__name__", type(model).__name__)
    if not isinstance(model, Model):
        with Promise(Model).kept(who, "build", "give a network that plastax.models.own understands"):
            model = own.entry(model, who).build(input_shape, outputs)
    trial = Trial(model, input_shape, who, outputs)
    check_names(trial, outputs)
    check_seeds(trial)
    check_padding(trial)
    check_taps(trial)
    check_units(trial)


def check_names(trial: Trial, outputs: int) -> None:
    """Names of layers and features, in the order of the forward pass, and the shapes of what they name."""
    model, who, order = trial.model, trial.who, []

    def call(params: Params, taps: dict[str, Array], x: Array) -> Any:
        z, features, inputs = model.tapped(params, taps, x)
        order.append((tuple(features), tuple(inputs)))  # A dict that comes out of JAX is sorted.
        return z, features, inputs

    with Promise(Model, "tapped").kept(who, "tapped", "let it take (params, taps, x) and return what is promised"):
        taps = model.taps(trial.x)
        z, features, inputs = jax.eval_shape(call, trial.params, taps, trial.x)
    leaves = tree.named_leaves(trial.params)
    (hidden, tapped), matrices = order[0], _matrices(trial, trial.params)
    factored = tuple(model.factored or model.layers)
    kernels = tuple(name for name in factored if name in matrices)
    for got, expected, member, what in (
        (hidden, model.hidden, "hidden", "the features"),
        (tapped, factored, "factored", "the inputs of layers"),
        (tuple(taps), factored, "taps", "the taps"),
        (kernels, model.layers, "layers", "the kernels"),
    ):
        if got != expected:
            what = f"{what} are of {', '.join(got) or 'nothing'}, and {member} of {', '.join(expected) or 'nothing'}"
            raise Promise(Model, member).broken(who, what, "let the names and their order be the same")
    shape = (*(trial.x.shape if model.counted else (EXAMPLES,)), outputs)
    if isinstance(z, jax.ShapeDtypeStruct) and z.shape != shape:
        what = f"for {EXAMPLES} examples and {outputs} outputs it gives {list(z.shape)}"
        raise Promise(Model, "apply").broken(who, what, f"return outputs {list(shape)}")
    for name, x in features.items():
        if len(x.shape) < 2 or x.shape[0] != EXAMPLES:
            raise Promise(Model, "apply").broken(
                who, f"the features {name} have the shape {x.shape}", "[B, ..., width]"
            )
    for name in model.layers:
        (kernel, *_), window = matrices[name], inputs[name].window
        places = 1 if window is None else math.prod(window.size)
        ends = inputs[name].values.shape[-1] * places, taps[name].shape[-1]
        if kernel.shape != ends:
            what = f"the kernel of {name} is a matrix {kernel.shape}, its inputs and taps ask for {ends}"
            raise Promise(Model, "tapped").broken(who, what, "give the inputs and pre-activations of this layer")
    if not (model.train is None) == (model.evaluate is None) == (not jax.tree.leaves(model.stats)):
        what = "it has some of train, evaluate and stats, and not all"
        raise Promise(Model, "stats").broken(who, what, "give all three, with batch normalisation, or none")
    for layer, units in model.units.items():
        _check_shapes(who, layer, units, leaves, features)


def _check_shapes(who: str, layer: str, units: Units, leaves: dict[str, Array], features: Features) -> None:
    promise, remedy = Promise(Units), "see plastax.layers.Units and Entries for what width, axis and copies mean"
    if layer not in features:
        raise promise.broken(who, f"units has the layer {layer}, which has no features", remedy)
    count = features[layer].shape[-1]
    own = units.width * units.size
    if count != units.copies * own:
        what = f"{layer} has {count} features, and {units.copies} x {units.width} units of {units.size}"
        raise promise.broken(who, what, remedy)
    for entry, size in (*((e, own) for e in units.incoming), *((e, count) for e in units.outgoing)):
        shape = leaves[entry.name].shape if entry.name in leaves else ()
        if len(shape) <= entry.axis or shape[entry.axis] % size or (size == own and shape[entry.axis] < size):
            what = f"{layer} has {entry}, and this parameter has the shape {shape}"
            raise promise.broken(who, what, f"name a parameter and an axis of {size} entries, or a multiple")


def check_seeds(trial: Trial) -> None:
    """A network depends on its key alone, also when others are drawn beside it."""
    model, who, promise = trial.model, trial.who, Promise(Model, "init")

    def run(key: Key) -> tuple[Params, Tree]:
        params = model.init(key)
        return params, model.apply(params, trial.x)[0]

    remedy = "draw with jax.random and the key alone, in float32"
    check_pure(promise, who, run, jax.random.key(0), remedy=remedy)
    alone, keys = quick(run), jax.random.split(jax.random.key(0), 2)
    found = [alone(key) for key in keys]
    if wrong := difference(alone(keys[0]), found[0]):
        raise promise.broken(who, f"the same key draws another network, {wrong}", remedy)
    if not isinstance(model.init, own.Fixed) and not difference(found[0][0], found[1][0]):
        raise promise.broken(who, "another key draws the same network", remedy)
    if wrong := difference(found, found, lambda a, _: bool(np.isfinite(plain(a)).all())):
        raise promise.broken(who, f"parameters or outputs are not finite at the start, {wrong}", remedy)
    both = quick(jax.vmap(run))(keys)
    for number in range(2):
        one = jax.tree.map(lambda x, number=number: plain(x)[number], both)
        if wrong := difference(one, found[number], close(1e-4, 1e-5)):
            raise Promise(Model).broken(who, f"a network differs among other seeds, {wrong}", remedy)


def check_taps(trial: Trial) -> None:
    """The taps are pre-activations: with the layers' inputs, their gradients make up those of kernels and biases."""
    model, who = trial.model, trial.who
    wide = jax.dtypes.canonicalize_dtype(float) == np.float64
    # In float32, two programs of a normalised network differ by what their compilers fused.
    off = 1e-9 if wide else 1e-3
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)  # noqa: E731
    params, x, taps = jax.tree.map(
        lambda a: a.astype(jnp.float64) if wide and floating(a) else a, (trial.params, trial.x, model.taps(trial.x))
    )

    def loss(params: Params, taps: dict[str, Array]) -> tuple[Array, Any]:
        z, features, inputs = model.tapped(params, taps, x)
        rng = np.random.default_rng(3)
        weighted = [jnp.sum(rng.standard_normal(a.shape).astype(a.dtype) * jnp.square(a)) for a in jax.tree.leaves(z)]
        return sum(weighted, jnp.zeros(())), ((z, features), inputs)

    def same(a: Any, b: Any) -> bool:
        return bool(np.abs(plain(a) - plain(b)).max(initial=0.0) <= off * np.abs(plain(b)).max(initial=1e-30))

    taken = jax.grad(loss, (0, 1), has_aux=True, allow_int=True)
    (grads, tap_grads), (tapped, inputs) = quick(taken)(params, taps)
    if found := difference(tapped, trial.apply(params, x), same):
        what = f"with zeros as taps it gives something else than `apply`, {found}"
        raise Promise(Model, "tapped").broken(who, what, "add the taps to the pre-activations, and change nothing else")
    matrices = _matrices(trial, grads)
    for name in model.layers:
        _check_layer(who, name, matrices[name], inputs[name], tap_grads[name], same)


def _matrices(trial: Trial, params: Params) -> dict[str, list[np.ndarray]]:
    """Layer -> its kernel ``[*places, inputs, units]`` as ``[rows, units]``, and its bias ``[1, units]``, if any."""
    found, leaves = roles.of_model(trial.model).of(trial.params), tree.named_leaves(params)
    matrices: dict[str, list[np.ndarray]] = {}
    for name, role in found.items():
        if role.kind == "kernel":
            matrix, outputs = plain(leaves[name]), role.readings[0].outputs if role.readings else (-1,)
            units = math.prod(matrix.shape[axis] for axis in outputs)
            if name != f"{role.layer}/kernel":  # Flax's have the order [*places, inputs, units] as they are.
                axes = roles.axes(name, role, trial.who, places=True)
                matrix = matrix.transpose(axes.places + axes.inputs + axes.outputs)
            matrices[role.layer] = [matrix.reshape(-1, units)]
    for name, role in found.items():
        if role.kind == "bias" and role.layer in matrices:
            matrices[role.layer].append(plain(leaves[name]).reshape(1, -1))
    return matrices


def _check_layer(who: str, name: str, matrices: list[np.ndarray], inputs: LayerInputs, taps: Array, same: Any) -> None:
    kernel = matrices[0]
    gradient = plain(taps).reshape(EXAMPLES, -1, kernel.shape[-1])
    seen = np.concatenate([plain(rows(call)) for call in (inputs, *inputs.others)], axis=1)
    outer = np.einsum("bti,bto->io", seen, gradient)
    parts = {"kernel": (kernel, outer[: len(outer) - inputs.bias])}
    if inputs.bias:
        # Relative to all of the layer's: a bias before a normalisation has no gradient.
        parts["kernel and bias"] = np.concatenate(matrices), outer
    for part, (got, expected) in parts.items():
        if got.shape != expected.shape or not same(expected, got):
            what = f"inputs and gradients of the taps of {name} do not make up the gradient of its {part}"
            raise Promise(Model, "tapped").broken(who, what, "give the rows that the kernel multiplies, bias=True last")


def belongs(entries: tuple[Entries, ...], unit: int, units: Units, name: str, leaf: Array) -> np.ndarray:
    """Which entries of a parameter are the unit's, ``leaf``'s shape."""
    mask = np.zeros(leaf.shape, bool)
    for entry in entries:
        if entry.name == name:
            np.moveaxis(mask, entry.axis, 0)[_mine(units, unit, leaf.shape[entry.axis])] = True
    return mask


def shifted(params: Params, entries: tuple[Entries, ...], unit: int, units: Units) -> Params:
    """The unit's entries moved far."""
    rng = np.random.default_rng(2)

    def moved(name: str, x: Array) -> Array:
        far = plain(x) + (2.0 + rng.standard_normal(x.shape)).astype(x.dtype)
        return jnp.asarray(np.where(belongs(entries, unit, units, name, x), far, plain(x)))

    return tree.map_named(moved, params)


def cut(params: Params, entries: tuple[Entries, ...], unit: int, units: Units) -> Params:
    """The unit's entries at zero."""
    return tree.map_named(
        lambda n, x: jnp.asarray(np.where(belongs(entries, unit, units, n, x), np.zeros_like(x), plain(x))), params
    )


def check_padding(trial: Trial) -> None:
    """Of a network of tokens: padding has no features and no outputs, and changes none of the other places."""
    if trial.model.counted is None:
        return
    promise, remedy = Promise(Model, "counted"), "let no place attend to padding, and zero what it gives itself"
    shorter = trial.x[:, :-1]
    padded = trial.apply(trial.params, trial.x.at[:, -1].set(PADDING))
    if found := difference(
        jax.tree.map(lambda h: h[:, :-1], padded), trial.apply(trial.params, shorter), close(1e-4, 1e-5)
    ):
        raise promise.broken(trial.who, f"padding changes other places, {found}", remedy)
    if found := difference(padded, padded, lambda h, _: not plain(h)[:, -1].any()):
        raise promise.broken(trial.who, f"padding has features or outputs, {found}", remedy)
    if not np.array_equal(trial.model.counted(trial.x), plain(trial.x) >= 0):
        raise promise.broken(trial.who, "it counts padding, or does not count tokens", "count tokens from 0 on")


def check_units(trial: Trial) -> set[str]:
    """A unit is its incoming entries, and acts through its outgoing ones alone.

    Returns:
      The layers whose normalisation mixes units. There only its scale and bias belong to one unit alone.
    """
    found = roles.of_model(trial.model).of(trial.params) if trial.model.units else {}
    mixing = set()
    for layer, units in trial.model.units.items():
        norms = tuple(e for e in units.incoming if found[e.name].kind in ("scale", "offset"))
        own_entries = units.incoming
        if norms and _moved(trial, layer, units, units.incoming, 0)[~_features(units, 0)].max(initial=0.0) > 1e-6:
            own_entries = norms
            mixing.add(layer)
        last = units.width - 1
        for unit, other in {(min(1, last), 0), (last, int(last > 1))}:
            _check_unit(trial, layer, units, own_entries, unit, other)
    return mixing


def _mine(units: Units, unit: int, count: int) -> np.ndarray:
    """Which of ``count`` indices are the unit's."""
    return np.arange(count) // units.size % units.width == unit


def _features(units: Units, unit: int) -> np.ndarray:
    return _mine(units, unit, units.copies * units.width * units.size)


def _moved(trial: Trial, layer: str, units: Units, entries: tuple[Entries, ...], unit: int) -> np.ndarray:
    """How far the layer's features move where the unit's entries do, ``[features]``."""
    before = trial.apply(trial.params, trial.x)[1][layer]
    after = trial.apply(shifted(trial.params, entries, unit, units), trial.x)[1][layer]
    return np.abs(plain(after) - plain(before)).max(tuple(range(before.ndim - 1)))


def _check_unit(trial: Trial, layer: str, units: Units, entries: tuple[Entries, ...], unit: int, other: int) -> None:
    incoming, outgoing = units.incoming, units.outgoing
    who, mine, promise = f"{trial.who}, unit {unit} of {layer}", _features(units, unit), Promise(Units, "incoming")
    remedy = "let incoming have all parameters that compute this unit, and no other's: axis and width decide"
    moved = _moved(trial, layer, units, entries, unit)
    if moved[mine].max() <= 1e-2:
        raise promise.broken(who, "its features do not move with its incoming entries", remedy)
    if moved[~mine].max(initial=0.0) > 1e-6:
        raise promise.broken(who, "the features of others move with its incoming entries", remedy)
    if np.abs(trial.outputs(shifted(trial.params, entries, unit, units)) - trial.outputs(trial.params)).max() <= 1e-3:
        raise promise.broken(who, "the outputs do not move with its incoming entries", remedy)
    promise, remedy = Promise(Units, "outgoing"), "let outgoing have all parameters that read this unit, and no other's"
    without = cut(trial.params, outgoing, unit, units)
    before = trial.outputs(without)
    if np.abs(trial.outputs(shifted(without, entries, unit, units)) - before).max() > 1e-6:
        raise promise.broken(who, "it still moves the outputs with its outgoing entries at zero", remedy)
    if other != unit and np.abs(trial.outputs(shifted(without, entries, other, units)) - before).max() <= 1e-3:
        what = f"with its outgoing entries at zero unit {other} does not act any more"
        raise promise.broken(who, what, remedy)
    mixes = entries != incoming
    if mixes and np.abs(trial.outputs(shifted(without, incoming, unit, units)) - before).max() <= 1e-3:
        # It moves what is divided by.
        raise Promise(Units, "incoming").broken(who, "its other incoming entries do not move the outputs", remedy)
