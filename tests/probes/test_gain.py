"""The gain over a fresh network against Adam in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import probes
from plastax.errors import ConfigError
from plastax.probes import GainProbe

RATE, UPDATES = 0.1, (1, 3, 10)
X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)
FRESH = np.array([[-1.0], [0.0], [1.0]])


def apply(params: dict, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def fresh(key: jax.Array) -> dict:
    return {"w": jnp.asarray(FRESH, jnp.float32)}


def descended(w: np.ndarray) -> np.ndarray:
    """Mean squared errors of Adam, the one before the first step among them."""
    m, v, found = np.zeros_like(w), np.zeros_like(w), []
    for t in range(1, UPDATES[-1] + 2):
        error = X @ w - Y
        found.append(np.mean(error**2))
        gradient = 2 * X.T @ error / len(X)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return np.array(found)[[0, *UPDATES]]


def test_both_networks_are_trained_by_adam() -> None:
    probe, w = GainProbe(updates=UPDATES, learning_rate=RATE), np.ones((3, 1))
    params = {"w": jnp.asarray(w, jnp.float32)}
    found = probes.measure((probe,), params, apply, (X, Y), jax.random.key(0), loss="mse", init=fresh)
    np.testing.assert_allclose(found["gain/loss"], descended(w), rtol=1e-4)
    np.testing.assert_allclose(found["gain/fresh_loss"], descended(FRESH), rtol=1e-4)
    np.testing.assert_allclose(found["gain/gain"], descended(FRESH) - descended(w), rtol=1e-3)
    np.testing.assert_array_equal(params["w"], w)


@pytest.mark.parametrize("updates", [(), (0, 1), (10, 1), (1, 1)])
def test_updates_that_do_not_increase_are_refused(updates: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"gain\.updates.* increasing numbers from 1 on"):
        GainProbe(updates=updates)
