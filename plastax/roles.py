"""What each parameter of a network is: kernel (with which axes), bias or normalisation; of a hidden or output layer.

Methods and probes ask here and never go by a layer's name. A model that knows says it (`Model.roles`). Otherwise the
structure of the tree says it: which arrays lie side by side, and their shapes. Users declare the rest by `Roles`, or
let `plastax.models.roles` find it in a linen module. `axes`, `kernels` and `outputs` refuse what remains unknown.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.structure import DENSE, SHIFTS, Kernel, Kind, convolution, is_attention, kinds_of, readings_of
from plastax.types import Array, Model, Params

__all__ = [
    "DENSE", "STRUCTURE", "Kernel", "Kind", "Role", "Roles", "RolesOf", "TracedRoles", "axes", "convolution",
    "from_matrices", "kernels", "matrices", "norms", "of_model", "outputs", "shape_of", "stack_of",
]  # fmt: skip


class Role(NamedTuple):
    """What one parameter is.

    Attributes:
      kind: ``bias`` of a layer with a kernel; ``scale`` and ``offset`` of a normalisation; ``other``: of no layer.
      layer: the name of its layer; empty where the network is one layer.
      shape: of the parameter.
      readings: of a kernel: all meanings that its axes may have.
      stacks: of another parameter: the numbers of leading axes that may stack layers.
      output: whether the layer is an output layer; None: unknown.
      normalized: whether a normalisation follows the layer; None: unknown.
    """

    kind: Kind
    layer: str
    shape: tuple[int, ...]
    readings: tuple[Kernel, ...] = ()
    stacks: tuple[int, ...] = (0,)
    output: bool | None = None
    normalized: bool | None = None


class RolesOf(Protocol):
    """Knows what each parameter is: `Roles`, or a model's own.

    It is not callable: `optax.inject_hyperparams` takes a method's callable arguments for schedules.
    """

    def of(self, params: Params) -> dict[str, Role]:
        """Path name -> role, of every array of the tree."""


_MASKED = {"kernel": (0, 0), "w": (0, 0)}
"""Stand-ins for the shapes of arrays that `optax.masked` hides."""


@dataclass(frozen=True, eq=False)  # Hashable by identity, as a static argument of compiled functions must be.
class Roles:
    """Declares what the structure of a network's parameters leaves open.

    Layers and parameters are named by their paths, ``encoder/Dense_0`` and ``encoder/Dense_0/kernel``, or by patterns
    with ``*``. A name without ``*`` must exist.

    Layers of Flax linen and nnx, Haiku and Equinox, attention, and stacks of layers are understood without declaration
    if their shapes admit one reading. A kernel of three or more axes without a bias admits several.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax.roles import Roles
      >>> params = {"body": {"w": jnp.ones((4, 8)), "b": jnp.ones(8)}, "head": {"w": jnp.ones((8, 2))}}
      >>> found = Roles(output=("head",)).of(params)
      >>> {name: (role.kind, role.output) for name, role in found.items()}
      {'body/b': ('bias', False), 'body/w': ('kernel', False), 'head/w': ('kernel', True)}
    """

    output: tuple[str, ...] | None = None
    """The output layers; empty: the network has none; None: unknown."""
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    """Parameters that are kernels, and their axes, from the left or, negative, from the right."""
    norms: tuple[str, ...] = ()
    """Layers that are normalisations."""
    others: tuple[str, ...] = ()
    """Parameters of no layer, such as a temperature."""
    stacked: Mapping[str, int] = field(default_factory=dict)
    """Layers whose arrays hold several layers of one kind, and along how many leading axes."""
    normalized: tuple[str, ...] | None = None
    """Layers that a normalisation follows; None: unknown."""

    def of(self, params: Params) -> dict[str, Role]:
        """The role of each array, by path name.

        Raises:
          ConfigError: a declared name does not exist, or axes do not fit.
        """
        masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        layers: dict[str, dict[str, tuple[str, Any]]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=masked):
            layer, part = _layer_and_part(path)
            layers.setdefault(layer, {})[part] = (tree.path_name(path), leaf)
        shapes = {
            layer: {
                part: _MASKED.get(part, ()) if masked(leaf) else jnp.shape(leaf) for part, (_, leaf) in parts.items()
            }
            for layer, parts in layers.items()
        }
        if not any(masked(leaf) for parts in layers.values() for _, leaf in parts.values()):
            self._check(layers)
        found: dict[str, Role] = {}
        for layer, parts in layers.items():
            types = {part: _owner(params, name) for part, (name, _) in parts.items()}
            roles = self._of_layer(layer, shapes, types)
            found |= {name: roles[part] for part, (name, leaf) in parts.items() if not masked(leaf)}
        return found

    def _check(self, layers: Mapping[str, Mapping[str, tuple[str, Any]]]) -> None:
        names = [name for parts in layers.values() for name, _ in parts.values()]
        declared = {
            "output": (self.output or (), layers),
            "norms": (self.norms, layers),
            "stacked": (self.stacked, layers),
            "normalized": (self.normalized or (), layers),
            "kernels": (self.kernels, names),
            "others": (self.others, names),
        }
        for setting, (patterns, known) in declared.items():
            for pattern in patterns:
                if "*" not in pattern and pattern not in known:
                    raise ConfigError.unknown(f"roles.{setting}", pattern, known)

    def _of_layer(
        self, layer: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], types: Mapping[str, str]
    ) -> dict[str, Role]:
        parts = shapes[layer]
        stacked = _match(self.stacked, layer)
        output = None if self.output is None else _match(dict.fromkeys(self.output, True), layer) or False
        normalized = None if self.normalized is None else _match(dict.fromkeys(self.normalized, True), layer) or False
        named = {part: f"{layer}/{part}" if layer else part for part in parts}
        given = {part: _match(self.kernels, name) for part, name in named.items()}
        others = {part for part, name in named.items() if _match(dict.fromkeys(self.others, True), name)}
        rest = {part: shape for part, shape in parts.items() if part not in others}
        kinds: dict[str, Kind]
        if _match(dict.fromkeys(self.norms, True), layer):
            kinds = {part: "offset" if part in SHIFTS else "scale" for part in rest}
        else:
            kinds = kinds_of(layer, rest, types, stacked or 0, frozenset(p for p, kernel in given.items() if kernel))
        bias = next((shape for part, shape in rest.items() if kinds[part] == "bias" and shape), None)
        attention = layer.rpartition("/")[2] if is_attention(layer, shapes) else ""
        found = {}
        for part, shape in parts.items():
            kind = kinds.get(part, "other")
            readings: tuple[Kernel, ...] = ()
            if kind == "kernel":
                kernel = given[part]
                readings = (
                    readings_of(part, types[part], shape, bias, stacked, attention)
                    if kernel is None
                    else (_from_left(named[part], kernel, shape),)
                )
            stacks = (stacked,) if stacked is not None else tuple(range(max(1, len(shape))))
            found[part] = Role(kind, layer, shape, readings, stacks, output, normalized)
        kernels = [role for role in found.values() if role.kind == "kernel"]
        if len(kernels) == 1:
            # A bias is stacked like its kernel.
            depth = {len(shape_of(kernels[0], reading)[0]) for reading in kernels[0].readings}
            found = {p: r._replace(stacks=tuple(sorted(depth))) if r.kind == "bias" else r for p, r in found.items()}
        return found


STRUCTURE = Roles()
"""The roles that structure alone shows."""


@dataclass(frozen=True, eq=False)
class TracedRoles:
    """What the parameters of a traced network are, a `RolesOf`."""

    structure: Roles
    """The axes of the kernels; the rest as the parameters' structure shows it."""
    kinds: Mapping[str, Kind]
    """Parameter -> its kind, of those that the trace shows."""
    layers: Mapping[str, str]
    """Kernel or bias -> its layer."""
    output: tuple[str, ...] | None
    """The output layers; None: unknown."""
    normalized: tuple[str, ...]
    """The layers that a normalisation follows."""

    def of(self, params: Params) -> dict[str, Role]:
        """The role of each array, by path name."""

        def traced(name: str, role: Role) -> Role:
            layer = self.layers.get(name, role.layer)
            output = None if self.output is None else layer in self.output
            kind = self.kinds.get(name, role.kind)
            return role._replace(kind=kind, layer=layer, output=output, normalized=layer in self.normalized)

        return {name: traced(name, role) for name, role in self.structure.of(params).items()}


