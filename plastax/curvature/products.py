"""Three ways to take a Hessian's products: by the gradient's forward or reverse derivative, or by its differences.

Functions with a derivative of their own (`jax.custom_vjp`: fused attention, quantisers) may lack one of its kinds:

* ``forward``, the derivative of the gradient along a vector. It needs forward mode of both the function's parts,
  which JAX refuses where one of them calls another `jax.custom_vjp`.
* ``reverse``, the gradient of ``<gradient, vector>``. It needs reverse mode alone.
* ``finite``, central differences of the gradient, of two steps and extrapolated (Richardson). They need nothing but the
  gradient: four of them a product. `Operator.error` bounds their error, unless the gradient jumps (ReLU): then they are
  derivatives of a gradient that is smoothed over the step.

The first two are exact. A derivative that is not the function's own (a straight-through estimator) makes a gradient
that belongs to no function. Its Jacobian is not symmetric, which `asymmetry` shows; ``reverse`` takes the transpose.

References:
  Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994 (the first two, and differences).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from plastax import tree
from plastax.curvature import checks
from plastax.errors import ConfigError
from plastax.types import Array, Key, Operator, Params, Tree

Way = Literal["auto", "forward", "reverse", "finite"]
LACKING = (TypeError, ValueError, NotImplementedError)
"""What JAX raises where a kind of derivative is missing."""
FALLBACK = "product='auto' takes central differences of the gradient, whose derivative is missing"
RELATIVE_STEP = 2.0
"""Of central differences, in units of ``sqrt(eps) |p| / |v|``: 7e-4 of ``|p|`` in float32. Along a random vector a
longer step (the usual ``eps^(1/3)``) rounds less. But along the vectors of the largest eigenvalues, which matter most,
the gradient bends within a hundredth of ``|p|``."""
SAFETY = 2.0
"""Of the stated error of differences over the estimated one."""

_PRODUCTS = ("dot_general", "conv_general_dilated")
Gradient = Callable[[Params], tuple[Params, Array]]
"""``params -> (gradient, value)``."""


class Products(NamedTuple):
    """A linearised gradient.

    Attributes:
      mv: ``tangent -> tangent``, the product with the Hessian.
      slopes: the gradient.
      value: that of the function.
      way: how products are taken.
      error: ``tangent -> scalar``, see `Operator.error`; None: rounding alone.
    """

    mv: Callable[[Tree], Tree]
    slopes: Params
    value: Array
    way: Way
    error: Callable[[Tree], Array] | None = None


def _forward(gradient: Gradient, params: Params) -> Products:
    slopes, mv, value = jax.linearize(gradient, params, has_aux=True)
    if _only_transposed(jax.make_jaxpr(mv)(params).jaxpr):
        raise TypeError("can't apply forward-mode autodiff (jvp) to a custom_vjp function.")
    return Products(mv, slopes, value, "forward")


def _only_transposed(jaxpr: Jaxpr) -> bool:
    """Whether a linear map has the backward part of a `jax.custom_vjp`, which JAX refuses only when it is compiled."""
    return any(
        eqn.primitive.name == "custom_lin" or any(map(_only_transposed, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def rounding(mv: Callable[[Tree], Tree], like: Tree) -> float:
    """The coarsest rounding unit of a linear map: of its vectors, and of the matrix products that it takes.

    A network that computes in 16 bits rounds so whatever its parameters are.
    """
    products = _dtypes_of_products(jax.make_jaxpr(mv)(like).jaxpr)
    return max(float(jnp.finfo(dtype).eps) for dtype in (*products, *(leaf.dtype for leaf in jax.tree.leaves(like))))


def _dtypes_of_products(jaxpr: Jaxpr) -> set[Any]:
    operands: list[Any] = [v.aval for eqn in jaxpr.eqns if eqn.primitive.name in _PRODUCTS for v in eqn.invars]
    floats = {x.dtype for x in operands if jnp.issubdtype(x.dtype, jnp.floating)}
    return floats.union(*(_dtypes_of_products(one) for eqn in jaxpr.eqns for one in jaxprs_in_params(eqn.params)))


def _reverse(gradient: Gradient, params: Params) -> Products:
    slopes, pull, value = jax.vjp(gradient, params, has_aux=True)

    @jax.default_matmul_precision("highest")
    def mv(tangent: Tree) -> Tree:
        return pull(tangent)[0]

    return Products(mv, slopes, value, "reverse")


def _finite(gradient: Gradient, params: Params) -> Products:
    slopes, value = gradient(params)
    size = tree.norm(params)
    relative = RELATIVE_STEP * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps) ** 0.5

    def difference(tangent: Tree, steps: float) -> Tree:
        """``(g(p + h v) - g(p - h v)) / 2 h``, ``h |v|`` that many `relative` parts of ``|p|``; its error is O(h^2)."""
        norm = tree.norm(tangent)
        h = steps * relative * jnp.where(size == 0, 1.0, size) / jnp.where(norm == 0, 1.0, norm)

        def moved(by: Array) -> Tree:
            return gradient(jax.tree.map(lambda p, v: p + by.astype(p.dtype) * v, params, tangent))[0]

        return jax.tree.map(lambda a, b: (a - b) / (2.0 * h).astype(a.dtype), moved(h), moved(-h))

    def extrapolated(short: Tree, long: Tree) -> Tree:
        """From two steps, one twice the other: the error is O(h^4)."""
        return jax.tree.map(lambda a, b: (4.0 * a - b) / 3.0, short, long)

    @jax.default_matmul_precision("highest")
    def mv(tangent: Tree) -> Tree:
        return extrapolated(difference(tangent, 1.0), difference(tangent, 2.0))

    @jax.default_matmul_precision("highest")
    def error(tangent: Tree) -> Array:
        # Truncation grows with the step, rounding falls with it: twice the step shows both.
        one, two, four = (difference(tangent, steps) for steps in (1.0, 2.0, 4.0))
        return SAFETY * tree.norm(jax.tree.map(jnp.subtract, extrapolated(one, two), extrapolated(two, four)))

    return Products(mv, slopes, value, "finite", error)


_WAYS = {"forward": _forward, "reverse": _reverse, "finite": _finite}


def check(way: str) -> None:
    """Raises `ConfigError` for an unknown way."""
    if way not in get_args(Way):
        raise ConfigError.unknown("product", way, get_args(Way))


def linearised(gradient: Gradient, params: Params, way: Way) -> Products:
    """The first of the ways that works, or the one that is asked for.

    Raises:
      ConfigError: the function lacks the derivative that ``way`` needs.
    """
    for name in _WAYS if way == "auto" else (way,):
        try:
            made = _WAYS[name](gradient, params)
            if name == "reverse":  # Pulling back may lack a derivative of its own.
                jax.eval_shape(made.mv, params)
        except LACKING as error:
            refused = error
            if name == "finite":
                raise
        else:
            if way == "auto" and made.error is not None:
                warnings.warn(f"{FALLBACK} ({_said(refused)})", stacklevel=2)
            return made
    raise ConfigError(f"product: {way!r} is not allowed for this function ({_said(refused)}); take auto or finite")


def _said(error: Exception) -> str:
    return str(error).splitlines()[0]


def first(at: Callable[..., Products], *args: Tree) -> Way:
    """The way of ``at(*args)``, from its trace alone."""
    ways: list[Way] = []
    jax.eval_shape(lambda *args: ways.append(at(*args).way), *args)
    return ways[0]


def asymmetry(op: Operator, key: Key) -> Array:
    """``|u^T A v - v^T A u|`` of two random vectors, in units of what it would be for unrelated images: a scalar.

    Rounding for a symmetric operator; of the order of 1 for the Jacobian of a gradient of no function, as
    straight-through estimators make it. Lanczos and all spectra assume symmetry.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> op = curvature.from_matrix(jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
      >>> bool(curvature.asymmetry(op, jax.random.key(0)) > 0.1)
      True
    """
    checks.operator(op)
    u, v = (tree.normal_like(each, op.like) for each in jax.random.split(key))
    image_u, image_v = op.mv(u), op.mv(v)
    scale = jnp.hypot(tree.norm(image_u), tree.norm(image_v))
    return jnp.abs(tree.dot(u, image_v) - tree.dot(v, image_u)) / jnp.where(scale == 0, 1.0, scale)
