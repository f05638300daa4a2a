"""Lanczos tridiagonalisation for operators that may be singular, as those of collapsed networks are.

A Hessian of rank r exhausts its Krylov space after r + 1 steps. The rest is rounding, and dividing by its norm puts
copies of eigenvalues ("ghosts") or NaN into the spectrum. Here every new vector is orthogonalised against all earlier
ones, and breakdown is tested relative to the size of the operator. After a breakdown the recurrence restarts from a
fresh random vector, uncoupled from the earlier ones. So it finds eigenvalues of any multiplicity, and none twice.

In exact arithmetic an image has components along the last two vectors alone. The three-term recurrence removes these
first; what a sweep over the whole basis then finds is the rounding that was lost. So one sweep is as good as two from
the start, and a second one follows only if the first removed much of the vector ("twice is enough").

The basis takes most of the memory, and the sweeps most of the time beside the product. `Reorthogonalise` and the type
of the basis trade them for accuracy; `tridiagonalise_on_host` keeps the basis in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from plastax.curvature import checks
from plastax.types import Array, Key

BREAKDOWN_ROUNDINGS = 32.0
"""A coupling at most this many rounding errors of the operator's norm ends a Krylov space. Dropping a coupling moves
no eigenvalue by more than it, so the bound must be of that order; sqrt(eps) would cut legitimate couplings."""
CANCELLATION = 0.7
"""A sweep that leaves less than this share of a vector's norm is followed by another."""
MAX_SWEEPS = 4
"""Most sweeps over one vector: a bound for vectors that are rounding alone, not a setting."""
FRESH_SWEEPS = 2
"""Least number of sweeps over a fresh vector, which has components along the whole basis."""
MAX_BLOCKS, MIN_BLOCK_ROWS = 5, 16
"""The basis is kept in at most this many blocks of at least that many rows; a sweep skips the empty blocks."""

NEEDS_VALUES = "a basis on the host needs values: call it outside of jit, vmap and grad, or use basis='device'"

Reorthogonalise: TypeAlias = Literal["full", "none"] | int
"""What a new vector is orthogonalised against, beyond the three-term recurrence: ``"full"``, all earlier vectors;
``"none"``; or a number w, the last w vectors. Only these are kept."""


Draw: TypeAlias = Callable[[Key], Array]
"""Draws a random vector."""


class Tridiagonal(NamedTuple):
    """``Q A Q^T = T`` with orthonormal rows in Q, up to the coupling to the row that was not computed.

    Attributes:
      diagonal: ``[K]``.
      couplings: ``[K]``; entry k couples rows k and k + 1, the last one leads out of the basis. Zero at a breakdown.
      blocks: the rows of the basis that are kept, ``[rows, P]`` each: all K in order, or the last w, row k in place
        ``k mod w``, or none.
      breakdowns: int32 scalar, number of fresh starts.
      leftover: scalar, norm of the operator's image of the last fresh vector; zero without a breakdown.
    """

    diagonal: Array
    couplings: Array
    blocks: tuple[Array, ...]
    breakdowns: Array
    leftover: Array

    @property
    def basis(self) -> Array:
        """The kept rows as one array ``[rows, P]``, a copy; raises ValueError if none are kept."""
        if not self.blocks:
            raise ValueError("this recurrence has kept no basis; run it with reorthogonalise='full'")
        return jnp.concatenate(self.blocks)

    def matrix(self) -> Array:
        """T as a matrix ``[K, K]``."""
        inner = self.couplings[:-1]
        return jnp.diag(self.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)


def kept_rows(order: int, reorthogonalise: Reorthogonalise = "full") -> int:
    """Number of basis vectors that are kept, from 0 to ``order``; raises ValueError for an unknown mode."""
    if reorthogonalise in ("full", "none"):
        return order if reorthogonalise == "full" else 0
    if isinstance(reorthogonalise, str | bool) or reorthogonalise < 1:
        raise ValueError(
            f"reorthogonalise must be 'full', 'none' or a positive number of vectors, got {reorthogonalise!r}"
        )
    return min(reorthogonalise, order)