def of_model(model: Model | None) -> RolesOf:
    """The roles of a model's parameters: those that it declares, else those that structure shows."""
    return STRUCTURE if model is None or model.roles is None else model.roles  # type: ignore[no-any-return]


def axes(name: str, role: Role, asks: str, *, places: bool = False) -> Kernel:
    """The axes of a kernel.

    Args:
      name: of the parameter.
      role: its role.
      asks: the method or probe that asks, for the message.
      places: whether the window of a convolution must be known apart from its inputs.

    Raises:
      ConfigError: shapes admit several readings that differ.
    """

    def seen(reading: Kernel) -> Any:
        return reading if places else (sorted(reading.inputs + reading.places), reading.outputs)

    if not role.readings or any(seen(reading) != seen(role.readings[0]) for reading in role.readings):
        last = len(role.shape) - 1
        example = f"Kernel(inputs={tuple(range(last))}, outputs=({last},))"
        raise ConfigError(
            f"{asks}: which axes of {name!r} {list(role.shape)} are inputs and which are units cannot be told from its "
            f"shape; give roles=Roles(kernels={{{name!r}: {example}}}) with the axes that it has, or "
            f"Roles(others=({name!r},)) if it is no kernel"
        )
    return role.readings[0]


def shape_of(role: Role, kernel: Kernel) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The axes that stack layers, those of a unit's inputs (with the window), and those of the units."""
    rows = tuple(sorted(kernel.inputs + kernel.places))
    return tuple(i for i in range(len(role.shape)) if i not in rows + kernel.outputs), rows, kernel.outputs


