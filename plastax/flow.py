"""The primitives of a traced function, what is known of their values, and which axis of a result an axis becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from plastax.layers import Window

NONLINEAR = frozenset({
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "log", "log1p", "logistic", "max", "min", "pow", "round",
    "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
})  # fmt: skip
"""Primitives that a nonlinearity is made of."""
ELEMENTWISE = NONLINEAR | frozenset({
    "add", "add_any", "and", "atan2", "div", "eq", "ge", "gt", "is_finite", "le", "lt", "mul", "ne", "neg", "nextafter",
    "not", "or", "rem", "stop_gradient", "sub", "xor",
})  # fmt: skip
"""Primitives that compute each entry from the same entries of their operands."""
MOVING = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "reduce_precision", "reshape",
    "squeeze", "transpose",
})  # fmt: skip
"""Primitives that only rearrange entries."""

INLINED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")
"""Calls of other jaxprs, which `flat` opens."""


class Step(NamedTuple):
    """One primitive of the trace; the keys of its values are objects, or literals."""

    eqn: Any
    ins: tuple[Any, ...]
    outs: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Of the primitive."""
        return str(self.eqn.primitive.name)


@dataclass(frozen=True, eq=False)  # No tuple, which would be a tree.
class Const:
    """A value that the trace captured."""

    val: Any


def is_fixed(key: Any) -> bool:
    """Whether a key is a value itself: a literal, or a constant that was captured."""
    return isinstance(key, Literal | Const)


def read(values: Mapping[Any, Any], key: Any) -> Any:
    """The value of a key."""
    return key.val if is_fixed(key) else values[key]


def opened(jaxpr: Any, args: list[Any]) -> tuple[Jaxpr, list[Any]]:
    """A jaxpr, and the keys of its constants and arguments."""
    return (jaxpr.jaxpr, [*map(Const, jaxpr.consts), *args]) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, args)


def flat(jaxpr: Jaxpr, ins: list[Any]) -> tuple[list[Step], list[Any]]:
    """The primitives of a jaxpr in their order, without calls of other jaxprs; each value has a key of its own."""
    keys: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), ins, strict=True))
    steps: list[Step] = []
    for eqn in jaxpr.eqns:
        args = [v if isinstance(v, Literal) else keys[v] for v in eqn.invars]
        if eqn.primitive.name in INLINED:
            inner, made = flat(*opened(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), args))
            steps += inner
        else:
            made = [object() for _ in eqn.outvars]
            steps.append(Step(eqn, tuple(args), tuple(made)))
        keys |= zip(eqn.outvars, made, strict=True)
    return steps, [v if isinstance(v, Literal) else keys[v] for v in jaxpr.outvars]


def needed(steps: list[Step], wanted: list[Any]) -> list[Step]:
    """The primitives that compute some values."""
    keys, found = set(map(id, wanted)), []
    for step in reversed(steps):
        if any(id(key) in keys for key in step.outs):
            keys |= set(map(id, step.ins))
            found.append(step)
    return found[::-1]


class Value(NamedTuple):
    """What is known of a value of a traced network.

    Attributes:
      shape: its shape.
      param: the parameter that it is, up to the arrangement of its axes.
      axes: ``{(parameter, its axis, axis here)}`` of the parameters that it has entry by entry.
      batch: axis of the examples.
      layer: the last layer whose units run along the axis ``unit``.
      unit: the axis; index i is of unit i modulo the width.
      layers: all layers on whose units it depends, with no other layer in between.
      raw: whether the layer's result has only been rearranged since.
      data: whether it depends on the inputs.
    """

    shape: tuple[int, ...]
    param: str | None = None
    axes: frozenset[tuple[str, int, int]] = frozenset()
    batch: int | None = None
    layer: str | None = None
    unit: int | None = None
    layers: frozenset[str] = frozenset()
    raw: bool = False
    data: bool = False

    @property
    def own(self) -> bool:
        """Whether each entry is of one unit and one example."""
        return self.unit is not None and self.batch is not None


