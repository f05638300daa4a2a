"""Counts, effective rank and trace against known spectra."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import curvature
from plastax.curvature import Estimate, Spectrum
from tests.curvature.summaries import EPS, KEYS, SEEDS, Summary, covered, exact_effective_rank, summarise_many

DIM, ORDER, PROBES = 400, 64, 4


@jax.jit
def spectra_of(a: jax.Array, keys: jax.Array) -> Spectrum:
    return jax.vmap(lambda key: curvature.spectrum(curvature.from_matrix(a), key, ORDER, PROBES))(keys)


def measure(a: jax.Array, keys: jax.Array) -> tuple[Spectrum, Summary]:
    s = spectra_of(a, keys)
    return s, summarise_many(s)


def matrix(values: np.ndarray) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))
    spectrum = np.zeros(DIM)
    spectrum[: len(values)] = values
    return ((q * spectrum) @ q.T).astype(np.float32)


BULK = 0.01 * np.random.default_rng(1).standard_normal(380)
COUNTED = {
    "rank 5": np.array([100.0, 50.0, 20.0, 5.0, 1.0]),
    "zero": np.zeros(0),
    "pairs": np.array([3.0, -3.0, 2.0, -2.0, 1.0, -1.0, 0.5, -0.5]),
    "repeated": np.full(30, 2.0),
    "single": np.array([-7.0]),
    "range": np.logspace(0.0, -6.0, 30),
}


@functools.cache
def measured(name: str) -> tuple[Spectrum, Summary]:
    return measure(matrix((COUNTED | DENSE)[name]), KEYS)


def check_sums(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    finite = summary._replace(condition=()) if name == "zero" else summary
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((s, finite)))
    np.testing.assert_allclose(jnp.sum(s.weights, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(s.dim, DIM)


def check_rank(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    for i, eps in enumerate(EPS):
        np.testing.assert_array_equal(summary.rank.value[:, i], np.sum(np.abs(values) > eps))
        np.testing.assert_allclose(summary.rank.standard_error[:, i], 0.0, atol=1e-6)


def check_effective_rank(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    np.testing.assert_allclose(summary.effective_rank.value, exact_effective_rank(values), rtol=5e-3)


def check_trace(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    np.testing.assert_allclose(summary.trace.value, values.sum(), atol=1e-3 * max(np.abs(values).sum(), 1e-9))


def check_negative_mass(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    mass = np.abs(values[values < 0]).sum() / max(np.abs(values).sum(), 1e-9)
    np.testing.assert_allclose(summary.negative_mass.value, mass, atol=1e-4)


def check_frobenius(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    np.testing.assert_allclose(summary.frobenius.value, np.linalg.norm(values), rtol=1e-5)


def check_stable_rank(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    expected = np.sum(values**2) / np.abs(values).max(initial=1e-30) ** 2
    np.testing.assert_allclose(summary.stable_rank.value, expected, rtol=1e-5)


def check_condition(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    beyond = np.abs(values[np.abs(values) > EPS[1]])
    condition = np.abs(values).max() / beyond.min() if beyond.size else np.nan
    np.testing.assert_allclose(summary.condition.value, condition, rtol=1e-4)
    np.testing.assert_allclose(summary.condition.standard_error, 0.0, atol=1e-5)


def check_curve(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    grid, curve = summary.curve
    true = np.sum(np.abs(values)[:, None, None] > grid[None], axis=0)
    near = np.abs(np.abs(values)[:, None, None] / grid[None] - 1.0).min(axis=0, initial=1.0) < 1e-3
    certain = (curve.standard_error == 0) & ~near
    np.testing.assert_array_equal(np.where(certain, curve.value, true), true)
    assert np.mean(certain) > (0.2 if name == "range" else 0.9)


def check_extremes(name: str, values: np.ndarray, s: Spectrum, summary: Summary) -> None:
    ordered = np.sort(np.concatenate([values, np.zeros(DIM - len(values))]))
    atol = 1e-5 * (np.abs(ordered).max() + 1e-30)
    np.testing.assert_allclose(summary.extreme.largest[0], ordered[::-1][:3], atol=atol)
    np.testing.assert_allclose(summary.extreme.smallest[0], ordered[:3], atol=atol)


CHECKS = (
    check_sums, check_rank, check_effective_rank, check_trace, check_negative_mass, check_frobenius, check_stable_rank,
    check_condition, check_curve, check_extremes,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", COUNTED)
def test_low_rank_spectra_are_exact(name: str, check: Callable[..., None]) -> None:
    check(name, COUNTED[name], *measured(name))


DENSE = {
    "uniform": np.linspace(1.0, 2.0, 200),
    "outliers and bulk": np.concatenate([np.linspace(1.0, 10.0, 10), BULK]),
    "repeated outliers and bulk": np.concatenate([np.full(20, 2.0), BULK]),
    "more than the order, half of it equal": np.concatenate([np.full(30, 2.0), np.linspace(3.0, 10.0, 30)]),
    "indefinite": np.linspace(-1.0, 2.0, DIM),
}


def dense_cases(values: np.ndarray, summary: Summary) -> dict[str, tuple[Estimate, float]]:
    """Estimates of all seeds, and the exact numbers."""
    size = np.abs(values)
    ranks = [Estimate(summary.rank.value[:, i], summary.rank.standard_error[:, i]) for i in range(len(EPS))]
    return {
        **{f"rank {eps}": (estimate, np.sum(size > eps)) for estimate, eps in zip(ranks, EPS)},
        "effective rank": (summary.effective_rank, exact_effective_rank(values)),
        "trace": (summary.trace, values.sum()),
        "frobenius": (summary.frobenius, np.sqrt(np.sum(values**2))),
        "stable rank": (summary.stable_rank, np.sum(values**2) / size.max() ** 2),
        "condition": (summary.condition, size.max() / size[size > EPS[1]].min()),
    }


QUANTITIES = (*(f"rank {eps}" for eps in EPS), "effective rank", "trace", "frobenius", "stable rank", "condition")


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", DENSE)
def test_dense_spectra_are_within_their_errors(name: str, quantity: str) -> None:
    estimate, exact = dense_cases(DENSE[name], measured(name)[1])[quantity]
    # Of twelve fixed draws none may be out by four standard errors, one by three.
    assert covered(estimate, exact, 4.0).all()
    assert covered(estimate, exact, 3.0).sum() >= SEEDS - 1


def test_outliers_beside_a_bulk_are_counted() -> None:
    rank = measured("outliers and bulk")[1].rank
    np.testing.assert_array_equal(rank.value[:, 2], 10)
    np.testing.assert_array_equal(rank.standard_error[:, 2], 0)


def test_standard_error_of_a_count_is_the_observed_one() -> None:
    runs = [measure(matrix(DENSE["uniform"]), jax.random.split(jax.random.key(i), SEEDS))[1].rank for i in range(5)]
    value = np.concatenate([run.value[:, 2] for run in runs])
    error = np.concatenate([run.standard_error[:, 2] for run in runs])
    expected = np.sqrt(2 * 200 * (1 - 200 / DIM) / PROBES)
    np.testing.assert_allclose(np.mean(error), expected, rtol=0.05)
    np.testing.assert_allclose(np.std(value), expected, rtol=0.3)


def test_extremes_lie_within_their_residuals() -> None:
    values = np.sort(DENSE["indefinite"])
    _, summary = measured("indefinite")
    for found, bound in (
        (summary.extreme.largest, summary.extreme.largest_residuals),
        (summary.extreme.smallest, summary.extreme.smallest_residuals),
    ):
        distance = np.min(np.abs(np.asarray(found)[..., None] - values), axis=-1)
        assert np.all(distance <= np.asarray(bound) + 1e-5)
    assert np.all(summary.extreme.largest <= values[-1] + 1e-5)
    assert np.all(summary.extreme.smallest >= values[0] - 1e-5)


def test_complete_order_is_exact() -> None:
    values = np.concatenate([np.linspace(-1.0, 3.0, 25), np.full(5, 2.0)])
    q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((30, 30)))
    a = jnp.asarray((q * values) @ q.T, jnp.float32)

    @jax.jit
    def complete(a: jax.Array) -> tuple[Spectrum, Estimate, Estimate, Estimate]:
        s = curvature.spectrum(curvature.from_matrix(a), jax.random.key(0), ORDER, 2)
        return s, s.rank(jnp.asarray(EPS)), s.effective_rank(), s.trace()

    with pytest.warns(UserWarning, match="clamped"):
        s, rank, effective_rank, trace = complete(a)
    assert s.nodes.shape == (2, 30)
    np.testing.assert_allclose(s.nodes[1], np.sort(values), atol=1e-5)
    np.testing.assert_array_equal(rank.value, [np.sum(np.abs(values) > eps) for eps in EPS])
    np.testing.assert_allclose(effective_rank.value, exact_effective_rank(values), rtol=1e-5)
    np.testing.assert_allclose(trace.value, values.sum(), rtol=1e-5)
    assert trace.standard_error == 0


def test_relative_threshold_scalar_shape_and_numerical_rank() -> None:
    _, summary = measured("rank 5")
    assert summary.relative_rank.value.shape == (SEEDS,)
    np.testing.assert_array_equal(summary.relative_rank.value, 2)
    np.testing.assert_array_equal(summary.numerical_rank.value, 5)


density_of = jax.jit(lambda s: s.density())


def test_density_integrates_to_one() -> None:
    for name in ("rank 5", "zero"):
        s = jax.tree.map(lambda x: x[0], measured(name)[0])
        grid, density = density_of(s)
        np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, rtol=1e-3)
    given = jax.eval_shape(lambda s: s.density(grid=jnp.linspace(-1.0, 1.0, 50), bandwidth=0.1), s)
    assert given[1].shape == (50,)


def test_density_draws_zeros_that_are_no_nodes() -> None:
    s = curvature.from_eigenvalues(jnp.array([2.0, 5.0]), 10)
    grid, density = density_of(s)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(np.where(grid < 1.0, density, 0.0), grid), 0.8, rtol=1e-3)
    grid, density = jax.jit(lambda s: s.density(linear=0.1))(s)
    axis = np.arcsinh(grid / 0.1)
    np.testing.assert_allclose(np.diff(axis), axis[1] - axis[0], rtol=1e-2)
    np.testing.assert_allclose(np.trapezoid(density, axis), 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(np.where(grid > 3.0, density, 0.0), axis), 0.1, rtol=1e-2)


def one_probe(a: jax.Array, key: jax.Array) -> Spectrum:
    return curvature.spectrum(curvature.from_matrix(a), key, ORDER, 1)


@pytest.mark.slow
def test_vmap_over_seeds_and_more_probes_equal_single() -> None:
    names = ("rank 5", "zero", "single")
    matrices = np.stack([matrix(COUNTED[name]) for name in names])
    many, single = jax.jit(jax.vmap(one_probe))(matrices, KEYS[:3]), jax.jit(one_probe)
    for i in range(3):
        one = single(matrices[i], KEYS[i])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[i], y, atol=1e-4), many, one)  # noqa: B023
        probes = spectra_of(matrices[i], KEYS)
        np.testing.assert_allclose(probes.nodes[i, 0], one.nodes[0], atol=1e-4)


def test_compiles_once(assert_no_retrace: Callable[[], Any]) -> None:
    matrices = [jnp.asarray(matrix(COUNTED[name])) for name in ("rank 5", "zero")]
    jax.block_until_ready(spectra_of(matrices[0], KEYS))
    with assert_no_retrace():
        jax.block_until_ready(spectra_of(matrices[1], KEYS))


def test_nan_is_not_hidden() -> None:
    s, summary = measure(np.full((DIM, DIM), np.nan, np.float32), KEYS)
    assert np.isnan(s.nodes).all()
    assert np.isnan(summary.trace.value).all()
    assert np.isnan(summary.effective_rank.value).all()
    assert np.isnan(summary.rank.value).all()


@pytest.mark.parametrize("leaf", ["nodes", "weights", "residuals", "leftovers"])
def test_one_nan_is_enough(leaf: str) -> None:
    spectra, _ = measured("rank 5")
    broken = getattr(spectra, leaf)
    broken = broken.at[(2,) + (1,) * (broken.ndim - 1)].set(jnp.nan)
    summary = summarise_many(spectra._replace(**{leaf: broken}))
    for values in jax.tree.leaves(summary._replace(extreme=(), curve=summary.curve[1])):
        assert np.isnan(values[2]).all()
        assert np.isfinite(np.delete(values, 2, axis=0)).all()


@pytest.mark.parametrize("name", ["rank 5", "uniform", "outliers and bulk", "indefinite"])
def test_unknown_residuals_count_nothing_one_by_one(name: str) -> None:
    """A Lanczos without re-orthogonalisation can say nothing about single nodes."""
    values = (COUNTED | DENSE)[name]
    spectra, known = measured(name)
    unknown = spectra._replace(residuals=jnp.full_like(spectra.residuals, jnp.inf))
    summary = summarise_many(unknown)
    for i, eps in enumerate(EPS):
        estimate = Estimate(summary.rank.value[:, i], summary.rank.standard_error[:, i])
        exact = np.sum(np.abs(values) > eps)
        assert (estimate.standard_error > 0).all()
        # At most what the two nodes around each threshold stand for, on top of the probes' part.
        assert (estimate.standard_error < DIM).all()
        assert covered(estimate, exact, 3.0).sum() >= SEEDS - 1
    assert np.isfinite(jax.tree.leaves(summary._replace(extreme=()))[0]).all()
    assert (summary.effective_rank.standard_error >= known.effective_rank.standard_error - 1e-6).all()


@jax.jit
def arbitrary_curve(key: jax.Array, scale: jax.Array) -> Estimate:
    """The curve of quadratures that no operator need have, with residuals from tiny to huge."""
    keys = jax.random.split(key, 3)
    nodes = jnp.sort(jax.random.normal(keys[0], (2, 9)), axis=-1)
    weights = jax.nn.softmax(4.0 * jax.random.normal(keys[1], (2, 9)), axis=-1)
    residuals = scale * jax.random.uniform(keys[2], (2, 9))
    s = Spectrum(nodes, weights, residuals, 50, jnp.zeros(2, int), jnp.zeros(2), jnp.array(False))
    return s.rank_curve(jnp.linspace(0.0, 1.1, 40) * s.norm())[1]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 100.0]))
def test_the_curve_falls_from_at_most_the_dimension_to_zero(seed: int, scale: float) -> None:
    value, error = arbitrary_curve(jax.random.key(seed), jnp.float32(scale))
    assert np.all(np.diff(value) <= 1e-3)
    assert np.all((value >= -1e-3) & (value <= 50.001))
    np.testing.assert_allclose(value[-1], 0.0, atol=1e-3)
    assert np.all((error >= 0) & (error < 100.0))


def published(nodes: np.ndarray, weights: np.ndarray, dim: int, eps: float) -> float:
    """The recipe step by step, in double precision."""
    sd = np.sqrt(1e-5 * max(1.0, nodes.max() - nodes.min()))
    grid = np.linspace(nodes.min() - 0.01, nodes.max() + 0.01, 10_000)
    z = (grid[:, None] - nodes[None]) / sd
    density = (np.exp(-0.5 * z**2) / (sd * np.sqrt(2 * np.pi)) * weights[None]).sum(1)
    density /= density.sum() * (grid[1] - grid[0])
    mask = np.abs(grid) > eps
    return dim * float(np.trapezoid(density[mask], grid[mask]))


def test_published_rank_is_the_published_recipe_and_far_off() -> None:
    """Five eigenvalues, 395 zeros: the recipe finds hundreds; with eps beyond the kernel and a gap, it is right."""
    values = np.array([3.0, 2.0, 1.5, 1.0, 0.7])
    s, summary = jax.tree.map(lambda x: x[0], measure(matrix(values), KEYS))
    eps = np.array([1e-3, 3e-3, 0.3])
    found = jax.jit(curvature.published_epsilon_rank)(s, jnp.asarray(eps))
    nodes, weights = (np.asarray(x[0], np.float64) for x in (s.nodes, s.weights))
    np.testing.assert_allclose(found, [published(nodes, weights, DIM, e) for e in eps], rtol=2e-2)
    assert found[0] > 300
    assert found[1] > 100
    # One probe's five eigenvalues, without the leak.
    assert abs(found[2] - 5) < 4 * np.sqrt(2 * 5)
    np.testing.assert_array_equal(summary.rank.value, 5)
    np.testing.assert_array_equal(summary.rank.standard_error, 0)


def test_bad_arguments() -> None:
    op = curvature.from_matrix(jnp.eye(3))
    for order, probes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="positive"):
            curvature.spectrum(op, KEYS[0], order, probes)
    s = Spectrum(
        jnp.zeros((1, 3)), jnp.ones((1, 3)) / 3, jnp.zeros((1, 3)), 3, jnp.zeros(1, int), jnp.zeros(1), jnp.array(False)
    )
    with pytest.raises(ValueError, match="order"):
        s.extreme(4)
