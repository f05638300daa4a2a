"""Lanczos tridiagonalisation for operators that may be singular: what a collapsed network has.

A Hessian of rank r exhausts its Krylov space after r + 1 steps. What is left then is rounding, and dividing by its norm
puts copies of eigenvalues ("ghosts") or NaN into the spectrum. Here the recurrence is orthogonalised twice against all
earlier vectors, breakdown is tested relative to the size of the operator, and after one it goes on from a fresh random
vector, uncoupled from the earlier ones. Eigenvalues of any multiplicity are so found, and none twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.types import Array, Key

GUARD = 32.0
"""A coupling at most this many rounding errors of the operator's norm ends a Krylov space. Dropping a coupling moves
no eigenvalue by more than it, so the guard must be of that order; sqrt(eps) would cut legitimate couplings."""


class Tridiagonal(NamedTuple):
    """``Q A Q^T = T`` with orthonormal rows in Q, up to the coupling to the row that was not computed.

    Attributes:
      diagonal: ``[K]``.
      couplings: ``[K]``; entry k couples rows k and k + 1, the last one leads out of the basis. Zero at a breakdown.
      basis: ``[K, P]``, orthonormal rows.
      breakdowns: int32 scalar, number of fresh starts.
      leftover: scalar, norm of the operator's image of the last fresh vector; zero without a breakdown.
    """

    diagonal: Array
    couplings: Array
    basis: Array
    breakdowns: Array
    leftover: Array

    def matrix(self) -> Array:
        """T as a matrix ``[K, K]``."""
        inner = self.couplings[:-1]
        return jnp.diag(self.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)


def _orthogonalise(basis: Array, v: Array) -> tuple[Array, Array]:
    """Takes the rows of ``basis`` out of ``v`` by two classical Gram-Schmidt passes; also gives the coefficients."""
    first = basis @ v
    v = v - first @ basis
    second = basis @ v
    return v - second @ basis, first + second


def _unit(v: Array) -> Array:
    return v / jnp.linalg.norm(v)


@jax.default_matmul_precision("highest")
def tridiagonalise(mv: Callable[[Array], Array], start: Array, key: Key, order: int) -> Tridiagonal:
    """Runs ``order`` Lanczos steps from ``start``: one product and two orthogonalisations each, one compiled loop.

    The basis is stored in rows and kept whole, ``order * P`` numbers; in columns the same passes take 5.6 times as
    long on CPU.

    Args:
      mv: symmetric linear map ``[P] -> [P]``.
      start: first vector ``[P]``, not zero.
      key: for the fresh vectors after breakdowns.
      order: number of steps K, at most P. Static.

    Returns:
      The tridiagonal matrix and its basis. NaN where the operator gives NaN.

    Raises:
      ValueError: if ``order`` is not between 1 and P.

    References:
      Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950. Golub and Van Loan, "Matrix
      computations", 4th edition, algorithm 10.1.1 and section 10.3 (complete reorthogonalisation). Giraud, Langou,
      Rozloznik and van den Eshof, "Rounding error analysis of the classical Gram-Schmidt orthogonalization process",
      2005 (two passes are enough).
    """
    (dim,) = start.shape
    if not 1 <= order <= dim:
        message = f"order must be between 1 and the dimension {dim}, got {order}"
        raise ValueError(message)
    tolerance = GUARD * float(jnp.finfo(start.dtype).eps)

    def step(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, q, diagonal, couplings, size, breakdowns, fresh, leftover = carry
        # Rows from k + 1 on are zero, so passes over the padded basis take out what is there.
        basis = basis.at[k].set(q)
        image = mv(q)
        image_norm = jnp.linalg.norm(image)
        size = jnp.maximum(size, image_norm)
        rest, coefficients = _orthogonalise(basis, image)
        coupling = jnp.linalg.norm(rest)
        # `<=`, for the zero operator; NaN compares false and goes on as NaN.
        broken = coupling <= tolerance * size

        def restart() -> Array:
            v = jax.random.normal(jax.random.fold_in(key, k), q.shape, q.dtype)
            # A second round: in the last dimensions the first one leaves little of the vector, and so much rounding.
            return _unit(_orthogonalise(basis, _unit(_orthogonalise(basis, v)[0]))[0])

        following = jax.lax.cond(broken, restart, lambda: rest / coupling)
        return (
            basis,
            following,
            diagonal.at[k].set(coefficients[k]),
            couplings.at[k].set(jnp.where(broken, 0.0, coupling)),
            size,
            breakdowns + (broken & (k < order - 1)),
            broken,
            jnp.where(fresh, image_norm, leftover),
        )

    zeros = jnp.zeros((order,), start.dtype)
    initial = (
        jnp.zeros((order, dim), start.dtype),
        _unit(start),
        zeros,
        zeros,
        jnp.zeros((), start.dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
        jnp.zeros((), start.dtype),
    )
    basis, _, diagonal, couplings, _, breakdowns, _, leftover = jax.lax.fori_loop(0, order, step, initial)
    if order == dim:
        # Nothing is left outside the basis; the last residual is rounding.
        couplings = couplings.at[-1].set(jnp.where(jnp.isnan(couplings[-1]), couplings[-1], 0.0))
    return Tridiagonal(diagonal, couplings, basis, breakdowns, leftover)
