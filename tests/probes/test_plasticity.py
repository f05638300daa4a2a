"""Behavioural plasticity against gradient descent in NumPy, and what it must tell apart."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax.errors import ConfigError
from plastax.probes import PlasticityProbe
from plastax.probes.plasticity import fit, sample_plasticity

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
X = np.random.default_rng(0).standard_normal((16, 3))


def linear(params: dict, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"]


def draw_linear(key: jax.Array) -> dict:
    return {"w": jax.random.normal(key, (3, 2)), "b": jnp.zeros((1, 2))}


@pytest.mark.parametrize("kind", ["sine", "network"])
def test_fit_is_gradient_descent_on_the_targets(kind: Any) -> None:
    """At a low frequency, where float32 and float64 agree about the sine."""
    params, key, lr, steps = draw_linear(jax.random.key(3)), jax.random.key(4), 0.1, 7
    options = {"targets": 2, "steps": steps, "optimizer": optax.sgd(lr), "kind": kind, "frequency": 3.0}
    found = jit(lambda p, x: fit(linear, draw_linear, p, x, key, **options))(params, jnp.asarray(X, jnp.float32))
    for i, own in enumerate(jax.random.split(key, 2)):
        drawn = X @ np.float64(draw_linear(jax.random.split(own)[0])["w"])
        w, b = np.float64(params["w"]), np.zeros((1, 2))
        y = drawn if kind == "network" else (X @ w).mean(axis=0) + np.sin(3.0 * drawn)
        losses = []
        for _ in range(steps + 1):
            error = X @ w + b - y
            losses.append((error**2).mean())
            # Mean over 16 x 2 entries.
            w, b = w - lr * 2 * X.T @ error / 32, b - lr * 2 * error.sum(axis=0) / 32
        np.testing.assert_allclose(found.before[i], losses[0], rtol=1e-5)
        np.testing.assert_allclose(found.after[i], losses[-1], rtol=1e-5)
        np.testing.assert_allclose(found.baseline[i], y.var(axis=0).mean(), rtol=1e-5)


HIDDEN = 32


def network(params: dict, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"] + params["last"]


def draw_network(key: jax.Array) -> dict:
    keys = jax.random.split(key)
    return {
        "in": jax.random.normal(keys[0], (3, HIDDEN)),
        "bias": jnp.zeros((1, HIDDEN)),
        "out": jax.random.normal(keys[1], (HIDDEN, 2)) / 4,
        "last": jnp.zeros((1, 2)),
    }


def test_a_dead_network_fits_constants_and_a_fresh_one_more() -> None:
    fresh = draw_network(jax.random.key(0))
    networks = {
        "fresh": fresh,
        "dead": fresh | {"bias": jnp.full((1, HIDDEN), -100.0)},
        "few": fresh | {"bias": jnp.where(jnp.arange(HIDDEN) < HIDDEN - 3, -100.0, fresh["bias"])},
        # Outputs of classes that do not exist yet: as large as they come, and the same for all.
        "masked": fresh | {"last": jnp.asarray([[0.0, -1e9]])},
    }

    @jit
    def plasticity(params: dict, steps_key: jax.Array) -> Any:
        adam = optax.adam(0.01)
        return fit(network, draw_network, params, jnp.asarray(X, jnp.float32), steps_key, targets=3, steps=300,
                   optimizer=adam, batch_size=8)  # fmt: skip

    found = {name: plasticity(params, jax.random.key(1)) for name, params in networks.items()}
    gain = {name: float(jnp.mean(f.baseline - f.after)) for name, f in found.items()}
    # Same targets for all but their centre; the variance of the sine of anything is about a half.
    np.testing.assert_allclose(found["dead"].baseline, found["fresh"].baseline, rtol=1e-4)
    assert 0.3 < float(jnp.mean(found["fresh"].baseline)) < 0.7
    assert -0.05 < gain["dead"] < 1e-6
    assert gain["dead"] + 0.02 < gain["few"] < gain["fresh"] - 0.1
    assert np.isfinite(gain["masked"])
    assert abs(gain["masked"]) < 1.0


def test_sample_plasticity_is_clipped() -> None:
    before, after = jnp.asarray([2.0, 2.0, 2.0, 0.0, 1.0]), jnp.asarray([0.5, 3.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(sample_plasticity(before, after), [0.75, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"targets": 0}, "plasticity.targets"),
        ({"optimizer": "adamw"}, "plasticity.optimizer"),
        ({"kind": "labels"}, "plasticity.kind"),
        ({"learning_rate": 0.0}, "plasticity.learning_rate"),
        ({"batch_size": -1}, "plasticity.batch_size"),
        ({"every": 0}, "plasticity.every"),
    ],
)
def test_settings_that_cannot_be_used(settings: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        PlasticityProbe(**settings)
