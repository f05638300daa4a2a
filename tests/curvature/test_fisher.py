"""Fisher matrices against per-example gradients in double precision, and draws against the Gauss-Newton matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature import losses

EXAMPLES, SIZES = 11, (3, 4, 3)
FAST = {"xla_backend_optimization_level": 0}


def network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    h = jnp.tanh(batch[0] @ params["w0"])
    return h @ params["w1"] + params["b1"][None, :]


def make(dtype: Any = np.float64, seed: int = 0) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    rng = np.random.default_rng(seed)
    params = {
        "w0": rng.standard_normal(SIZES[:2]),
        "w1": rng.standard_normal(SIZES[1:]),
        "b1": rng.standard_normal(SIZES[2]),
    }
    x = rng.standard_normal((EXAMPLES, SIZES[0])).astype(dtype)
    y = rng.integers(0, SIZES[2], EXAMPLES)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params), (jnp.asarray(x), jnp.asarray(y))


@pytest.mark.usefixtures("x64")
def test_empirical_fisher_is_the_second_moment_of_example_gradients() -> None:
    params, batch = make()
    targets = (batch[0], jax.nn.one_hot(batch[1], SIZES[2]))

    def matrices(params: dict, batch: tuple, name: str) -> tuple[jax.Array, ...]:
        def example(i: jax.Array) -> jax.Array:
            one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), batch)
            return ravel_pytree(jax.grad(lambda p: losses.LOSSES[name].value(network(p, one), one))(params))[0]

        gradients = jax.lax.map(example, jnp.arange(EXAMPLES))
        return gradients, curvature.dense(curvature.empirical_fisher(network, params, batch, name))

    for name, data in (("cross_entropy", batch), ("mse", targets)):
        run = jax.jit(lambda p, b, name=name: matrices(p, b, name), compiler_options=FAST)
        gradients, matrix = map(np.asarray, run(params, data))
        np.testing.assert_allclose(matrix, gradients.T @ gradients / EXAMPLES, atol=1e-14)
        assert np.abs(matrix).max() > 1e-2


@pytest.mark.usefixtures("x64")
def test_fisher_draws_the_gauss_newton_matrix() -> None:
    params, batch = make()
    keys = jax.random.split(jax.random.key(0), 256)

    def matrices(params: dict, batch: tuple, keys: jax.Array) -> tuple[jax.Array, ...]:
        def dense(key: jax.Array, chunk_size: int | None = None) -> jax.Array:
            return curvature.dense(curvature.fisher(network, params, batch, "cross_entropy", key, 2, chunk_size))

        exact = curvature.dense(curvature.ggn(network, params, batch, "cross_entropy"))
        return exact, jax.lax.map(dense, keys), dense(keys[0], 4)

    exact, drawn, chunked = map(np.asarray, jax.jit(matrices, compiler_options=FAST)(params, batch, keys))
    # Chunks hold the same draws.
    np.testing.assert_allclose(chunked, drawn[0], atol=1e-14)
    assert (np.abs(drawn.mean(0) - exact) <= 5.0 * drawn.std(0) / 16 + 1e-12).all()
    assert np.linalg.norm(drawn.mean(0) - exact) < 0.1 * np.linalg.norm(exact)
    # The rank of one estimate counts its different draws, one or two an example, not the directions of the mean.
    assert EXAMPLES <= np.linalg.matrix_rank(drawn[0]) < np.linalg.matrix_rank(exact) == 2 * EXAMPLES
    assert np.linalg.norm(drawn[0] - drawn[1]) > 0.1 * np.linalg.norm(exact)


def test_bad_arguments() -> None:
    params, batch = make(np.float32)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"loss\.sample"):
        curvature.fisher(network, params, batch, losses.LOSSES["mse"]._replace(sample=None), key)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        curvature.fisher(network, params, batch, "mse", key, samples=0)
    with pytest.raises(ValueError, match="without its value"):
        curvature.empirical_fisher(
            lambda p, b: {"value": network(p, b)[:, 0]}, params, batch, losses.actor_critic("categorical")
        )
    each = losses.LOSSES["mse"]._replace(value=lambda outputs, batch: outputs)
    with pytest.raises(ValueError, match=r"scalar, got shape \(11, 3\)"):
        curvature.empirical_fisher(network, params, batch, each)
    with pytest.raises(ValueError, match=r"leading axis.*'1': \(10,\)"):
        curvature.fisher(network, params, (batch[0], batch[1][:10]), "cross_entropy", key)
