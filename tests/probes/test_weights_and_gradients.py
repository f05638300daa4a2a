"""Probes of weights, of movement and of gradients against NumPy in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.probes import PROBES, GradientProbe
from plastax.probes.gradient import gradient_covariance, off_diagonal_mean
from plastax.probes.weights import root_mean_square, spectral_norm
from tests.probes.network import (
    EXAMPLES,
    MODEL,
    example_gradients,
    jit,
    live_and_dead,
    look,
    loss_fn,
    make_batch,
    make_params,
    measure_of,
    no_factors,
)


def test_weight_probe_equals_numpy() -> None:
    leaves = {k: np.float64(v) for k, v in tree.named_leaves(make_params()).items()}
    values = measure_of(PROBES["weights"])(live_and_dead(), make_batch(), jnp.arange(2))
    kernels = [leaves[f"{layer}/kernel"] for layer in MODEL.layers]
    np.testing.assert_allclose(values["norm"][0], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["mean_magnitude"][0], [np.abs(k).mean() for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["spectral_norm"][0], [np.linalg.norm(k, 2) for k in kernels], rtol=1e-5)
    flat = np.concatenate([x.ravel() for x in leaves.values()])
    np.testing.assert_allclose(values["total_norm"][0], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(values["total_mean_magnitude"][0], np.abs(flat).mean(), rtol=1e-5)
    # Plasticine's magnitude is another number than everybody else's.
    np.testing.assert_allclose(root_mean_square(make_params()), np.sqrt((flat**2).mean()), rtol=1e-5)
    assert root_mean_square(make_params()) > 1.1 * values["total_mean_magnitude"][0]


@pytest.mark.parametrize("scale", [1.0, 1e15, 1e-15])
def test_spectral_norm_of_any_kernel(scale: float) -> None:
    rng = np.random.default_rng(0)
    for kernel in (rng.standard_normal((3, 2, 2, 4)), np.outer(np.arange(1.0, 4.0), np.ones(5)), np.zeros((3, 2))):
        expected = np.linalg.norm(scale * kernel.reshape(-1, kernel.shape[-1]), 2)
        np.testing.assert_allclose(spectral_norm(jnp.asarray(scale * kernel, jnp.float32)), expected, rtol=1e-5)


def test_movement_is_measured_from_both_origins() -> None:
    params, initial = make_params(), jax.tree.map(lambda x: x + 0.5, make_params(dead=True))
    previous = jax.tree.map(lambda x: 2.0 * x, params)
    seen = look(params, make_batch(), no_factors())._replace(initial=lambda: initial, previous=previous)
    probe = PROBES["movement"].build(MODEL)
    assert probe.needs_previous
    values = jit(lambda seen_params: probe.measure(seen._replace(params=seen_params)))(params)
    for name, origin in (("from_init", initial), ("change", previous)):
        moved = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), params, origin)
        kernels = [tree.named_leaves(moved)[f"{layer}/kernel"] for layer in MODEL.layers]
        np.testing.assert_allclose(values[name], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(moved)])
        for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
            np.testing.assert_allclose(values[f"{name}_{norm}"], np.linalg.norm(flat, order), rtol=1e-5)


gradient = jit(jax.grad(loss_fn))


def numpy_gradients(params: Any, batch: Any) -> list[np.ndarray]:
    return [np.float64(g) for g in jax.tree.leaves(gradient(params, batch))]


def test_gradient_probe_equals_numpy() -> None:
    params, batch = make_params(), make_batch()
    values = measure_of(PROBES["gradient"])(live_and_dead(), batch, jnp.arange(2))
    # Of a network without a live unit only the output biases have a gradient: mean output minus mean target.
    dead = tree.named_leaves(make_params(dead=True))
    policy = np.float64(dead["actor/output/bias"]) - np.float64(batch["y"]).mean(axis=0)
    value = np.float64(dead["critic/output/bias"]) - np.float64(batch["v"]).mean()
    np.testing.assert_allclose(values["norm"][1], np.linalg.norm([*policy, *value]), rtol=1e-5)
    np.testing.assert_allclose(values["l1"][1], np.abs([*policy, *value]).sum(), rtol=1e-5)
    size = tree.size(params)
    np.testing.assert_allclose(values["zero_fraction"][1], (size - 3) / size, rtol=1e-6)
    np.testing.assert_array_equal(values["layer_zero_fraction"][1], 1.0)
    np.testing.assert_array_equal(values["dormant"][1], 1.0)

    grads = gradient(params, batch)
    flat = np.concatenate([np.float64(g).ravel() for g in jax.tree.leaves(grads)])
    np.testing.assert_allclose(values["norm"][0], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(values["l1"][0], np.abs(flat).sum(), rtol=1e-5)
    np.testing.assert_allclose(values["zero_fraction"][0], np.mean(flat == 0), rtol=1e-6)
    kernels = [np.float64(tree.named_leaves(grads)[f"{layer}/kernel"]) for layer in MODEL.layers]
    np.testing.assert_allclose(values["layer_norm"][0], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["layer_l1"][0], [np.abs(k).sum() for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["layer_zero_fraction"][0], [np.mean(k == 0) for k in kernels], rtol=1e-6)

    # A unit's bias gradient, of one example alone, is the gradient of its pre-activation.
    single = example_gradients(params, jax.tree.map(lambda x: x[:, None], batch))
    shares = []
    for layer in MODEL.hidden:
        score = np.abs(np.float64(tree.named_leaves(single)[f"{layer}/bias"])).mean(axis=0)
        shares.append([np.mean(score <= tau * score.mean()) for tau in PROBES["gradient"].taus])
    np.testing.assert_allclose(values["dormant"][0], shares, rtol=1e-6)
    np.testing.assert_allclose(values["dormant_mean"][0], np.mean(shares, axis=0), rtol=1e-6)
    np.testing.assert_allclose(values["dormant_pooled"][0], np.array([5, 4, 5, 4]) @ shares / 18, rtol=1e-6)


@pytest.mark.parametrize("parts", [3, 64])
def test_gradient_covariance_equals_numpy(parts: int) -> None:
    batch = make_batch()
    probe = GradientProbe(minibatches=parts).build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), batch)
    parts = min(parts, EXAMPLES)
    size = EXAMPLES // parts
    rows = []
    for i in range(parts):
        part = {name: x[i::parts][:size] for name, x in batch.items()}
        rows.append(np.concatenate([g.ravel() for g in numpy_gradients(make_params(), part)]))
    unit = np.array([row / np.linalg.norm(row) for row in rows])
    expected = unit @ unit.T
    np.testing.assert_allclose(values["covariance"], expected, atol=2e-5)
    others = expected[~np.eye(parts, dtype=bool)]
    np.testing.assert_allclose(values["cosine"], others.mean(), atol=2e-5)
    np.testing.assert_allclose(values["cosine_magnitude"], np.abs(others).mean(), atol=2e-5)


def test_gradient_covariance_of_zero_and_of_parallel_gradients() -> None:
    rng = np.random.default_rng(0)
    line = rng.standard_normal(7)
    grads = np.array([line, -2 * line, 0 * line, 1e-12 * line])
    cosines = gradient_covariance(
        {"a": jnp.asarray(grads[:, :3], jnp.float32), "b": jnp.asarray(grads[:, 3:], jnp.float32)}
    )
    signs = np.array([1.0, -1.0, 0.0, 1.0])
    np.testing.assert_allclose(cosines, np.outer(signs, signs), atol=1e-6)
    assert np.isnan(off_diagonal_mean(cosines[:1, :1]))
