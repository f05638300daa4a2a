"""Where the axes of an array go: from what a primitive of JAX is given to what it gives."""

from __future__ import annotations

import math
from typing import Any

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
"""Primitives whose every entry depends on the same entries of what they are given."""
MOVING = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "reduce_precision", "reshape",
    "squeeze", "transpose",
})  # fmt: skip
"""Primitives that change the arrangement of entries alone."""


def carried(eqn: Any, i: int, shape: tuple[int, ...], axis: int, out: tuple[int, ...]) -> int | None:
    """The axis of what a primitive gives along which an axis of its i-th operand runs.

    Entries keep their index along it, or have it modulo the size of the operand's axis, as where channels are
    flattened.

    Args:
      eqn: the primitive, an equation of a jaxpr.
      i: number of the operand.
      shape: of the operand.
      axis: of the operand.
      out: shape of what the primitive gives.

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
