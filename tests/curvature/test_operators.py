"""Operators against dense matrices in double precision: values, linearity, symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature, tree
from plastax.curvature.losses import LOSSES
from plastax.types import Operator

SIZES = (5, 7, 4)


def network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    h = jnp.tanh(batch[0] @ params["w0"] + params["b0"][None, :])
    return h @ params["w1"] + params["b1"][None, :]


def make(name: str, dtype: Any = np.float32) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    rng = np.random.default_rng(0)
    params = {
        "w0": rng.standard_normal(SIZES[:2]),
        "b0": rng.standard_normal(SIZES[1]),
        "w1": rng.standard_normal(SIZES[1:]),
        "b1": rng.standard_normal(SIZES[2]),
    }
    x = rng.standard_normal((11, SIZES[0]))
    y = rng.integers(0, SIZES[2], 11) if name == "cross_entropy" else rng.standard_normal((11, SIZES[2])).astype(dtype)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params), (jnp.asarray(x, dtype), jnp.asarray(y))


def loss_fn(name: str) -> Callable[..., jax.Array]:
    return lambda params, batch: LOSSES[name].value(network(params, batch), batch)


def exact_hessian(name: str) -> np.ndarray:
    with jax.enable_x64(True):
        params, batch = make(name, np.float64)
        flat, unravel = ravel_pytree(params)
        return np.asarray(jax.jit(jax.hessian(lambda f: loss_fn(name)(unravel(f), batch)))(flat))


def exact_ggn(name: str) -> np.ndarray:
    with jax.enable_x64(True):
        params, batch = make(name, np.float64)
        flat, unravel = ravel_pytree(params)
        outputs, shape = network(params, batch).ravel(), (11, SIZES[2])
        jacobian = jax.jit(jax.jacobian(lambda f: network(unravel(f), batch).ravel()))(flat)
        inner = jax.jit(jax.hessian(lambda o: LOSSES[name].value(o.reshape(shape), batch)))(outputs)
        return np.asarray(jacobian).T @ np.asarray(inner) @ np.asarray(jacobian)


def operators() -> dict[str, Operator]:
    params, batch = make("cross_entropy")
    matrix = np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32)
    return {
        "hessian": curvature.hessian(loss_fn("cross_entropy"), params, data=batch),
        "ggn": curvature.ggn(network, "cross_entropy", params, data=batch),
        "matrix": curvature.from_matrix(jnp.asarray(matrix + matrix.T)),
    }


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_hessian_and_ggn_match_dense_double_precision(name: str) -> None:
    params, batch = make(name)
    got = jax.jit(lambda p, b: curvature.dense(curvature.hessian(loss_fn(name), p, data=b)))(params, batch)
    np.testing.assert_allclose(got, exact_hessian(name), atol=1e-6)
    got = jax.jit(lambda p, b: curvature.dense(curvature.ggn(network, name, p, data=b)))(params, batch)
    np.testing.assert_allclose(got, exact_ggn(name), atol=1e-6)
    assert np.linalg.eigvalsh(got).min() > -1e-6


def test_hessian_of_a_closure_and_loss_given_as_functions() -> None:
    params, batch = make("mse")
    tangent = tree.normal_like(jax.random.key(0), params)

    @jax.jit
    def products(params: dict, batch: tuple) -> tuple:
        closed = curvature.hessian(lambda p: loss_fn("mse")(p, batch), params)
        given = curvature.hessian(loss_fn("mse"), params, data=batch)
        named = curvature.ggn(network, "mse", params, data=batch)
        built = curvature.ggn(network, curvature.Loss(*LOSSES["mse"]), params, data=batch)
        return closed.mv(tangent), given.mv(tangent), named.mv(tangent), built.mv(tangent)

    closed, given, named, built = products(params, batch)
    jax.tree.map(np.testing.assert_array_equal, closed, given)
    jax.tree.map(np.testing.assert_array_equal, named, built)


@pytest.mark.parametrize("name", ["hessian", "ggn", "matrix"])
def test_linear_and_symmetric(name: str) -> None:
    op = operators()[name]
    mv = jax.jit(op.mv)
    u, v = (tree.normal_like(jax.random.key(i), op.like) for i in range(2))
    combined = mv(jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, u, v))
    expected = jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, mv(u), mv(v))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), combined, expected)
    np.testing.assert_allclose(tree.dot(u, mv(v)), tree.dot(mv(u), v), atol=2e-5)


def test_from_matrix_and_dense_are_inverse() -> None:
    a = np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32)
    np.testing.assert_allclose(curvature.dense(curvature.from_matrix(jnp.asarray(a + a.T))), a + a.T, rtol=1e-6)


def test_narrow_parameters_give_float32_vectors() -> None:
    params, batch = make("mse")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = jax.jit(lambda p: curvature.dense(curvature.hessian(loss_fn("mse"), p, data=batch)))(params)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact_hessian("mse"), atol=0.1)


def test_bad_arguments() -> None:
    params, batch = make("mse")
    with pytest.raises(ValueError, match="cross_entropy"):
        curvature.ggn(network, "hinge", params, data=batch)
    with pytest.raises(ValueError, match="square"):
        curvature.from_matrix(jnp.ones((2, 3)))
