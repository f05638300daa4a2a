"""What single units do, against loops in float64; what leaves it unchanged; where definitions differ."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax.models.layers import ACTIVATIONS
from plastax.probes import activity
from tests.probes.layers import KINDS, features_of

TAUS = (0.0, 0.025, 0.5)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def measured(h: jax.Array) -> dict[str, jax.Array]:
    return {
        "dormant": activity.dormant_fraction(h, jnp.asarray(TAUS)),
        "gradient_dormant": activity.gradient_dormant_fraction(h, 0.025),
        "dead": activity.dead_units(h),
        "active": activity.active_fraction(h),
        "linearised": activity.linearised_units(h),
        "sign_entropy": activity.sign_entropy(h),
        "norm": activity.feature_norm(h),
    }


def bits(p: float) -> float:
    return -sum(q * np.log2(q) for q in (p, 1 - p) if q)


def references(h: np.ndarray) -> dict[str, object]:
    h = h.reshape(-1, h.shape[-1])
    units = list(h.T)
    scores = [np.abs(unit).mean() for unit in units]
    dormant = [np.mean([s <= tau * np.mean(scores) for s in scores]) for tau in TAUS]
    return {
        "dormant": dormant,
        "gradient_dormant": dormant[1],
        "dead": sum(not unit.any() for unit in units),
        "active": np.mean([[x != 0 for x in unit] for unit in units]),
        "linearised": np.mean([all(x > 0 for x in unit) for unit in units]),
        "sign_entropy": np.mean([bits(np.mean([x > 0 for x in unit])) for unit in units]),
        "norm": np.mean([np.sqrt((row**2).sum()) for row in h]),
    }


@pytest.mark.parametrize("kind", [*KINDS, "on"])
def test_activity_equals_numpy(kind: str) -> None:
    h = np.abs(features_of("random")) + 0.1 if kind == "on" else features_of(kind)
    got = measured(jnp.asarray(h, jnp.float32))
    for name, expected in references(h).items():
        assert (got[name].shape, got[name].dtype) == (np.shape(expected), jnp.float32)
        np.testing.assert_allclose(got[name], expected, rtol=2e-6, atol=1e-6, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(
    h=st.lists(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0]), min_size=6, max_size=6), min_size=8, max_size=8),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 2**20),
)
def test_activity_knows_no_order_and_no_scale(h: list, exponent: int, seed: int) -> None:
    x = np.asarray(h, np.float32)
    before = measured(jnp.asarray(x))
    rng = np.random.default_rng(seed)
    for other in (x[:, rng.permutation(6)], x[rng.permutation(8)], 2.0**exponent * x):
        after = measured(jnp.asarray(other, jnp.float32))
        for name in before.keys() - {"norm"}:
            # Sums in another order round differently.
            np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)
    # Signs do not know a unit's own scale either.
    scaled = measured(jnp.asarray(x * 2.0 ** rng.integers(-3, 4, 6), jnp.float32))
    for name in ("dead", "active", "linearised", "sign_entropy"):
        np.testing.assert_allclose(scaled[name], before[name], atol=1e-6, err_msg=name)
    dormant = np.asarray(before["dormant"])
    assert (np.diff(dormant) >= 0).all()
    np.testing.assert_allclose(6 * dormant[0], before["dead"], atol=1e-5)


PREACTIVATIONS = np.random.default_rng(3).standard_normal((9, 5)) + np.array([4.0, -4.0, 0.0, 0.5, -0.5])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_features_tell_what_pre_activations_do(name: str) -> None:
    """The sign of every pre-activation can be read from the features, of all nonlinearities but the periodic one."""
    z = jnp.asarray(PREACTIVATIONS, jnp.float32)
    h = ACTIVATIONS[name](z)
    if not activity.has_signs(name):
        with pytest.raises(ValueError, match="deep_fourier"):
            activity.sign_entropy(h, name)
        return
    expected = np.mean([bits(p) for p in (PREACTIVATIONS > 0).mean(axis=0)])
    np.testing.assert_allclose(activity.sign_entropy(h, name), expected, rtol=1e-5)
    np.testing.assert_allclose(activity.sign_entropy(z), expected, rtol=1e-5)
    one_sided = [(unit > 0).all() or (name != "relu" and (unit <= 0).all()) for unit in PREACTIVATIONS.T]
    if activity.linearises(name):
        np.testing.assert_allclose(activity.linearised_units(h, name), np.mean(one_sided))
        # A unit is linear where a line through two examples meets them all, and dead units are not counted.
        for unit, linear in zip(range(5), one_sided, strict=True):
            columns = [unit, unit + 5] if name == "crelu" else [unit]
            own = np.float64(h)[:, columns]
            fitted = np.polynomial.Polynomial.fit(PREACTIVATIONS[:, unit], own[:, 0], 1)(PREACTIVATIONS[:, unit])
            assert (np.abs(fitted - own[:, 0]).max() < 1e-5 and own.any()) == linear
    else:
        with pytest.raises(ValueError, match=name):
            activity.linearised_units(h, name)


def test_each_nonlinearity_has_its_own_active_fraction() -> None:
    h = jnp.asarray([[0.0, 0.5, -0.995, 0.999], [0.2, -0.5, -0.3, 0.0]])
    expected = {"relu": 6 / 8, "crelu": 6 / 8, "tanh": 6 / 8, "deep_fourier": 6 / 8, "silu": 3 / 8, "leaky_relu": 3 / 8}
    for name, share in expected.items():
        np.testing.assert_allclose(activity.active_fraction(h, name), share)
    z = jnp.asarray(PREACTIVATIONS, jnp.float32)
    # Concatenated ReLU has one of every two features on, whatever the network does.
    assert activity.active_fraction(ACTIVATIONS["crelu"](z), "crelu") == 0.5


def test_pooled_and_mean_shares_differ() -> None:
    """Ten dormant of ten units, none of ninety: a tenth of all units, half of the layers' mean."""
    shares = jnp.asarray([[1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(activity.pooled(shares, jnp.asarray([10.0, 90.0])), [0.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(shares.mean(axis=0), [0.5, 1.0])


def test_dormant_is_neither_dead_nor_inactive() -> None:
    """A unit that fires once, loudly, and one that whispers always."""
    h = np.zeros((100, 4), np.float32)
    h[:, 0], h[0, 1], h[:, 2] = 1.0, 100.0, 1e-3
    h = jnp.asarray(h)
    assert activity.dead_units(h) == 1
    np.testing.assert_allclose(activity.dormant_fraction(h), 2 / 4)  # the whisper, and the dead one
    np.testing.assert_allclose(activity.active_fraction(h), 201 / 400, rtol=1e-6)


def test_activity_of_nan_is_not_a_number() -> None:
    got = measured(jnp.asarray(features_of("relu"), jnp.float32).at[2, 3].set(jnp.nan))
    assert all(np.isnan(value).all() for name, value in got.items() if name != "dead")
