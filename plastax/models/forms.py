"""How the parameters of a Flax layer, linen or nnx, meet what it is given, as far as Kronecker factors need to know it.

The table of layers is `of`. Products of any axes (`DenseGeneral`, `Einsum`) are brought into one order: examples,
places, groups, then what a unit reads, or the units.
"""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import opt_einsum
from flax import nnx
from flax.core.tracers import current_trace

from plastax.errors import Refused
from plastax.layers import LayerInputs, Norm
from plastax.models.window import window
from plastax.types import Array

_CONV, _NORM, _EMBED = (
    (nn.Conv, nnx.Conv),
    (nn.LayerNorm, nn.RMSNorm, nnx.LayerNorm, nnx.RMSNorm),
    (nn.Embed, nnx.Embed),
)
_GENERAL, _EINSUM = (nn.DenseGeneral, nnx.LinearGeneral), (nn.Einsum, nnx.Einsum)
_LAYERS = (nn.Dense, nnx.Linear, nnx.LoRALinear, *_CONV, *_NORM, *_EMBED, *_GENERAL, *_EINSUM)
METHODS = ("__call__", "attend")
"""The methods by which a layer uses its parameters."""


class Form(NamedTuple):
    """One call of a layer.

    Attributes:
      inputs: what the layer was given -> `LayerInputs`.
      tap: shape of the tap, ``[B, *places, units]``.
      dtype: of the tap.
      place: a tap -> what is added to what the layer gives.
      parameters: their names in the layer.
    """

    inputs: Callable[[Array], LayerInputs]
    tap: tuple[int, ...]
    dtype: Any
    place: Callable[[Array], Array]
    parameters: tuple[str, ...]


def has(layer: Any, method: str) -> bool:
    """Whether factors are known for a layer's call by this method. What a subclass computes itself is unknown."""
    if not any(getattr(type(layer), method, None) is getattr(one, method, layer) for one in _LAYERS):
        return False
    if isinstance(layer, _NORM):
        # A normalisation over other axes than the last has other statistics.
        plain = all(np.array_equal(axes, -1) for axes in (layer.reduction_axes, layer.feature_axes))
        return method == "__call__" and plain and layer.axis_name is None and bool(_parameters(layer))
    return isinstance(layer, _LAYERS) and (method == "__call__" or isinstance(layer, _EMBED))


def use_of(name: str, method: str) -> str:
    """The name of a layer's use: the layer's, and for `Embed.attend` ``embed.attend``, which has factors of its own."""
    return name if method == "__call__" else f"{name}.{method}"


def of_use(use: str) -> tuple[str, str]:
    """The inverse of `use_of`: layer and method."""
    name, _, method = use.rpartition(".")
    return (name, method) if method in METHODS else (use, "__call__")


def names(use: str, stack: Sequence[int]) -> list[str]:
    """The name of each layer of a stack, ``blocks/dense/0``; of a layer alone that of the use."""
    return ["/".join(map(str, (use, *place))) for place in np.ndindex(*stack)]


def of_examples(layer: Any, method: str, x: Array, examples: int) -> bool:
    """Whether the leading axis of what a layer is given is that of the examples, and can leave the network.

    An embedding of one axis of indices is taken for one of positions, which are the same for all examples. Nothing
    leaves a plain `jax.lax.scan`, or another transformation that is not Flax's.
    """
    if _is_inside(layer):
        return False
    if isinstance(layer, _EMBED) and method == "__call__":
        return x.ndim > 1 and x.shape[0] == examples
    return x.ndim > 0 and x.shape[0] % examples == 0


def _is_inside(layer: Any) -> bool:
    """Whether a layer is called inside of a transformation that its variables are outside of."""
    if isinstance(layer, nnx.Module):
        own = variables(layer)[0]
        try:
            own.set_metadata(**own.get_metadata())  # Changes nothing, and is refused where a change would be lost.
        except flax.errors.TraceContextError:
            return True
        return False
    scope, now = layer.scope, current_trace()
    while scope is not None and scope.trace_level == now:
        scope = scope.parent
    return scope is not None


