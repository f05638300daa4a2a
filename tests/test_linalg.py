"""Decompositions against NumPy in double precision, alone, under vmap, and inside scans and branches."""

from __future__ import annotations

import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import linalg

rank_of = jax.jit(linalg.effective_rank, static_argnums=1)
rank_and_gradient = jax.jit(jax.value_and_grad(linalg.effective_rank), static_argnums=1)


def symmetric(n: int, seed: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((*batch, n, n)).astype(np.float32)
    return (a + np.swapaxes(a, -1, -2)) / 2


def batched_lapack(jaxpr: jax.extend.core.Jaxpr) -> list[str]:
    """Names of the decompositions in a jaxpr that act on more than one matrix."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in {"eigh", "svd", "geqrf", "householder_product", "qr", "cholesky"}:
            found += [eqn.primitive.name] * (eqn.invars[0].aval.ndim > 2)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            found += batched_lapack(getattr(inner, "jaxpr", inner))
    return found


def test_eigh_matches_numpy() -> None:
    a = symmetric(40)
    values, vectors = linalg.eigh(a)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a.astype(np.float64)), atol=2e-5)
    np.testing.assert_allclose(linalg.eigvalsh(a), values, atol=2e-5)
    np.testing.assert_allclose(a @ np.asarray(vectors), np.asarray(vectors) * np.asarray(values), atol=3e-5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(40), atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (7, 7)])
def test_svdvals_matches_numpy(shape: tuple[int, int]) -> None:
    a = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(linalg.svdvals(a), np.linalg.svd(a, compute_uv=False), rtol=2e-5)


def test_svdvals_takes_no_memory_for_vectors_of_all_rows() -> None:
    """Features at the places of images have hundreds of thousands of rows."""
    like = jax.ShapeDtypeStruct((5000, 4), jnp.float32)
    account = jax.jit(linalg.svdvals).lower(like).compile().memory_analysis()
    assert account.temp_size_in_bytes < 4 * 5000 * 4 * 4


def test_leading_axes_and_vmap_equal_single_calls() -> None:
    a = symmetric(10, batch=(2, 3))
    single = np.stack([[linalg.eigvalsh(a[i, j]) for j in range(3)] for i in range(2)])
    np.testing.assert_array_equal(linalg.eigvalsh(a), single)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(linalg.eigvalsh)))(a), single)
    np.testing.assert_array_equal(jax.vmap(linalg.eigh)(a)[0][1, 2], linalg.eigh(a[1, 2])[0])


def test_no_batched_lapack_on_cpu() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("other backends batch")
    keys = jax.random.split(jax.random.key(0), 3)

    def everything(key: jax.Array) -> tuple[jax.Array, ...]:
        x = linalg.orthogonal()(key, (3, 2, 4, 8))[0, 0]
        gram = x @ x.T
        gradient = jax.grad(linalg.effective_rank)(x)
        return *linalg.eigh(gram), linalg.eigvalsh(gram), linalg.svdvals(x), linalg.effective_rank(x), gradient

    assert batched_lapack(jax.make_jaxpr(jax.vmap(everything))(keys).jaxpr) == []
    # The detector finds a batched one.
    assert batched_lapack(jax.make_jaxpr(jax.vmap(jnp.linalg.eigvalsh))(symmetric(4, batch=(2,))).jaxpr) == ["eigh"]


def test_inside_scan_and_cond_under_vmap() -> None:
    a = jnp.asarray(symmetric(6, batch=(3,)))

    def run(a: jax.Array) -> jax.Array:
        def body(carry: jax.Array, clock: jax.Array) -> tuple[jax.Array, jax.Array]:
            top = jax.lax.cond(clock % 2 == 0, lambda: linalg.eigh(carry)[0][-1], lambda: linalg.svdvals(carry)[0])
            return carry * 0.5, top

        return jax.lax.scan(body, a, jnp.arange(4))[1]

    got = jax.jit(jax.vmap(run))(a)
    for i in range(3):
        values = np.linalg.eigvalsh(a[i])
        expected = [values[-1], np.abs(values).max() / 2, values[-1] / 4, np.abs(values).max() / 8]
        np.testing.assert_allclose(got[i], expected, rtol=1e-5)


def test_sequential_takes_closures_trees_and_nested_vmaps() -> None:
    x = jnp.arange(12.0).reshape(3, 4)

    def single(row: jax.Array, shared: jax.Array) -> dict[str, jax.Array]:
        return linalg.sequential(lambda tree: {"y": tree["a"] * jnp.sum(row) + shared})({"a": row[0]})

    got = jax.jit(jax.vmap(jax.vmap(single, (None, 0)), (0, None)))(x, jnp.arange(2.0))["y"]
    np.testing.assert_allclose(got, x[:, :1] * x.sum(1, keepdims=True) + np.arange(2.0)[None])


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
def test_sequential_in_batches_equals_one_by_one(batch: int) -> None:
    x, shared = jnp.arange(15.0).reshape(3, 5), jnp.arange(2.0)

    def single(x: jax.Array, shared: jax.Array) -> tuple[jax.Array, jax.Array]:
        return linalg.sequential(lambda x: (jnp.sin(x) + shared, x * 2.0), batch=batch)(x)

    got = jax.jit(jax.vmap(jax.vmap(jax.vmap(single, (0, None)), (0, None)), (None, 0)))(x, shared)
    np.testing.assert_allclose(got[0], jnp.sin(x)[None] + shared[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(got[1], jnp.broadcast_to(2.0 * x, (2, 3, 5)))


@pytest.mark.parametrize(("batch", "together"), [(1, 1), (2, 2), (5, 4), (8, 8), (100, 8)])
def test_nested_vmaps_share_the_batch(batch: int, together: int) -> None:
    def matrices(jaxpr: jax.extend.core.Jaxpr) -> set[int]:
        """How many matrices a decomposition in the jaxpr acts on."""
        found = {eqn.invars[0].aval.size // 9 for eqn in jaxpr.eqns if eqn.primitive.name == "eigh"}
        for eqn in jaxpr.eqns:
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                found |= matrices(getattr(inner, "jaxpr", inner))
        return found

    nested = jax.vmap(jax.vmap(linalg.sequential(jnp.linalg.eigvalsh, batch=batch)))
    assert matrices(jax.make_jaxpr(nested)(symmetric(3, batch=(4, 2))).jaxpr) == {together}


@pytest.mark.parametrize("shape", [(8, 8), (20, 6), (6, 20), (3, 3, 4, 8), (2, 16, 40)])
def test_orthogonal_equals_jax(shape: tuple[int, ...]) -> None:
    key = jax.random.key(3)
    w = linalg.orthogonal(1.5)(key, shape)
    np.testing.assert_allclose(w, jax.nn.initializers.orthogonal(1.5)(key, shape), atol=1e-6)
    flat = np.asarray(w).reshape(-1, shape[-1]) / 1.5
    gram = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_orthogonal_under_vmap_and_its_errors() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    init = linalg.orthogonal()
    many = jax.jit(jax.vmap(lambda key: init(key, (12, 5))))(keys)
    np.testing.assert_allclose(many[2], init(keys[2], (12, 5)), atol=1e-6)
    assert init(keys[0], (0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="two axes"):
        init(keys[0], (3,))


def reference_rank(x: np.ndarray, power: int = 1) -> float:
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** power
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def svd_rank(x: jax.Array, power: int) -> jax.Array:
    s = jnp.linalg.svd(x, full_matrices=False)[1] ** power
    p = s / s.sum()
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


svd_gradient = jax.jit(jax.grad(svd_rank), static_argnums=1)


@pytest.mark.parametrize(("shape", "power"), [((60, 12), 1), ((60, 12), 2), ((12, 60), 1), ((16, 16), 1)])
def test_effective_rank_and_gradient_match_double_precision_svd(shape: tuple[int, int], power: int) -> None:
    rng = np.random.default_rng(4)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    x = ((u * np.linspace(1.0, 10.0, min(shape))) @ vt).astype(np.float32)
    value, gradient = rank_and_gradient(x, power)
    with jax.enable_x64(True):
        exact = np.asarray(svd_gradient(jnp.asarray(x, jnp.float64), power))
    np.testing.assert_allclose(value, reference_rank(x, power), rtol=1e-5)
    assert np.linalg.norm(gradient - exact) <= 1e-4 * np.linalg.norm(exact)


def kept_rank(x: jax.Array) -> jax.Array:
    """Of the singular values that are there: what is left of the others by rounding has no part in it."""
    s = jnp.linalg.svd(x, compute_uv=False)
    p = jnp.where(s > 1e-5 * s[0], s, 0) / jnp.sum(jnp.where(s > 1e-5 * s[0], s, 0))
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1))))


kept_rank_and_gradient = jax.jit(jax.value_and_grad(kept_rank))


def spectrum_of(shape: tuple[int, int], *values: float) -> np.ndarray:
    u, _, vt = np.linalg.svd(np.random.default_rng(8).standard_normal(shape), full_matrices=False)
    return (u[:, : len(values)] * np.array(values)) @ vt[: len(values)]


def relu(*shape: int) -> np.ndarray:
    return np.maximum(np.random.default_rng(9).standard_normal(shape), 0)


def few_inputs() -> np.ndarray:
    """Features of a network of four inputs: smooth functions, whose singular values fall by orders of magnitude."""
    rng = np.random.default_rng(11)
    return np.tanh(rng.standard_normal((256, 4)) @ rng.standard_normal((4, 64)) / 2)


@pytest.mark.parametrize(
    "x",
    [
        relu(40, 120),  # a first layer's, at initialisation
        relu(80, 400),
        relu(400, 80),
        relu(120, 124),
        relu(400, 80) * (np.arange(80) % 3 > 0),  # silent units
        spectrum_of((40, 16), *np.geomspace(1, 0.02, 16)),
        spectrum_of((400, 50), *np.geomspace(1, 1e-3, 50)),  # collapsing
        spectrum_of((50, 400), *np.geomspace(1, 2e-5, 50)),
        few_inputs(),
        spectrum_of((400, 50), *np.geomspace(1, 0.1, 5)),
        spectrum_of((30, 400), 3, 3, 3, 3, 1, 1, 1, 0.5),
    ],
    ids=["relu", "wide", "tall", "square", "silent", "small", "1e-3", "2e-5", "few inputs", "deficient", "repeated"],
)
def test_effective_rank_gradient_of_any_spectrum_matches_double_precision_svd(x: np.ndarray) -> None:
    value, gradient = rank_and_gradient(x.astype(np.float32))
    with jax.enable_x64(True):
        rank, exact = kept_rank_and_gradient(jnp.asarray(x.astype(np.float32), jnp.float64))
    np.testing.assert_allclose(value, rank, rtol=1e-5)
    assert np.linalg.norm(gradient - np.asarray(exact)) <= 1e-4 * np.linalg.norm(exact)


def test_effective_rank_gradients_of_small_matrices_of_all_kinds_together_match_double_precision_svd() -> None:
    shape = 40, 16
    kinds = [
        relu(*shape), relu(*shape) * (np.arange(16) % 3 > 0), spectrum_of(shape, *np.geomspace(1, 2e-5, 16)),
        spectrum_of(shape, 3, 3, 3, 1, 1, 0.5), np.outer(relu(40), np.ones(16)), np.zeros(shape),
    ]  # fmt: skip
    x = np.stack(kinds).astype(np.float32)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(linalg.effective_rank)))(x)
    for one, value, gradient in list(zip(x, values, gradients))[:-1]:
        with jax.enable_x64(True):
            rank, exact = kept_rank_and_gradient(jnp.asarray(one, jnp.float64))
        np.testing.assert_allclose(value, rank, rtol=1e-5)
        # Of rank one the gradient is zero.
        assert np.linalg.norm(gradient - np.asarray(exact)) <= 1e-4 * np.linalg.norm(exact) + 1e-6
    assert values[-1] == 0
    np.testing.assert_array_equal(gradients[-1], 0.0)


def test_effective_rank_gradients_with_any_number_of_silent_units_match_double_precision_svd() -> None:
    shape = 128, 64
    silent = [0, 1, 7, 8, 9, 16, 23, 24, 25, 31, 32, 33, 62, 63]
    order = np.random.default_rng(3).permutation(64)
    x = np.stack([relu(*shape) * ~np.isin(np.arange(64), order[:n]) for n in silent]).astype(np.float32)
    together = jax.jit(jax.vmap(jax.value_and_grad(linalg.effective_rank)))
    values, gradients = together(x)
    for one, value, gradient in zip(x, values, gradients):
        with jax.enable_x64(True):
            rank, exact = kept_rank_and_gradient(jnp.asarray(one, jnp.float64))
        np.testing.assert_allclose(value, rank, rtol=1e-6)
        assert np.linalg.norm(gradient - np.asarray(exact)) <= 1e-6 * np.linalg.norm(exact) + 1e-6
        assert np.max(np.abs(np.asarray(gradient)[:, ~one.any(0)]), initial=0) < 1e-12
    x[0, 0, order[0]], x[-1, 0, order[0]] = np.nan, np.nan
    values, gradients = together(x)
    assert np.isnan(np.asarray(values)[[0, -1]]).all()
    assert not np.isnan(values[1:-1]).any()
    assert not np.isnan(gradients[1:-1]).any()


def with_backend(backend: str, fn: Callable[..., Any], x: jax.Array) -> Callable[..., Any]:
    """The function as it is traced where this is the default backend; it runs here."""
    with unittest.mock.patch.object(jax, "default_backend", return_value=backend):
        program, shapes = jax.make_jaxpr(fn, return_shape=True)(x)
    return lambda x: jax.tree.unflatten(jax.tree.structure(shapes), jax.extend.core.jaxpr_as_fun(program)(x))


def test_effective_ranks_of_a_batch_where_one_gram_matrix_resolves_and_one_does_not() -> None:
    x = np.stack([relu(400, 80), spectrum_of((400, 80), *np.geomspace(1, 1e-3, 80))])
    x = (x / np.abs(x).max((1, 2), keepdims=True)).astype(np.float32)
    one_by_one = [rank_and_gradient(one) for one in x]
    looped = jax.jit(jax.vmap(jax.value_and_grad(linalg.effective_rank)))(x)
    nested = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(linalg.effective_rank))))(x[:, None])
    # As on accelerators: side by side, the loop over what is not resolved included.
    batched = jax.jit(with_backend("gpu", jax.vmap(jax.value_and_grad(linalg.effective_rank)), x))(x)
    for values, gradients in (looped, batched, jax.tree.map(jnp.squeeze, nested)):
        for i, (value, gradient) in enumerate(one_by_one):
            np.testing.assert_allclose(values[i], value, rtol=1e-5)
            assert np.linalg.norm(gradients[i] - gradient) <= 1e-4 * np.linalg.norm(gradient)


def test_effective_rank_without_double_precision() -> None:
    """What a TPU computes, which has no float64."""
    x = jnp.asarray(few_inputs(), jnp.float32)
    value, gradient = rank_and_gradient(x)
    on_tpu = with_backend("tpu", jax.value_and_grad(linalg.effective_rank), x)
    assert "f64" not in str(jax.make_jaxpr(on_tpu)(x))
    assert "f64" in str(jax.make_jaxpr(with_backend("gpu", jax.value_and_grad(linalg.effective_rank), x))(x))
    single, direction = jax.jit(on_tpu)(x)
    np.testing.assert_allclose(single, value, rtol=1e-5)
    # Singular values of a few 1e-6 of the largest are in float32 what they are to a percent.
    assert np.linalg.norm(direction - gradient) <= 1e-2 * np.linalg.norm(gradient)


@pytest.mark.parametrize("shape", [(512, 64), (40, 200)])
def test_rank_one_has_effective_rank_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    x = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])).astype(np.float32)
    value, gradient = rank_and_gradient(x)
    np.testing.assert_allclose(value, 1.0, atol=1e-3)
    assert np.all(np.isfinite(gradient))


def test_effective_rank_of_repeated_and_zero_singular_values() -> None:
    value, gradient = rank_and_gradient(jnp.eye(9)[:, :6])
    np.testing.assert_allclose(value, 6.0, rtol=1e-6)
    # Equal singular values are the maximum.
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    value, gradient = rank_and_gradient(jnp.zeros((9, 6)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)
    value, gradient = rank_and_gradient(jnp.eye(9)[:, :6].at[0, 0].set(jnp.nan))
    assert np.isnan(value)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), exponent=st.integers(-25, 25), power=st.sampled_from([1, 2]))
def test_effective_rank_is_invariant_and_bounded(seed: int, exponent: int, power: int) -> None:
    x = np.random.default_rng(seed).standard_normal((24, 7)).astype(np.float32)
    rank = float(rank_of(x, power))
    assert 1.0 <= rank <= 7.0 + 1e-5
    np.testing.assert_allclose(rank_of(x * np.float32(10.0**exponent), power), rank, rtol=1e-4)
    np.testing.assert_allclose(rank_of(x.T, power), rank, rtol=1e-4)
    np.testing.assert_allclose(rank_of(x[::-1, ::-1], power), rank, rtol=1e-4)


def test_effective_rank_gradient_under_vmap_both_ways() -> None:
    x = np.random.default_rng(6).standard_normal((3, 20, 5)).astype(np.float32)
    single = np.stack([rank_and_gradient(row)[1] for row in x])
    inside = jax.jit(jax.vmap(jax.grad(linalg.effective_rank)))(x)
    outside = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(linalg.effective_rank)(x))))(x)
    np.testing.assert_allclose(inside, single, atol=1e-5)
    np.testing.assert_allclose(outside, single, atol=1e-5)


def test_effective_rank_keeps_the_features_dtype_in_its_gradient() -> None:
    x = jnp.asarray(np.random.default_rng(7).standard_normal((16, 4)), jnp.bfloat16)
    value, gradient = jax.eval_shape(jax.value_and_grad(linalg.effective_rank), x)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16


def test_effective_rank_rejects_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        linalg.effective_rank(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="power"):
        linalg.effective_rank(jnp.ones((2, 3)), 0)
