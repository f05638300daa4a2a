"""Spectra of networks against their dense Hessians in double precision."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature import Estimate, Spectrum
from tests.curvature.summaries import EPS, KEYS, SEEDS, covered, exact_effective_rank, summarise_many

# Networks: 10 inputs, two hidden layers, 5 classes, 389 parameters.
SIZES = (10, 16, 8, 5)


def logits(params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b[None, :])
    return x @ params[-1][0] + params[-1][1][None, :]


def loss_fn(params: list[tuple[jax.Array, jax.Array]], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    log_p = jax.nn.log_softmax(logits(params, batch[0]))
    return -jnp.mean(jnp.take_along_axis(log_p, batch[1][:, None], axis=1))


def state(dead: float) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """A He-initialised network with this share of dead hidden units, and a batch."""
    rng = np.random.default_rng(0)
    params = []
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
        hidden = i < len(SIZES) - 2
        bias = np.where((np.arange(b) < dead * b) & hidden, -30.0, 0.0)
        params.append((np.sqrt(2 / a) * rng.standard_normal((a, b)), bias))
    return params, (rng.standard_normal((64, SIZES[0])), rng.integers(0, SIZES[-1], 64))


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def network_spectra(params: Any, batch: Any, keys: jax.Array) -> Spectrum:
    op = curvature.hessian(loss_fn, params, data=batch)
    return jax.vmap(lambda key: curvature.spectrum(op, key))(keys)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def dense_hessian(params: Any, batch: Any) -> jax.Array:
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda f: loss_fn(unravel(f), batch))(flat)


def dense_eigenvalues(params: Any, batch: Any) -> np.ndarray:
    with jax.enable_x64(True):
        return np.linalg.eigvalsh(dense_hessian(params, batch))


@pytest.mark.parametrize("dead", [0.0, 0.8, 1.0])
def test_networks_match_dense_double_precision(dead: float) -> None:
    params, batch = state(dead)
    values = dense_eigenvalues(params, batch)
    x, y = batch
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    summary = summarise_many(network_spectra(single, (jnp.asarray(x, jnp.float32), jnp.asarray(y)), KEYS))
    np.testing.assert_allclose(summary.extreme.largest[:, 0], values[-1], rtol=1e-5)
    for i, eps in enumerate(EPS):
        exact = np.sum(np.abs(values) > eps)
        estimate = Estimate(summary.rank.value[:, i], summary.rank.standard_error[:, i])
        assert covered(estimate, exact, 3.0).all()
        if exact <= 10:
            np.testing.assert_array_equal(estimate.value, exact)
            np.testing.assert_array_equal(estimate.standard_error, 0)
    # The quadrature's own error comes on top of the standard error here.
    assert covered(summary.effective_rank, exact_effective_rank(values), 3.0, slack=0.03).all()
    assert covered(summary.trace, values.sum(), 3.0).sum() >= SEEDS - 1