def block_sizes(rows: int) -> list[int]:
    """Numbers of rows of the blocks that hold a basis of ``rows`` rows."""
    if not rows:
        return []
    number = min(MAX_BLOCKS, max(1, rows // MIN_BLOCK_ROWS))
    size = -(-rows // number)
    return [min(size, rows - start) for start in range(0, rows, size)]


def _packed(v: Array, dtype: Any) -> Array:
    """Vectors as they are stored: numbers of ``dtype``, those in bfloat16 as their bits.

    XLA:CPU cannot write single rows into a bfloat16 array. It widens the whole array, writes, and narrows it again.
    """
    v = v.astype(dtype)
    return jax.lax.bitcast_convert_type(v, jnp.uint16) if v.dtype == jnp.bfloat16 else v


def _unpacked(stored: Array) -> Array:
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored


class _Basis(NamedTuple):
    """Rows of a basis in blocks: a carry of the loop, updated in place.

    One array per block, because a slice of one large array would be copied; under a condition each, because the first
    blocks fill up first. Stored in rows: in columns the same sweeps take 5.6 times as long on CPU.
    """

    blocks: tuple[Array, ...]

    @property
    def starts(self) -> list[int]:
        return [sum(b.shape[0] for b in self.blocks[:i]) for i in range(len(self.blocks))]

    @property
    def rows(self) -> int:
        return sum(b.shape[0] for b in self.blocks)

    def store(self, k: Array, q: Array) -> _Basis:
        """Writes vector k, over vector ``k - rows``."""
        blocks = []
        for start, block in zip(self.starts, self.blocks):
            row = k % self.rows - start
            inside = jnp.clip(row, 0, block.shape[0] - 1)
            written = _packed(q, _unpacked(block).dtype)
            blocks.append(block.at[inside].set(jnp.where(row == inside, written, block[inside])))
        return _Basis(tuple(blocks))

    def sweep(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Removes from v its components along the kept vectors, among them vector k; returns also that along vector k.

        Classical Gram-Schmidt within a block, modified between blocks.
        """

        def through(block: Array, start: int, v: Array, found: Array) -> tuple[Array, Array]:
            rows = _unpacked(block).astype(v.dtype)
            components = rows @ v
            own = jnp.arange(rows.shape[0]) == k % self.rows - start
            return v - components @ rows, found + jnp.sum(jnp.where(own, components, 0.0))

        found = jnp.zeros((), v.dtype)
        for start, block in zip(self.starts, self.blocks):
            # Rows that are not filled yet are zero and remove nothing.
            v, found = jax.lax.cond(k >= start, through, lambda _, __, v, found: (v, found), block, start, v, found)
        return v, found


class _Sweeping(NamedTuple):
    """A vector while it is orthogonalised: itself, its norm, its component along the last basis vector so far."""

    vector: Array
    norm: Array
    component: Array
    broken: Array
    sweeps: Array
    due: Array


def _norm(v: Array) -> Array:
    # `jnp.linalg.norm` and `jnp.dot` of a long vector take four times as long on CPU.
    return jnp.sqrt(jnp.sum(jnp.square(v)))


def _unit(v: Array) -> Array:
    return v / _norm(v)


def _checked(start: Array, order: int, dim: int | None, draw: Draw | None) -> tuple[int, Draw]:
    """The dimension, and what draws a fresh vector."""
    dim = start.size if dim is None else dim
    if not 1 <= order <= dim:
        raise ValueError(f"order must be between 1 and the dimension {dim}, got {order}")
    return dim, draw or (lambda key: jax.random.normal(key, start.shape, start.dtype))


def _orthogonalised(
    basis: _Basis, k: Array, rest: Array, component: Array, least: Array, fresh: Callable[[], Array]
) -> _Sweeping:
    """What is left of an image outside the basis, or a fresh vector if its norm is at most ``least``."""

    def sweep(s: _Sweeping) -> _Sweeping:
        swept, found = basis.sweep(k, s.vector)
        norm = _norm(swept)
        # `<=`, for the zero operator; NaN compares false and stays NaN.
        ends = ~s.broken & (norm <= least)
        cancelled = (norm < CANCELLATION * s.norm) & (s.sweeps < MAX_SWEEPS - 1)
        swept = jax.lax.cond(ends, fresh, lambda: swept)
        return _Sweeping(
            swept,
            jnp.where(ends, jnp.sqrt(1.0 * rest.size), norm).astype(rest.dtype),
            s.component + jnp.where(s.broken, 0.0, found),
            s.broken | ends,
            jnp.where(ends, 0, s.sweeps + 1),
            jnp.where(ends, FRESH_SWEEPS, jnp.maximum(s.due - 1, cancelled.astype(jnp.int32))),
        )

    # A loop, not branches: `vmap` turns branches into both of their sides, but a loop ends when no one needs it.
    one, no = jnp.ones((), jnp.int32), jnp.zeros((), bool)
    return jax.lax.while_loop(lambda s: s.due > 0, sweep, _Sweeping(rest, _norm(rest), component, no, 0 * one, one))


@jax.default_matmul_precision("highest")
def tridiagonalise(
    mv: Callable[[Array], Array],
    start: Array,
    key: Key,
    order: int,
    *,
    reorthogonalise: Reorthogonalise = "full",
    basis_dtype: Any = None,
    dim: int | None = None,
    draw: Draw | None = None,
) -> Tridiagonal:
    """Runs ``order`` Lanczos steps from ``start``: one product and about one sweep each, in one compiled loop.

    With ``"full"`` the basis is orthonormal to a few rounding errors. It takes ``order * P`` numbers, and a step reads
    its filled part twice.

    * ``"none"`` keeps four vectors. Once an eigenvalue has converged, rounding brings it back, and T gets copies of it
      ("ghosts"). They share its weight: sums by weight stay right, counts of Ritz values do not. Breakdowns are noticed
      only by chance.
    * A window of w vectors costs what w vectors cost. It delays the ghosts, but does not prevent them.
    * A basis in bfloat16 takes half the memory. It leaves two vectors orthogonal to about ``2e-3 / sqrt(P)``, the
      random part of its rounding, instead of 1e-7. T errs by some such units of the operator's norm; no ghosts. A fresh
      vector after a breakdown sees as much of what was found before, which ``leftover`` shows. The rows of `basis`
      themselves are orthonormal to 2e-3. Slower on CPU, which has to widen the numbers first.

    Args:
      mv: symmetric linear map ``[P] -> [P]``.
      start: first vector ``[P]``, not zero.
      key: for the fresh vectors after breakdowns.
      order: number of steps K, at most P. Static.
      reorthogonalise: see `Reorthogonalise`. Static.
      basis_dtype: of the stored basis; the dtype of ``start`` by default. Static.
      dim: dimension of the space that ``mv`` maps to itself, where that is less than P. Static.
      draw: ``(key) -> [P]``: a random vector of that space; standard normal entries by default.

    Returns:
      The tridiagonal matrix and its basis. NaN where the operator gives NaN.

    Raises:
      ValueError: if ``order`` is not between 1 and P, or for an unknown ``reorthogonalise``.

    References:
      Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950. Golub and Van Loan, "Matrix
      computations", 4th edition, algorithm 10.1.1 and section 10.3 (complete reorthogonalisation). Paige,
      "Computational variants of the Lanczos method for the eigenproblem", 1972, variant A1 (the recurrence), and
      "Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem", 1980 (what ghosts are).
      Daniel, Gragg, Kaufman and Stewart, "Reorthogonalization and stable algorithms for updating the Gram-Schmidt QR
      factorization", 1976 (when to sweep again). Giraud, Langou, Rozloznik and van den Eshof, "Rounding error analysis
      of the classical Gram-Schmidt orthogonalization process", 2005 (twice is enough). Simon, "The Lanczos algorithm
      with partial reorthogonalization", 1984, theorem 5 (orthogonality to sqrt(eps) is enough for T).
    """
    dim, draw = _checked(start, order, dim, draw)
    dtype = start.dtype
    rows = kept_rows(order, reorthogonalise)
    tolerance = BREAKDOWN_ROUNDINGS * float(jnp.finfo(dtype).eps)

    def step(k: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        basis, q, previous, diagonal, couplings, size, breakdowns, fresh, leftover = carry
        basis = basis.store(k, q) if rows else basis
        image = mv(q)
        image_norm = _norm(image)
        size = jnp.maximum(size, image_norm)
        # In this order, the component after the first subtraction, the recurrence is Paige's stable one. At k = 0 the
        # coupling is the last one, which is still zero.
        rest = image - couplings[k - 1] * previous
        component = jnp.sum(q * rest)
        rest = rest - component * q

        s = _orthogonalised(basis, k, rest, component, tolerance * size, lambda: draw(jax.random.fold_in(key, k)))
        return (
            basis,
            s.vector / s.norm,
            q,
            diagonal.at[k].set(s.component),
            couplings.at[k].set(jnp.where(s.broken, 0.0, s.norm)),
            size,
            breakdowns + (s.broken & (k < order - 1)).astype(jnp.int32),
            s.broken,
            jnp.where(fresh, image_norm, leftover),
        )

    zeros, zero = jnp.zeros((order,), dtype), jnp.zeros((), dtype)
    initial = (
        _Basis(tuple(_packed(jnp.zeros((n, start.size)), basis_dtype or dtype) for n in block_sizes(rows))),
        _unit(start),
        jnp.zeros_like(start),
        zeros,
        zeros,
        zero,
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
        zero,
    )
    basis, _, _, diagonal, couplings, _, breakdowns, _, leftover = jax.lax.fori_loop(0, order, step, initial)
    if rows == dim:
        # Nothing is left outside the basis; the last residual is rounding.
        couplings = couplings.at[-1].set(jnp.where(jnp.isnan(couplings[-1]), couplings[-1], 0.0))
    return Tridiagonal(diagonal, couplings, tuple(map(_unpacked, basis.blocks)), breakdowns, leftover)


def compiled(mv: Callable[[Array], Array], like: Any) -> Callable[[Array], Array]:
    """The map as one program, called with values; raises ValueError if it closes over traced arrays."""
    # What it closes over becomes arguments: constants of the program would be copied into it.
    traced = jax.make_jaxpr(mv)(like)
    if not checks.concrete(traced.consts):
        raise ValueError(NEEDS_VALUES)

    @jax.jit
    def product(constants: list[Array], v: Array) -> Array:
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(v)[0]

    return lambda v: product(traced.consts, v)


def tridiagonalise_on_host(
    mv: Callable[[Array], Array],
    start: Array,
    key: Key,
    order: int,
    *,
    dim: int | None = None,
    draw: Draw | None = None,
) -> Tridiagonal:
    """`tridiagonalise` with full reorthogonalisation against a basis in the host's memory.

    Only the product runs on the device, which holds a few vectors; every step moves one there and one back. The
    recurrence is a plain loop in Python: it can be neither jitted nor mapped.

    Args:
      mv: symmetric linear map ``[P] -> [P]``; `compiled`, or it runs operation by operation.
      start: first vector ``[P]``, not zero.
      key: for the fresh vectors after breakdowns.
      order: number of steps K, at most P.
      dim: as in `tridiagonalise`.
      draw: as in `tridiagonalise`.

    Returns:
      The tridiagonal matrix and its basis, NumPy arrays. NaN where the operator gives NaN.

    Raises:
      ValueError: if ``order`` is not between 1 and P, or anything is traced.

    References:
      As in `tridiagonalise`.
    """
    dim, draw = _checked(start, order, dim, draw)
    if not checks.concrete((start, key)):
        raise ValueError(NEEDS_VALUES)
    dtype = np.dtype(start.dtype)
    tolerance = BREAKDOWN_ROUNDINGS * np.finfo(dtype).eps
    basis = np.empty((order, start.size), dtype)
    diagonal, couplings = np.zeros(order, dtype), np.zeros(order, dtype)
    size, leftover, breakdowns, fresh, q = 0.0, 0.0, 0, False, np.asarray(_unit(start))
    for k in range(order):
        basis[k] = q
        filled = basis[: k + 1]
        image = np.asarray(mv(jnp.asarray(q)))
        image_norm = float(np.linalg.norm(image))
        size, leftover = float(np.maximum(size, image_norm)), image_norm if fresh else leftover
        rest = image - couplings[k - 1] * basis[k - 1] if k else image
        diagonal[k] = q @ rest
        rest = rest - diagonal[k] * q
        norm, fresh, sweeps, due = np.linalg.norm(rest), False, 0, 1
        while due:
            components = filled @ rest
            rest = rest - components @ filled
            before, norm = norm, np.linalg.norm(rest)
            diagonal[k] += 0.0 if fresh else components[-1]
            cancelled = bool(norm < CANCELLATION * before) and sweeps < MAX_SWEEPS - 1
            sweeps, due = sweeps + 1, max(due - 1, int(cancelled))
            if not fresh and norm <= tolerance * size:
                rest = np.asarray(draw(jax.random.fold_in(key, k)))
                norm, fresh, sweeps, due = np.linalg.norm(rest), True, 0, FRESH_SWEEPS
        couplings[k] = 0.0 if fresh else norm
        breakdowns += fresh and k < order - 1
        q = rest / norm
    if order == dim:
        couplings[-1] *= 0.0
    # NumPy arrays, as JAX arrays would go back to the device.
    found: Any = (diagonal, couplings, (basis,), np.int32(breakdowns), dtype.type(leftover))
    return Tridiagonal(*found)