def carried(eqn: Any, i: int, shape: tuple[int, ...], axis: int, out: tuple[int, ...]) -> int | None:
    """The axis of a primitive's result along which an axis of its i-th operand runs.

    Entries keep their index along it, or have it modulo the size of the operand's axis, as where channels are
    flattened.

    Args:
      eqn: the primitive, an equation of a jaxpr.
      i: number of the operand.
      shape: of the operand.
      axis: of the operand.
      out: shape of the result.

    Returns:
      The axis; None if the entries along ``axis`` are summed, reordered, or spread over several axes, or if it is not
      known what becomes of them.
    """
    name, given = eqn.primitive.name, eqn.params
    size = shape[axis]
    if name in ELEMENTWISE or name in ("convert_element_type", "copy", "copy_p", "reduce_precision"):
        return axis if len(shape) == len(out) and size == out[axis] else None
    if name == "broadcast_in_dim":
        to: int = given["broadcast_dimensions"][axis]
        return to if out[to] == size else None
    if name == "transpose":
        return int(given["permutation"].index(axis))
    if name == "reshape":
        minor = math.prod(shape[axis + 1 :])
        places = [j for j in range(len(out)) if math.prod(out[j + 1 :]) == minor]
        fits = [j for j in places if out[j] == size] or [j for j in places if size and out[j] % size == 0]
        if not fits:
            return None
        return fits[-1] if axis == len(shape) - 1 else fits[0]  # An axis of length one may fit several.
    if name in ("squeeze", "expand_dims"):
        dimensions = given["dimensions"]
        kept = [j for j in range(len(shape)) if j not in dimensions]
        return kept.index(axis) if axis in kept else None
    if name.startswith("reduce_window"):
        window = given["window_dimensions"][axis], given["window_strides"][axis], tuple(given["padding"][axis])
        return axis if i == 0 and window == (1, 1, (0, 0)) else None
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        kept = [j for j in range(len(shape)) if j not in given["axes"]]
        return kept.index(axis) if axis in kept else None
    if name in ("concatenate", "rev", "split", "sort", "cumsum", "cummax", "cumprod", "cummin", "cumlogsumexp"):
        changed = next(given[key] for key in ("dimension", "dimensions", "axis") if key in given)
        whole = axis != changed if isinstance(changed, int) else axis not in changed
        joins = name == "concatenate" and all(v.aval.shape[axis] % shape[axis] == 0 for v in eqn.invars)
        return axis if whole or joins else None
    if name == "pad":
        return axis if i == 0 and tuple(given["padding_config"][axis]) == (0, 0, 0) else None
    if name in ("slice", "dynamic_slice"):
        return axis if i == 0 and out[axis] == size else None
    if name == "dot_general":
        contracted, batch = given["dimension_numbers"]
        if axis in batch[i]:
            return list(batch[i]).index(axis)
        frees = [
            [j for j in range(v.aval.ndim) if j not in (*contracted[k], *batch[k])] for k, v in enumerate(eqn.invars)
        ]
        return len(batch[0]) + i * len(frees[0]) + frees[i].index(axis) if axis in frees[i] else None
    return None


class Product(NamedTuple):
    """The axes of a matrix product or convolution of data and a kernel.

    Attributes:
      rows: axes of the kernel along which the data is read.
      units: axes of the kernel along which the units are.
      places: axes of the kernel's window.
      read: axes of the data that ``rows`` meet.
      to: other axis of the data -> axis of the result.
      given: axes of the result along which the units are.
      plain: whether `LayerInputs` can describe it.
      window: of a convolution.
    """

    rows: tuple[int, ...]
    units: tuple[int, ...]
    places: tuple[int, ...]
    read: tuple[int, ...]
    to: Mapping[int, int]
    given: tuple[int, ...]
    plain: bool = True
    window: Window | None = None


def dense(eqn: Any, i: int) -> Product | None:
    """The axes of a matrix product whose i-th operand is the kernel; None if it is a stack of products."""
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        return None
    free = [[j for j in range(eqn.invars[k].aval.ndim) if j not in contracted[k]] for k in (0, 1)]
    start = [0, len(free[0])]
    to = {axis: start[1 - i] + k for k, axis in enumerate(free[1 - i])}
    given = tuple(start[i] + k for k in range(len(free[i])))
    return Product(tuple(contracted[i]), tuple(free[i]), (), tuple(contracted[1 - i]), to, given) if given else None


def convolution(eqn: Any, i: int) -> Product | None:
    """The axes of a convolution; None if it is grouped."""
    given = eqn.params
    if i == 0 or given["feature_group_count"] != 1 or given["batch_group_count"] != 1:
        return None
    (batch, channel, *space), (units, rows, *places), (to_batch, to_units, *to_space) = given["dimension_numbers"]
    size = tuple(eqn.invars[1].aval.shape[j] for j in places)
    window = Window(size, tuple(given["window_strides"]), tuple(map(tuple, given["padding"])), given["rhs_dilation"])
    to = {batch: to_batch, **dict(zip(space, to_space, strict=True))}
    plain = {*given["lhs_dilation"]} == {1}
    return Product((rows,), (units,), tuple(places), (channel,), to, (to_units,), plain, window)
