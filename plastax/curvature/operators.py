"""Symmetric operators of a loss: Hessian, generalised Gauss-Newton matrix, plain matrices.

Every product runs at full float32 precision: recent accelerators otherwise multiply float32 matrices in TF32 or
bfloat16, whose errors exceed the small eigenvalues that these operators are looked at for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plastax.curvature import losses
from plastax.types import Array, Loss, Operator, Params, Tree


@jax.default_matmul_precision("highest")
def hessian(loss_fn: Callable[..., Array], params: Params, data: Tree | None = None) -> Operator:
    """Hessian of a scalar function, as the forward derivative of its gradient.

    The gradient is linearised here, once: a product costs its linear part alone.

    Args:
      loss_fn: ``(params) -> scalar``, or ``(params, data) -> scalar`` where ``data`` is given.
      params: where the Hessian is taken.
      data: second argument of ``loss_fn``, not differentiated.

    Returns:
      An operator over trees like ``params``.

    References:
      Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994.
    """
    gradient = jax.grad(loss_fn)
    _, product = jax.linearize(lambda p: gradient(p) if data is None else gradient(p, data), params)
    return Operator(product, params)


@jax.default_matmul_precision("highest")
def ggn(apply_fn: Callable[[Params, Tree], Tree], loss: Loss | str, params: Params, data: Tree) -> Operator:
    """Generalised Gauss-Newton matrix ``J^T H J``: ``J`` of the outputs, ``H`` the loss's Hessian in the outputs.

    Positive semi-definite; for cross-entropy it is the Fisher information matrix of the network's own distribution.

    Args:
      apply_fn: ``(params, data) -> outputs``.
      loss: a `Loss`, or one of the names in `losses.LOSSES`.
      params: where the matrix is taken.
      data: the batch, second argument of ``apply_fn`` and of the loss.

    Returns:
      An operator over trees like ``params``.

    Raises:
      ValueError: if ``loss`` is a name that `losses.LOSSES` does not have.

    References:
      Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation 14,
      2002. Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section 8.
    """
    curvature = losses.get(loss).curvature
    outputs, push = jax.linearize(lambda p: apply_fn(p, data), params)
    pull = jax.linear_transpose(push, params)

    def product(tangent: Tree) -> Tree:
        with jax.default_matmul_precision("highest"):
            return pull(curvature(outputs, data, push(tangent)))[0]

    return Operator(product, params)


def from_matrix(a: Array) -> Operator:
    """A symmetric matrix as an operator over vectors.

    Args:
      a: ``[n, n]``, symmetric (not checked).

    Returns:
      An operator over arrays ``[n]``.

    Raises:
      ValueError: if ``a`` is not a square matrix.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        message = f"from_matrix takes a square matrix, got shape {a.shape}"
        raise ValueError(message)
    a = jnp.asarray(a)
    return Operator(
        lambda v: jnp.matmul(a, v, precision=jax.lax.Precision.HIGHEST), jax.ShapeDtypeStruct(a.shape[:1], a.dtype)
    )


class Flat(NamedTuple):
    """An operator over vectors of at least float32.

    Attributes:
      mv: ``[P] -> [P]``, dtype to dtype.
      dim: number of scalars P.
      dtype: of the vectors.
    """

    mv: Callable[[Array], Array]
    dim: int
    dtype: jnp.dtype


def flatten(op: Operator) -> Flat:
    """Writes the operator as one over vectors, in the order of `jax.flatten_util.ravel_pytree`.

    Narrower floating types are widened around the product: a Lanczos recurrence needs float32.
    """
    zeros, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), op.like))
    dtype = jnp.promote_types(zeros.dtype, jnp.float32)

    def product(v: Array) -> Array:
        return ravel_pytree(op.mv(unravel(v.astype(zeros.dtype))))[0].astype(dtype)

    return Flat(product, zeros.size, dtype)


@jax.default_matmul_precision("highest")
def dense(op: Operator) -> Array:
    """The operator's matrix, column by column: for tests and very small networks.

    Args:
      op: an operator over P scalars.

    Returns:
      ``[P, P]``, in the order of `jax.flatten_util.ravel_pytree`.
    """
    mv, dim, dtype = flatten(op)
    return jax.lax.map(mv, jnp.eye(dim, dtype=dtype)).T
