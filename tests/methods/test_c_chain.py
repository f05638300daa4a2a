"""Churn of every kind of output against NumPy, and that its gradient vanishes where nothing has changed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from plastax import methods
from plastax.errors import ConfigError
from plastax.methods.c_chain import churn
from plastax.types import Examples

RNG = np.random.default_rng(0)
NEW, OLD, LOG_STD, OLD_LOG_STD = RNG.standard_normal((4, 5, 3)).astype(np.float32)
VALUE = RNG.standard_normal(5).astype(np.float32)
CLASSES = Examples(jnp.zeros((5, 2)), jnp.zeros(5, jnp.int32))
TARGETS = Examples(jnp.zeros((5, 2)), jnp.zeros((5, 3)))


def cross_entropy() -> float:
    p = np.exp(OLD) / np.exp(OLD).sum(-1, keepdims=True)
    q = np.exp(NEW) / np.exp(NEW).sum(-1, keepdims=True)
    return float(np.mean([scipy.stats.entropy(a) + scipy.stats.entropy(a, b) for a, b in zip(p, q)]))


def gaussian() -> float:
    s, r = np.exp(OLD_LOG_STD), np.exp(LOG_STD)
    return float((np.log(r / s) + (s**2 + (OLD - NEW) ** 2) / (2 * r**2) - 0.5).sum(-1).mean())


@pytest.mark.parametrize(
    ("new", "old", "batch", "expected"),
    [
        ({"policy": NEW, "value": VALUE}, {"policy": OLD, "value": 2 * VALUE}, None, cross_entropy()),
        ({"policy": NEW, "log_std": LOG_STD}, {"policy": OLD, "log_std": OLD_LOG_STD}, None, gaussian()),
        (NEW, OLD, CLASSES, cross_entropy()),
        (NEW, OLD, TARGETS, 0.5 * np.square(NEW - OLD).sum(-1).mean()),
    ],
    ids=["categorical", "gaussian", "classes", "regression"],
)
def test_churn(new: Any, old: Any, batch: Any, expected: float) -> None:
    np.testing.assert_allclose(churn(new, old, batch), expected, rtol=1e-5)
    slope = jax.grad(lambda new: churn(new, old, batch))(old)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-6), slope)


def test_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"c_chain keeps examples"):
        methods.CChain().build(methods.l2())
    with pytest.raises(ConfigError, match=r"CChain.decay: 1.0 .* below 1"):
        methods.CChain(decay=1.0)
    with pytest.raises(ConfigError, match=r"'hubert' is unknown \(did you mean 'huber'"):
        methods.L2Init(variant="hubert")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"SpectralNorm.exponent: 0 .* 1 or more"):
        methods.SpectralNorm(exponent=0)
    with pytest.raises(ConfigError, match=r"SpectralNorm.variant: 'lop-jax' is unknown \(did you mean 'lop_jax'"):
        methods.SpectralNorm(variant="lop-jax")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Isometry.form"):
        methods.Isometry(form="step")  # type: ignore[arg-type]
