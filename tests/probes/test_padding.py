"""Padding changes no number of a probe: a batch of tokens, and the same batch with places added that do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import probes
from plastax.errors import ConfigError
from plastax.models import GPT
from plastax.probes import ChurnProbe, FeatureProbe, PlasticityProbe, TrainabilityProbe
from plastax.testing.promises import quick

VOCABULARY, LENGTH = 5, 6
MODEL = GPT(width=4, depth=1, heads=2, mlp_ratio=2, activation="relu").build((LENGTH,), VOCABULARY)
FAST = (FeatureProbe(centred=True, tau=0.3),)
SLOW = (
    ChurnProbe(learning_rate=1.0, minibatches=2),
    "duplicates",
    "gradient",
    PlasticityProbe(steps=3, targets=2, kind="network"),
    TrainabilityProbe(learning_rate=0.1, steps=10, order=12),
)


def measured(batch: tuple[jax.Array, jax.Array], names: tuple) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32), shapes)
    found = quick(
        lambda batch: probes.measure(
            names, params, MODEL.apply, batch, jax.random.key(2),
            loss="token_cross_entropy", activation="relu", init=MODEL.init, roles=MODEL.roles, counted=MODEL.counted,
        )
    )(batch)  # fmt: skip
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("names", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_padding_changes_no_number(names: tuple) -> None:
    text = np.random.default_rng(0).integers(VOCABULARY, size=(6, 5)).astype(np.int32)
    x, y = text[:, :-1], text[:, 1:]
    padded = [np.pad(tokens, [(0, 0), (0, 2)], constant_values=-1) for tokens in (x, y)]
    alone, with_padding = measured((x, y), names), measured(tuple(padded), names)
    assert alone.keys() == with_padding.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(with_padding[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
    if names is FAST:
        assert set(alone["features/rows"]) == set(with_padding["features/rows"]) == {24}


def test_a_batch_of_padding_alone_is_refused() -> None:
    batch = (jnp.full((4, 3), -1),) * 2
    with pytest.raises(ConfigError, match=r"batch: no place of the inputs \[4, 3\] counts, all are padding"):
        probes.measure(FAST, {}, MODEL.apply, batch, jax.random.key(2), counted=MODEL.counted)


def test_tokens_are_not_disturbed() -> None:
    with pytest.raises(ConfigError, match="robustness: inputs are tokens, which cannot be disturbed a little"):
        measured((jnp.zeros((4, 3), jnp.int32),) * 2, ("robustness",))
