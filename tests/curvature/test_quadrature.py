"""Prescribed spectra of size 2,000, the modes of Lanczos for large models, and how probes and seeds are batched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import curvature
from plastax.curvature import Estimate, Extremes, Spectrum
from plastax.types import Operator

DIM, ORDER, PROBES = 2000, 64, 4
# Programs that are compiled for more time than they run.
FAST = {"xla_backend_optimization_level": 0}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "none": {"reorthogonalise": "none"},
    "window": {"reorthogonalise": 8},
    "bfloat16": {"basis_dtype": jnp.bfloat16},
}


def reflected(values: jax.Array, mirrors: jax.Array) -> Operator:
    """The symmetric matrix ``H D H^T``: D these eigenvalues, H three Householder reflections."""

    def product(v: jax.Array) -> jax.Array:
        for mirror in mirrors:
            v = v - 2.0 * jnp.sum(mirror * v) * mirror
        v = values * v
        for mirror in mirrors[::-1]:
            v = v - 2.0 * jnp.sum(mirror * v) * mirror
        return v

    return Operator(product, values)


def mirrors(dim: int, seed: int = 0) -> np.ndarray:
    m = np.random.default_rng(seed).standard_normal((3, dim))
    return (m / np.linalg.norm(m, axis=1, keepdims=True)).astype(np.float32)


def padded(values: Any, dim: int = DIM) -> np.ndarray:
    return np.pad(np.asarray(values, np.float32), (0, dim - len(values)))


class Summary(NamedTuple):
    rank: Estimate
    trace: Estimate
    extreme: Extremes
    counted: jax.Array


@functools.partial(jax.jit, compiler_options=FAST)
def summarise(s: Spectrum, eps: jax.Array) -> Summary:
    return Summary(s.rank(eps), s.trace(), s.extreme(3), s.counts().counted)


@functools.partial(jax.jit, static_argnames="mode", compiler_options=FAST)
def measure(values: jax.Array, mirrors: jax.Array, key: jax.Array, mode: str = "full") -> Spectrum:
    return curvature.spectrum(reflected(values, mirrors), key, ORDER, PROBES, **MODES[mode])


PRESCRIBED = {
    "rank 5": ([100.0, 50.0, 20.0, 5.0, 1.0], [0.5, 10.0]),
    "zero": ([], [1e-6, 1.0]),
    "pairs": ([3.0, -3.0, 2.0, -2.0, 1.0, -1.0, 0.5, -0.5], [0.3, 1.5]),
    "30 equal": ([2.0] * 30, [1e-3, 1.0]),
    "dynamic range": (np.logspace(0.0, -6.0, 25), [3.0e-3, 0.03]),
    "indefinite range": (np.logspace(0.0, -6.0, 25) * np.resize([1.0, -1.0], 25), [3.0e-3, 0.03]),
    "tiny": ([1e-9, 5e-10], [7e-10, 1e-10]),
}


BULK = np.concatenate([np.linspace(2.0, 10.0, 10), np.linspace(-0.5, 1.0, 600)])


@pytest.mark.parametrize("name", PRESCRIBED)
def test_prescribed_spectra_are_counted_exactly(name: str) -> None:
    values, eps = PRESCRIBED[name]
    exact = np.sort(padded(values).astype(np.float64))
    scale = max(np.abs(exact).max(), 1e-30)
    for seed in range(3):
        s = measure(padded(values), mirrors(DIM), jax.random.key(seed))
        summary = summarise(s, np.float32(eps))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((s, summary)))
        np.testing.assert_array_equal(summary.rank.value, [np.sum(np.abs(exact) > e) for e in eps])
        np.testing.assert_allclose(summary.rank.standard_error, 0.0, atol=1e-6)
        np.testing.assert_allclose(summary.extreme.largest, exact[::-1][:3], atol=1e-4 * scale)
        np.testing.assert_allclose(summary.extreme.smallest, exact[:3], atol=1e-4 * scale)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    dim=st.sampled_from((150, DIM)),
    distinct=st.integers(0, 10),
    copies=st.integers(1, 3),
    exponent=st.integers(-10, 10),
    seed=st.integers(0, 2**16),
)
def test_low_rank_is_exact_at_every_size_and_scale(
    dim: int, distinct: int, copies: int, exponent: int, seed: int
) -> None:
    scale = 10.0**exponent
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], distinct)
    values = np.repeat(np.linspace(1.0, 3.0, distinct) * signs, copies) * scale
    eps = np.float32([0.5 * scale, 2.1 * scale])
    s = measure(padded(values, dim), mirrors(dim, seed), jax.random.key(seed))
    summary = summarise(s, eps)
    np.testing.assert_array_equal(summary.rank.value, [np.sum(np.abs(values) > e) for e in eps])
    exact = np.sort(padded(values, dim))
    np.testing.assert_allclose(summary.extreme.largest, exact[::-1][:3], atol=3e-4 * scale)
    np.testing.assert_allclose(summary.extreme.smallest, exact[:3], atol=3e-4 * scale)


@pytest.mark.parametrize(
    "mode", ["none", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("bfloat16", "window"))]
)
def test_modes_agree_with_full_reorthogonalisation(mode: str) -> None:
    for values, eps in (*PRESCRIBED.values(), (BULK, [0.4, 1.5])):
        arguments = padded(values), mirrors(DIM), jax.random.key(1)
        full, s = measure(*arguments), measure(*arguments, mode=mode)
        expected, summary = (summarise(x, np.float32(eps)) for x in (full, s))
        assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves((s, summary)))
        scale = np.abs(values).max() if len(values) else 1e-30
        # The same start vectors, so the same quadrature: ghosts share their eigenvalue's weight.
        for power in (1, 2):
            moments = [np.sum(x.weights * (np.asarray(x.nodes) / scale) ** power, axis=1) for x in (s, full)]
            np.testing.assert_allclose(*moments, atol=1e-5)
        for e in eps:
            mass = [np.sum(np.where(np.abs(x.nodes) > e, x.weights, 0.0), axis=1) for x in (s, full)]
            # Inside the bulk a node falls on this or on that side.
            np.testing.assert_allclose(*mass, atol=0.02 if values is BULK else 1e-4)
        exact = np.asarray([np.sum(np.abs(values) > e) for e in eps])
        assert np.all(np.abs(summary.rank.value - exact) <= 4.0 * np.asarray(summary.rank.standard_error) + 0.01)
        # Honest is not enough: as sharp as counts by weight are.
        assert np.all(np.asarray(summary.rank.standard_error) <= 3.0 * np.sqrt(2.0 * exact / PROBES) + 0.5)
        assert np.abs(summary.trace.value - np.sum(values)) <= 4.0 * summary.trace.standard_error + 5e-3 * scale
        # Ghosts take the places in which others would have converged.
        atol = (5e-4 if mode == "bfloat16" else 1e-4) * scale
        np.testing.assert_allclose(summary.extreme.largest[0], expected.extreme.largest[0], atol=atol)
        np.testing.assert_allclose(summary.extreme.smallest[0], expected.extreme.smallest[0], atol=atol)
        if mode in ("none", "window"):
            assert not np.any(summary.counted)


def test_cheap_modes_have_ghosts_and_the_others_none() -> None:
    arguments = padded(PRESCRIBED["rank 5"][0]), mirrors(DIM), jax.random.key(0)
    beyond = {
        mode: np.sum(np.asarray(measure(*arguments, mode=mode).nodes) > 0.5, axis=1)
        for mode in ("none", "full", "bfloat16")
    }
    assert np.all(beyond["none"] > 5)
    for mode in ("full", "bfloat16"):
        np.testing.assert_array_equal(beyond[mode], 5)


def test_basis_on_the_host_equals_the_device() -> None:
    for name in ("rank 5", "zero"):
        values, eps = PRESCRIBED[name]
        op = reflected(jnp.asarray(padded(values)), jnp.asarray(mirrors(DIM)))
        s = curvature.spectrum(op, jax.random.key(0), ORDER, PROBES, basis="host")
        device = measure(padded(values), mirrors(DIM), jax.random.key(0))
        scale = max(np.abs(values).max(initial=0.0), 1e-30)
        np.testing.assert_allclose(s.nodes, device.nodes, atol=1e-5 * scale)
        rank = summarise(s, np.float32(eps)).rank
        np.testing.assert_array_equal(rank.value, [np.sum(np.abs(values) > e) for e in eps])
        np.testing.assert_array_equal(s.breakdowns > 0, True)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.eval_shape(lambda key: curvature.spectrum(op, key, 8, basis="host"), jax.random.key(0))

    def mapped(x: jax.Array) -> jax.Array:
        return curvature.spectrum(curvature.from_matrix(x), jax.random.key(0), 2, basis="host").nodes

    with pytest.raises(ValueError, match="outside of jit"):
        jax.vmap(mapped)(jnp.ones((2, 3, 3)))


# A network's Hessian for several seeds: 4 seeds, 3 probes, order 6, so that nodes are smooth functions of the rounding.
def seed_nodes(params: jax.Array, key: jax.Array, batch: int | None = None) -> jax.Array:
    x = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
    op = curvature.hessian(lambda p: jnp.mean(jnp.square(jnp.tanh(x @ p["w"]) @ p["v"] - 0.5)), params)
    return curvature.spectrum(op, key, 6, 3, batch=batch).nodes


def seeds() -> tuple[dict[str, jax.Array], jax.Array]:
    params = {
        "w": jax.random.normal(jax.random.key(1), (4, 3, 5)),
        "v": jax.random.normal(jax.random.key(2), (4, 5)),
    }
    return params, jax.random.split(jax.random.key(3), 4)


@pytest.fixture(scope="module")
def together() -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(seed_nodes), compiler_options=FAST)(*seeds()))


def test_seeds_together_equal_seeds_alone(compilations: Callable[[], int]) -> None:
    params, keys = seeds()
    alone = jax.jit(seed_nodes, compiler_options=FAST)
    expected = np.stack([alone(jax.tree.map(lambda p: p[i], params), keys[i]) for i in range(4)])  # noqa: B023
    many = jax.jit(jax.vmap(seed_nodes), compiler_options=FAST)
    before = compilations()
    found = many(params, keys)
    assert compilations() == before + 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_batches_equal_the_loop(together: np.ndarray, batch: int) -> None:
    found = jax.jit(jax.vmap(functools.partial(seed_nodes, batch=batch)), compiler_options=FAST)(*seeds())
    np.testing.assert_allclose(found, together, rtol=1e-5, atol=1e-6)


def test_seeds_sharded_over_devices_equal_one_device(together: np.ndarray) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.make_mesh((8,), ("seed",))
    shards = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))
    spread = jax.device_put(jax.tree.map(lambda x: jnp.concatenate([x, x]), seeds()), shards)
    program = jax.jit(jax.vmap(seed_nodes), compiler_options=FAST).lower(*spread).compile()
    found = program(*spread)
    assert found.sharding.is_equivalent_to(shards, found.ndim)
    # Every device does its own seeds and nothing else.
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "collective-permute"))
    np.testing.assert_allclose(found, np.concatenate([together, together]), rtol=1e-5, atol=1e-6)


def test_order_beyond_the_dimension_is_clamped_and_said() -> None:
    op = curvature.from_matrix(jnp.diag(jnp.arange(1.0, 4.0)))
    with pytest.warns(UserWarning, match=r"order 64 is more than the dimension 3"):
        s = jax.eval_shape(lambda key: curvature.spectrum(op, key), jax.random.key(0))
    assert s.nodes.shape == (4, 3)


def test_bad_arguments() -> None:
    op, key = curvature.from_matrix(jnp.eye(3)), jax.random.key(0)
    for order, probes, batch in ((0, 1, None), (1, 0, None), (1, 1, 0)):
        with pytest.raises(ValueError, match="positive"):
            curvature.spectrum(op, key, order, probes, batch=batch)
    for mode in ("half", 0, True):
        with pytest.raises(ValueError, match="reorthogonalise"):
            curvature.spectrum(op, key, 2, reorthogonalise=mode)  # type: ignore[arg-type]
    for bad in (0, jax.random.split(key), jnp.zeros(2)):
        with pytest.raises(ValueError, match="key must be a PRNG key"):
            curvature.spectrum(op, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"op must be an Operator.*got function"):
        curvature.spectrum(lambda x: x, key)  # type: ignore[arg-type]
    for options in ({"basis": "disk"}, {"basis": "host", "reorthogonalise": 3}):
        with pytest.raises(ValueError, match="host"):
            curvature.spectrum(op, key, 2, **options)
