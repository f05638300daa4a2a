"""Probes of spectra, of the tangent kernel and of trainability against dense matrices in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.errors import ConfigError
from plastax.probes import GGN, Hessian, NTKProbe, TrainabilityProbe, measure, ranks
from plastax.testing.probes import check_declared
from plastax.types import ProbeInput
from tests.probes.layers import entropy_rank
from tests.probes.network import (
    EXAMPLES,
    MODEL,
    dense_spectrum,
    jit,
    live_and_dead,
    look,
    make_batch,
    make_params,
    measure_of,
    no_factors,
)


def test_ntk_probe_equals_the_jacobian() -> None:
    params, batch = make_params(), make_batch()
    both = measure_of(NTKProbe(examples=5, delta=0.1))(live_and_dead(), batch, jnp.arange(2))
    values, dead = ({name: value[i] for name, value in both.items()} for i in range(2))
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def outputs(w: jax.Array) -> jax.Array:
        out = MODEL.apply(unravel(w), batch["x"][::2])[0]
        return jnp.concatenate([out["policy"].ravel(), out["value"]])

    singular = np.linalg.svd(np.float64(jit(jax.jacrev(outputs))(flat)), compute_uv=False)
    np.testing.assert_allclose(values["eigenvalues"], singular**2, atol=1e-5 * singular[0] ** 2)
    np.testing.assert_allclose(values["trace"], (singular**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(values["effective_rank"], entropy_rank(singular**2), rtol=1e-4)
    assert values["numerical_rank"] == 15
    np.testing.assert_allclose(values["condition_number"], (singular[0] / singular[-1]) ** 2, rtol=1e-2)
    # The kernel's srank is the Jacobian's PCA rank, and not the Jacobian's own srank.
    s = jnp.asarray(singular, jnp.float32)
    assert values["srank"] == ranks.pca_rank(s, 0.9) < ranks.srank(s, 0.1)
    # Of a dead network the outputs are their biases, the same for every example: one eigenvalue n an output.
    np.testing.assert_allclose(dead["eigenvalues"], [5] * 3 + [0] * 12, atol=5e-5)
    for name in ("srank", "effective_rank", "numerical_rank"):
        np.testing.assert_allclose(dead[name], 3.0, rtol=1e-4)
    np.testing.assert_allclose(dead["condition_number"], 1.0, rtol=1e-4)


@pytest.mark.parametrize("config", [Hessian, pytest.param(GGN, marks=pytest.mark.slow)])
def test_complete_spectra_equal_the_dense_matrix(config: Any) -> None:
    eps = (1e-4, 1e-3, 1e-2, 1e-1)
    expected = dense_spectrum(config is GGN)
    size, norm = np.abs(expected), np.abs(expected).max()
    assert not any(np.any(np.abs(size - e * f) < 2e-5) for e in eps for f in (1.0, norm)), "choose another seed"
    probe = config(order=200, probes=1, eps=eps, **({"method": "lanczos"} if config is GGN else {})).build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    check_declared(probe, values)
    assert values["dim"] == len(expected)
    np.testing.assert_array_equal(values["rank"], [(size > e).sum() for e in eps])
    np.testing.assert_array_equal(values["relative_rank"], [(size > e * norm).sum() for e in eps])
    np.testing.assert_array_equal(values["rank_se"], 0.0)
    np.testing.assert_allclose(values["nodes"][0], expected, atol=1e-5 * norm)
    np.testing.assert_allclose(values["largest"], expected[-1], rtol=1e-5)
    np.testing.assert_allclose(values["smallest"], expected[0], atol=1e-5 * norm)
    np.testing.assert_allclose(values["trace"], expected.sum(), rtol=1e-4)
    np.testing.assert_allclose(values["effective_rank"], entropy_rank(size), rtol=1e-3)
    np.testing.assert_allclose(values["negative_mass"], size[expected < 0].sum() / size.sum(), atol=1e-5)


def test_the_gram_matrix_gives_the_whole_spectrum() -> None:
    expected = dense_spectrum(gauss_newton=True)
    probe = GGN(eps=(1e-3, 1e-2), method="gram").build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    check_declared(probe, values)
    assert values["complete"]
    largest = expected[-values["nodes"].size :]
    np.testing.assert_allclose(values["nodes"][0], largest, atol=1e-5 * expected[-1])
    np.testing.assert_array_equal(values["rank"], [(expected > e).sum() for e in (1e-3, 1e-2)])
    np.testing.assert_allclose(values["frobenius"], np.sqrt((expected**2).sum()), rtol=1e-4)
    np.testing.assert_allclose(values["stable_rank"], (expected**2).sum() / expected[-1] ** 2, rtol=1e-4)
    for name in ("rank_se", "effective_rank_se", "stable_rank_se", "trace_se", "frobenius_se"):
        np.testing.assert_array_equal(values[name], 0.0)


def test_trainability_is_linear_descent_on_random_targets() -> None:
    """One number by hand: what gradient descent on the linearised outputs leaves of targets of variance one."""
    lr, steps = 0.3, 40
    # The outputs' mean squared error over 3 numbers an example: twice the matrix of half the squared errors, over 3.
    values = 2.0 / 3.0 * dense_spectrum(gauss_newton=True)
    size = 3 * EXAMPLES
    probe = TrainabilityProbe(tau=0.9).within(lr, steps).build(MODEL)
    found = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    check_declared(probe, found)
    kept = (1.0 - lr * np.sort(values)[-size:]) ** (2 * steps)
    np.testing.assert_allclose(found["loss"], kept.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["eps_star"], 1.0 / (lr * steps), rtol=1e-6)
    np.testing.assert_array_equal(found["rank"], (values > 1.0 / (lr * steps)).sum())
    np.testing.assert_allclose(found["reachable"], found["rank"] / size, rtol=1e-6)
    assert found["trainable"] == (found["rank"] >= found["required"])
    assert TrainabilityProbe(steps=7).within(lr, steps).steps == 7


class Taken(Exception):
    """Carries the batch that an operator was asked for."""


class Spy(Hessian):
    def spectrum(self, seen: ProbeInput) -> Any:
        raise Taken(seen.batch)


@pytest.mark.parametrize(("examples", "stride"), [(1, 10), (4, 3), (5, 2), (6, 2), (10, 1), (256, 1)])
def test_spectra_are_taken_on_a_spread_part_of_the_batch(examples: int, stride: int) -> None:
    seen = look(make_params(), make_batch(), no_factors())
    with pytest.raises(Taken) as taken:
        Spy(examples=examples).build(MODEL).measure(seen)
    (batch,) = taken.value.args
    for name, expected in make_batch().items():
        assert len(batch[name]) <= examples
        np.testing.assert_array_equal(batch[name], expected[::stride])


@jax.custom_vjp
def fused(x: jax.Array) -> jax.Array:
    """A nonlinearity whose backward pass has no derivative."""
    return jnp.tanh(x)


def on_host(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.asarray(g) * (1 - np.tanh(np.asarray(x)) ** 2)


fused.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, g: (jax.pure_callback(on_host, x, x, g, vmap_method="broadcast_all"),)
)


def test_the_rounding_of_finite_differences_is_recorded() -> None:
    weights = {"hidden": {"kernel": jnp.eye(4) / 2}, "output": {"kernel": jnp.ones((4, 3))}}

    def apply(params: Any, x: jax.Array) -> Any:
        hidden = fused(x @ params["hidden"]["kernel"])
        return hidden @ params["output"]["kernel"], {"hidden": hidden}

    batch = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32), jnp.arange(8) % 3
    config = Hessian(order=6, probes=1, eps=(0.1,), product="finite")
    values = measure((config,), weights, apply, batch, jax.random.key(0))
    assert 0 < values["hessian/rounding"] < 1e-2 * values["hessian/largest"]


def test_settings_that_name_nothing_are_refused() -> None:
    for setting, said in {
        "product": r"hessian.product: 'forwad' is unknown \(did you mean 'forward'",
        "blocks": r"hessian.blocks: 'forwad' is unknown; allowed: whole, layers, kinds",
    }.items():
        with pytest.raises(ConfigError, match=said):
            Hessian(**{setting: "forwad"})


@pytest.mark.parametrize("config", [Hessian, pytest.param(GGN, marks=pytest.mark.slow)])
def test_spectra_of_blocks_are_recorded_beside_the_whole(config: Any) -> None:
    """Every block is exact here."""
    probe = config(blocks="kinds", order=200, probes=1, eps=(1e-2,)).build(MODEL)
    assert probe.coords["block"] == ("mlp", "head")
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    check_declared(probe, values)
    expected = dense_spectrum(config is GGN)
    np.testing.assert_allclose(values["nodes"][0], expected[-values["nodes"].size :], atol=1e-5 * expected[-1])
    assert values["block_dim"].sum() == len(expected)
    np.testing.assert_allclose(values["block_trace"].sum(), expected.sum(), rtol=1e-4)
    outside = 1 - np.square(values["block_frobenius"]).sum() / np.square(expected).sum()
    np.testing.assert_allclose(values["off_diagonal"], outside, atol=1e-4)
    sizes = np.isfinite(values["block_nodes"]).sum(axis=(1, 2))
    np.testing.assert_array_equal(sizes, np.minimum(values["block_dim"], values["nodes"].size))
