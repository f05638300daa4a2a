"""Kronecker factors against per-example sums and dense Kronecker products."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.curvature import kronecker

EXAMPLES, WIDTHS = 9, (4, 6, 3)


def example_loss(params: dict, taps: dict, x: jax.Array, y: jax.Array) -> tuple[jax.Array, dict]:
    """Mean cross-entropy of two dense layers whose pre-activations the taps are added to."""
    z0 = x @ params["w0"] + params["b0"][None, :] + taps["l0"]
    h = jax.nn.relu(z0)
    z1 = h @ params["w1"] + params["b1"][None, :] + taps["l1"]
    log_p = jax.nn.log_softmax(z1)
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1)), {"l0": x, "l1": h}


def data() -> tuple[dict, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(WIDTHS)):
        params[f"w{i}"] = jnp.asarray(rng.standard_normal((a, b)), jnp.float32)
        params[f"b{i}"] = jnp.asarray(rng.standard_normal(b), jnp.float32)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, WIDTHS[0])), jnp.float32)
    return params, x, jnp.asarray(rng.integers(0, WIDTHS[-1], EXAMPLES))


def factors(params: dict, x: jax.Array, y: jax.Array) -> dict[str, kronecker.Factors]:
    taps = {"l0": jnp.zeros((len(x), WIDTHS[1])), "l1": jnp.zeros((len(x), WIDTHS[2]))}
    tap_grads, inputs = jax.grad(example_loss, argnums=1, has_aux=True)(params, taps, x, y)
    return kronecker.factors(inputs, tap_grads)


def test_factors_equal_sums_of_examples() -> None:
    params, x, y = data()
    got = jax.jit(factors)(params, x, y)
    assert list(got) == ["l0", "l1"]
    single = jax.jit(jax.grad(example_loss, argnums=(0, 1), has_aux=True))
    a = dict.fromkeys(got, 0.0)
    g = dict.fromkeys(got, 0.0)
    for i in range(EXAMPLES):
        taps = {"l0": jnp.zeros((1, WIDTHS[1])), "l1": jnp.zeros((1, WIDTHS[2]))}
        (grads, tap_grads), inputs = single(params, taps, x[i : i + 1], y[i : i + 1])
        for layer, name in enumerate(got):
            extended = np.append(np.asarray(inputs[name], np.float64)[0], 1.0)
            gradient = np.asarray(tap_grads[name], np.float64)[0]
            # An example's weight gradient is the outer product that the factors are made of.
            np.testing.assert_allclose(grads[f"w{layer}"], np.outer(extended[:-1], gradient), atol=1e-6)
            np.testing.assert_allclose(grads[f"b{layer}"], gradient, atol=1e-6)
            a[name] += np.outer(extended, extended) / EXAMPLES
            g[name] += np.outer(gradient, gradient) / EXAMPLES
    for name, pair in got.items():
        np.testing.assert_allclose(pair.a, a[name], atol=1e-5)
        np.testing.assert_allclose(pair.g, g[name], atol=1e-5)


def test_spectra_match_the_dense_product() -> None:
    params, x, y = data()
    for pair in jax.jit(factors)(params, x, y).values():
        values = kronecker.eigenvalues(pair)
        dense = np.linalg.eigvalsh(np.kron(np.asarray(pair.a, np.float64), np.asarray(pair.g, np.float64)))
        products = np.sort(np.outer(values.a, values.g).ravel())
        np.testing.assert_allclose(products, dense, atol=1e-5 * dense[-1])
        eps = np.asarray([1e-3, 1e-2, 0.1, 1.0, 1e3], np.float32)
        expected = [(dense > e).sum() for e in eps]
        np.testing.assert_array_equal(kronecker.rank(pair, eps), expected)
        np.testing.assert_array_equal(kronecker.rank(values, eps), expected)
        assert kronecker.rank(pair, 0.1).shape == ()
        p = dense[dense > 0] / dense.sum()
        ranks = kronecker.effective_rank(values)
        np.testing.assert_allclose(ranks.a * ranks.g, np.exp(-(p * np.log(p)).sum()), rtol=1e-3)


def test_effective_ranks_of_known_factors() -> None:
    ranks = kronecker.effective_rank(kronecker.Factors(jnp.diag(jnp.array([1.0, 1.0, 0.0])), jnp.zeros((4, 4))))
    np.testing.assert_allclose(ranks.a, 2.0, rtol=1e-6)
    assert ranks.g == 0


def test_vmap_over_seeds_equals_single() -> None:
    params, x, y = data()
    xs = jnp.stack([x, 2.0 * x, -x])
    one = jax.jit(lambda x: kronecker.eigenvalues(factors(params, x, y)["l1"]))
    many = jax.jit(jax.vmap(one))(xs)
    for i in range(3):
        single = one(xs[i])
        np.testing.assert_allclose(many.a[i], single.a, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(many.g[i], single.g, rtol=1e-4, atol=1e-6)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="layers"):
        kronecker.factors({"a": jnp.ones((2, 3))}, {"b": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="'a'"):
        kronecker.factors({"a": jnp.ones((2, 3))}, {"a": jnp.ones((4, 3))})
