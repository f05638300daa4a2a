"""The recurrence on regular, singular and degenerate matrices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax.curvature import lanczos

DIM, ORDER = 120, 40


def matrix(values: list[float] | np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix of ``DIM`` rows with these eigenvalues and zeros."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))
    spectrum = np.zeros(DIM)
    spectrum[: len(values)] = values
    return ((q * spectrum) @ q.T).astype(np.float32)


@jax.jit
def run(a: jax.Array, key: jax.Array) -> lanczos.Tridiagonal:
    start = jax.random.normal(key, (DIM,))
    return lanczos.tridiagonalise(lambda v: jnp.matmul(a, v, precision="highest"), start, key, ORDER)


CASES = {
    "regular": np.linspace(-1.0, 3.0, DIM),
    "low rank": [100.0, 50.0, 20.0, 5.0, 1.0],
    "zero": [],
    "pairs": [3.0, -3.0, 1.0, -1.0],
    "repeated": [2.0] * 15,
    "repeated and distinct": [2.0] * 5 + [float(i) for i in range(3, 12)],
    "range": np.logspace(0.0, -6.0, 30),
    "identity": [1.0] * DIM,
    "single": [7.0],
}


@pytest.mark.parametrize("name", CASES)
def test_tridiagonal_relation(name: str) -> None:
    a = matrix(CASES[name])
    t = run(a, jax.random.key(1))
    basis = np.asarray(t.basis, np.float64)
    scale = max(np.abs(np.asarray(CASES[name])).max(initial=0.0), 1e-30)
    np.testing.assert_allclose(basis @ basis.T, np.eye(ORDER), atol=1e-6)
    np.testing.assert_allclose(basis @ a @ basis.T, t.matrix(), atol=1e-5 * scale)
    # What leads out of the basis is the last coupling alone.
    rest = a @ basis.T - basis.T @ np.asarray(t.matrix(), np.float64)
    np.testing.assert_allclose(rest[:, :-1], 0.0, atol=1e-5 * scale)
    np.testing.assert_allclose(np.linalg.norm(rest[:, -1]), t.couplings[-1], atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "count"), [("low rank", 5), ("pairs", 4), ("repeated", 15), ("single", 1)])
def test_finds_every_copy_and_no_ghost(name: str, count: int) -> None:
    t = run(matrix(CASES[name]), jax.random.key(2))
    values = np.linalg.eigvalsh(np.asarray(t.matrix(), np.float64))
    expected = np.zeros(ORDER)
    expected[:count] = CASES[name]
    np.testing.assert_allclose(values, np.sort(expected), atol=1e-5 * max(CASES[name]))
    assert t.breakdowns > 0
    assert t.leftover <= 1e-5 * max(CASES[name])


def test_breakdowns_are_counted() -> None:
    assert run(matrix(CASES["regular"]), jax.random.key(0)).breakdowns == 0
    assert run(matrix(CASES["zero"]), jax.random.key(0)).breakdowns == ORDER - 1
    # One vector for each of the five eigenvalues and one for zero, then a breakdown at every step.
    assert run(matrix(CASES["low rank"]), jax.random.key(0)).breakdowns == ORDER - 6


def test_a_complete_basis_diagonalises() -> None:
    a = matrix(CASES["repeated and distinct"])

    @jax.jit
    def complete(a: jax.Array) -> lanczos.Tridiagonal:
        mv = functools.partial(jnp.matmul, a, precision="highest")
        return lanczos.tridiagonalise(mv, jnp.ones(DIM), jax.random.key(0), DIM)

    t = complete(a)
    basis = np.asarray(t.basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(DIM), atol=5e-6)
    np.testing.assert_allclose(np.linalg.eigvalsh(t.matrix()), np.linalg.eigvalsh(a), atol=5e-5)
    assert t.couplings[-1] == 0


def test_vmap_equals_single() -> None:
    a = np.stack([matrix(CASES[name]) for name in ("regular", "low rank", "zero")])
    keys = jax.random.split(jax.random.key(3), 3)
    many = jax.jit(jax.vmap(run))(a, keys)
    for i in range(3):
        single = run(a[i], keys[i])
        np.testing.assert_allclose(many.diagonal[i][:5], single.diagonal[:5], atol=1e-4)
        assert np.all(np.isfinite(many.basis[i]))
        assert many.breakdowns[i] == single.breakdowns


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    rank=st.integers(0, 12),
    copies=st.integers(1, 2),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**16),
)
def test_rank_is_exact_at_every_scale(rank: int, copies: int, exponent: int, seed: int) -> None:
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], rank)
    values = np.repeat(np.linspace(1.0, 3.0, rank) * signs, copies) * 10.0**exponent
    t = run(matrix(values, seed), jax.random.key(seed))
    found = np.linalg.eigvalsh(np.asarray(t.matrix(), np.float64))
    assert np.sum(np.abs(found) > 0.5 * 10.0**exponent) == rank * copies


def test_a_window_keeps_the_last_vectors() -> None:
    a, start = jnp.asarray(matrix(CASES["regular"])), jax.random.normal(jax.random.key(0), (DIM,))

    def kept(rows: lanczos.Reorthogonalise) -> lanczos.Tridiagonal:
        return lanczos.tridiagonalise(
            lambda v: jnp.matmul(a, v, precision="highest"), start, jax.random.key(0), 12, reorthogonalise=rows
        )

    full, window, none = kept("full"), kept(5), kept("none")
    # Vector k lies in place k mod 5.
    np.testing.assert_allclose(window.basis, full.basis[np.asarray([10, 11, 7, 8, 9])], atol=1e-5)
    np.testing.assert_allclose(none.couplings, full.couplings, atol=1e-5)
    with pytest.raises(ValueError, match="no basis"):
        _ = none.basis


def test_nan_stays_nan_and_bad_orders_raise() -> None:
    assert np.isnan(run(np.full((DIM, DIM), np.nan, np.float32), jax.random.key(0)).diagonal).all()
    for order in (0, 5):
        with pytest.raises(ValueError, match="order"):
            lanczos.tridiagonalise(lambda v: v, jnp.ones(4), jax.random.key(0), order)