def of(name: str, layer: Any, x: Array, out: Array, rest: Sequence[Any] = ()) -> Form:
    """The form of a call.

    Args:
      name: of the layer, for messages.
      layer: one that `has` a factor.
      x: what it was given, ``[B, ...]``.
      out: what it gave.
      rest: the call's other arguments: the equation of `Einsum`, the mask of a normalisation.

    Raises:
      Refused: for calls whose factors nobody knows.
    """
    parameters = _parameters(layer)
    bias, kind = parameters[-1] == "bias", type(layer)
    inputs: Callable[[Array], LayerInputs] = lambda x: LayerInputs(x, bias)  # noqa: E731
    place: Callable[[Array], Array] = lambda tap: tap  # noqa: E731
    shape = tuple(out.shape)
    if isinstance(layer, _CONV):
        geometry, groups = window(name, layer, x), layer.feature_group_count
        inputs = lambda x: LayerInputs(x, bias, geometry, groups)  # noqa: E731
    elif isinstance(layer, _EMBED):
        inputs = lambda x: LayerInputs(x, False, table=layer.num_embeddings)  # noqa: E731
    elif isinstance(layer, _NORM):
        if any(mask is not None for mask in rest):
            why = f"layer {name!r} normalises by a mask, which Kronecker factors do not know; leave it out"
            raise Refused(why, [name])
        norm = Norm(float(layer.epsilon), issubclass(kind, nn.LayerNorm | nnx.LayerNorm), "scale" in parameters, bias)
        inputs = lambda x: LayerInputs(x, False, norm=norm)  # noqa: E731
    elif isinstance(layer, (*_GENERAL, *_EINSUM)):
        product = _general(name, layer, x) if isinstance(layer, _GENERAL) else _einsum(layer, x, rest)
        inputs, shape, place = _contraction(name, product, x, out, bias)
    return Form(inputs, shape, out.dtype, place, parameters)


class Use(NamedTuple):
    """All calls of a layer in a pass by one method.

    Attributes:
      name: see `use_of`.
      calls: the form of each.
      stack: sizes of the leading axes that stack layers of one kind.
      given: what each call was given, ``[*stack, B, ...]``.
    """

    name: str
    calls: Sequence[Form]
    stack: tuple[int, ...]
    given: Sequence[Array]

    def taps(self) -> dict[str, Array]:
        """Zeros ``[B, *places, units]`` for each layer of the stack; of several calls ``[B, places of all, units]``."""
        first, *others = self.calls
        shape = (first.tap[0], sum(map(_places, self.calls)), first.tap[-1]) if others else first.tap
        return {name: jnp.zeros(shape, first.dtype) for name in names(self.name, self.stack)}

    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The path names of the parameters of each layer of the stack."""
        layer = of_use(self.name)[0]
        own = tuple(f"{layer}/{part}" if layer else part for part in self.calls[0].parameters)
        return dict.fromkeys(names(self.name, self.stack), own)

    def inputs(self, counted: Array | None) -> dict[str, LayerInputs]:
        """The inputs of each layer of the stack; for ``counted`` see `LayerInputs`."""

        def of_one(place: tuple[int, ...]) -> LayerInputs:
            given = [x[place] if place else x for x in self.given]
            calls = [form.inputs(x) for form, x in zip(self.calls, given, strict=True)]
            first, *others = [dataclasses.replace(call, counted=counted) for call in calls]
            return dataclasses.replace(first, others=tuple(others))

        return dict(zip(names(self.name, self.stack), map(of_one, np.ndindex(*self.stack)), strict=True))


def placed(forms: Sequence[Form], call: int, tap: Array) -> Array:
    """What a layer's tap adds to what one of its calls gives."""
    form = forms[call]
    if tap.shape != form.tap:
        start = sum(map(_places, forms[:call]))
        tap = tap[:, start : start + _places(form)].reshape(form.tap)
    return form.place(tap)


def stacked(taps: dict[str, Array], use: str, stack: Sequence[int]) -> Array | None:
    """The taps of a stack of layers as one array, taken out of those by name; None where they have none."""
    each = [taps.pop(name) for name in names(use, stack) if name in taps]
    return jnp.stack(each).reshape(*stack, *each[0].shape) if each else None