def matrices(x: Array, role: Role, kernel: Kernel) -> Array:
    """A kernel as ``[*stack, inputs, units]``; the inputs of a convolution are those of its whole window.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import roles
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 2, 8)), "bias": jnp.ones(8)}}
      >>> role = roles.STRUCTURE.of(params)["conv/kernel"]
      >>> roles.matrices(params["conv"]["kernel"], role, roles.axes("conv/kernel", role, "an example")).shape
      (18, 8)
    """
    stack, rows, units = shape_of(role, kernel)
    sizes = [math.prod(role.shape[i] for i in group) for group in (rows, units)]
    return x.transpose(stack + rows + units).reshape(*(role.shape[i] for i in stack), *sizes)


def from_matrices(x: Array, role: Role, kernel: Kernel) -> Array:
    """The inverse of `matrices`."""
    order = sum(shape_of(role, kernel), ())
    return x.reshape([role.shape[i] for i in order]).transpose([order.index(i) for i in range(len(order))])


def kernels(found: Mapping[str, Role], asks: str, *, hidden: bool = False) -> dict[str, Role]:
    """The kernels of a network by name; with ``hidden`` those of hidden layers only.

    Raises:
      ConfigError: the network has none, or hidden ones are asked for and the output layers are unknown.
    """
    named = {name: role for name, role in found.items() if role.kind == "kernel"}
    if hidden:
        heads = outputs(found, asks, none_allowed=True)
        named = {name: role for name, role in named.items() if name not in heads}
        if not named and heads:
            raise ConfigError(f"{asks}: the network has no hidden layer, only output layers ({_listed(heads)})")
    if not named:
        raise ConfigError(
            f"{asks}: none of the parameters is a kernel (they are {_listed(found)}); name the kernels by "
            "roles=Roles(kernels={'...': Kernel(inputs=(0,), outputs=(1,))})"
        )
    return named


def outputs(found: Mapping[str, Role], asks: str, *, none_allowed: bool = False) -> dict[str, Role]:
    """The parameters of output layers, by name.

    Raises:
      ConfigError: the output layers are unknown, or the network has none.
    """
    layers = dict.fromkeys(role.layer for role in found.values() if role.kind == "kernel")
    if any(role.output is None for role in found.values()):
        raise ConfigError(
            f"{asks}: nothing says which layers are output layers (of {_listed(layers)}); give "
            f"roles=Roles(output=({next(reversed(layers), 'head')!r},)), or a model with roles"
        )
    heads = {name: role for name, role in found.items() if role.output}
    if not heads and not none_allowed:
        raise ConfigError(f"{asks}: no output layer is known (of {_listed(layers)}); name it in Roles(output=...)")
    return heads


def norms(found: Mapping[str, Role], asks: str) -> frozenset[str]:
    """The scales and offsets of normalisations, by name.

    Raises:
      ConfigError: a parameter may or may not be one.
    """
    for name, role in found.items():
        if role.kind == "unknown":
            raise ConfigError(
                f"{asks}: whether {name!r} belongs to a normalisation cannot be told; give "
                f"roles=Roles(norms=({role.layer!r},)) or Roles(others=({name!r},))"
            )
    return frozenset(name for name, role in found.items() if role.kind in ("scale", "offset"))


def stack_of(name: str, role: Role, asks: str) -> int:
    """How many leading axes of a bias or a normalisation's parameter stack layers; raises `ConfigError` if unclear."""
    if len(role.stacks) != 1:
        raise ConfigError(
            f"{asks}: whether {name!r} {list(role.shape)} is one layer's or a stack of several cannot be told; give "
            f"roles=Roles(stacked={{{role.layer!r}: 1}}), or 0 for one layer"
        )
    return role.stacks[0]


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _match(declared: Mapping[str, Any], name: str) -> Any:
    """The value of the first pattern that fits a name; None if none fits."""
    return next((value for pattern, value in declared.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _layer_and_part(path: tuple[Any, ...]) -> tuple[str, str]:
    """``("encoder/l1", "kernel")``; nnx keeps every array in the attribute ``value`` of its variable."""
    last = path[-1:]
    if len(path) > 1 and last == (jax.tree_util.GetAttrKey("value"),):
        path = path[:-1]
    layer, _, part = tree.path_name(path).rpartition("/")
    return layer, part


def _owner(params: Params, name: str) -> str:
    """The name of the type that holds an array as its attribute; empty in trees of dicts and lists."""
    for key in name.split("/")[:-1]:
        if isinstance(params, Mapping):
            # Keys with slashes, as Haiku's, are not found: such a dict holds arrays.
            params = params.get(key, {})
            continue
        params = params[int(key)] if isinstance(params, list | tuple) and key.isdigit() else getattr(params, key, None)
    return "" if isinstance(params, Mapping | list | tuple) else type(params).__name__


def _from_left(name: str, kernel: Kernel, shape: tuple[int, ...]) -> Kernel:
    """Declared axes, counted from the left."""
    size = len(shape)
    counted = Kernel(*(tuple(axis % size for axis in group) for group in kernel))
    every = [*kernel.inputs, *kernel.outputs, *kernel.places]
    if any(not -size <= axis < size for axis in every) or len({axis % size for axis in every}) != len(every):
        raise ConfigError(f"roles.kernels: {kernel} does not fit {name!r} {list(shape)}")
    return counted