def stack_of(layer: Any) -> tuple[int, ...]:
    """Sizes of the leading axes by which an nnx layer stacks layers of one kind, as `nnx.vmap` makes them."""
    if isinstance(layer, nnx.LinearGeneral):
        axes = len(layer.batch_axis) + len(layer.in_features) + len(layer.out_features)
    elif isinstance(layer, nnx.Einsum):
        axes = len(layer.kernel_shape)
    else:
        axes = 1 if isinstance(layer, _NORM) else 2 + np.size(layer.kernel_size) if isinstance(layer, nnx.Conv) else 2
    shape = variables(layer)[0].shape
    return tuple(shape[: len(shape) - axes])


def variables(layer: nnx.Module) -> list[nnx.Variable[Any]]:
    """The parameters of an nnx layer."""
    return [getattr(layer, name) for name in _parameters(layer)]


def _places(form: Form) -> int:
    return math.prod(form.tap[1:-1])


def _parameters(layer: Any) -> tuple[str, ...]:
    if isinstance(layer, _EMBED):
        return ("embedding",)
    if isinstance(layer, nnx.Module):
        return tuple(name for name in ("kernel", "scale", "bias") if getattr(layer, name, None) is not None)
    main = ("scale",) * layer.use_scale if isinstance(layer, _NORM) else ("kernel",)
    return main + ("bias",) * getattr(layer, "use_bias", False)


def _general(name: str, layer: Any, x: Array) -> tuple[str, str, str]:
    """The product of a `DenseGeneral` as the letters of its operands and result."""
    if np.size(layer.batch_dims) if isinstance(layer, nn.DenseGeneral) else layer.batch_axis:
        why = f"layer {name!r} has a kernel for each example (batch_dims), which factors cannot describe; leave it out"
        raise Refused(why, [name])
    features = layer.features if isinstance(layer, nn.DenseGeneral) else layer.out_features
    axes = sorted(axis % x.ndim for axis in np.atleast_1d(layer.axis))  # Flax sorts them.
    data, units = string.ascii_letters[: x.ndim], string.ascii_letters[x.ndim :][: np.size(features)]
    rows = "".join(data[axis] for axis in axes)
    return data, rows + units, "".join(letter for letter in data if letter not in rows) + units


def _einsum(layer: Any, x: Array, rest: Sequence[Any]) -> tuple[str, str, str]:
    """That of an `Einsum`."""
    equation = next((text for text in rest if isinstance(text, str)), layer.einsum_str)
    shape = layer.shape if isinstance(layer, nn.Einsum) else layer.kernel_shape
    operands, result, _ = opt_einsum.parser.parse_einsum_input((equation, tuple(x.shape), tuple(shape)), shapes=True)
    data, kernel = operands.split(",")
    return data, kernel, result


def _contraction(
    name: str, product: tuple[str, str, str], x: Array, out: Array, bias: bool
) -> tuple[Callable[[Array], LayerInputs], tuple[int, ...], Callable[[Array], Array]]:
    """Inputs, shape of the tap and its place, of a product of data and a kernel, see `Form`."""
    data, kernel, result = product
    size = dict(zip(data, x.shape, strict=True)) | dict(zip(result, out.shape, strict=True))
    places = [letter for letter in data if letter not in kernel]
    groups = [letter for letter in kernel if letter in data and letter in result]
    rows = [letter for letter in kernel if letter in data and letter not in result]
    units = [letter for letter in kernel if letter not in data]
    once = all(len(set(letters)) == len(letters) for letters in product)
    if not once or not {*places, *units} <= {*result} or places[:1] != [data[0]]:
        raise Refused(
            f"layer {name!r} has the product {data},{kernel}->{result}, which Kronecker factors cannot describe; let "
            f"the examples {data[0]!r} and all places and units be axes of the result, or leave it out",
            [name],
        )

    def sizes(letters: Sequence[str]) -> list[int]:
        return [size[letter] for letter in letters]

    order = [data.index(letter) for letter in (*places, *groups, *rows)]
    canonical = (*sizes(places), math.prod(sizes([*groups, *units])))
    letters = [*places, *groups, *units]

    def inputs(x: Array) -> LayerInputs:
        values = x.transpose(order).reshape(*sizes(places), -1)
        return LayerInputs(values, bias, groups=math.prod(sizes(groups)))

    def place(tap: Array) -> Array:
        return tap.reshape(sizes(letters)).transpose([letters.index(letter) for letter in result])

    return inputs, canonical, place
