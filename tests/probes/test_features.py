"""The probe of features, and the monitor, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.probes import FeatureProbe, activity, monitor, ranks
from plastax.probes.features import participation_ratio
from tests.probes.layers import KINDS, features_of, orthogonal
from tests.probes.network import (
    EXAMPLES,
    MODEL,
    jit,
    live_and_dead,
    look,
    make_batch,
    make_params,
    measure_of,
    no_factors,
)


def numpy_participation_ratio(h: np.ndarray) -> float:
    s = np.linalg.svd(h.reshape(-1, h.shape[-1]), compute_uv=False)
    return float((s**2).sum() ** 2 / (s**4).sum()) if s.any() else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_participation_ratio_equals_numpy(kind: str) -> None:
    h = features_of(kind)
    got = jit(participation_ratio)(jnp.asarray(h, jnp.float32))
    assert (got.shape, got.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(got, numpy_participation_ratio(h), rtol=2e-5, atol=1e-6)


def test_participation_ratio_knows_no_basis_and_no_scale() -> None:
    measure = jit(participation_ratio)
    h = features_of("random")
    before = float(measure(jnp.asarray(h, jnp.float32)))
    assert 1.0 < before < 6.0
    for other in (h @ orthogonal(6, 1), orthogonal(12, 2) @ h, 1e12 * h, 1e-12 * h, -h, h[::-1]):
        np.testing.assert_allclose(measure(jnp.asarray(other, jnp.float32)), before, rtol=1e-4)
    np.testing.assert_allclose(measure(jnp.asarray(orthogonal(6, 3), jnp.float32)), 6.0, rtol=1e-5)
    assert np.isnan(measure(jnp.asarray(h, jnp.float32).at[2, 3].set(jnp.nan)))


def test_feature_probe_is_its_parts() -> None:
    config = FeatureProbe(taus=(0.0, 0.1))
    values = measure_of(config)(live_and_dead(), make_batch(), jnp.arange(2))
    features = jit(MODEL.apply)(make_params(), make_batch()["x"])[1]
    hidden = [features[layer] for layer in MODEL.hidden]

    @jit
    def parts_of(h: jax.Array) -> dict[str, jax.Array]:
        s = ranks.singular_values(h)
        return {
            "effective_rank": ranks.effective_rank(s), "effective_rank_2": ranks.effective_rank(s, 2),
            "srank": ranks.srank(s), "pca_rank": ranks.pca_rank(s), "stable_rank": ranks.stable_rank(s),
            "numerical_rank": ranks.numerical_rank(s, EXAMPLES), "pyoi_rank": ranks.pyoi_rank(s, EXAMPLES),
            "dormant_fraction": activity.dormant_fraction(h), "dead_units": activity.dead_units(h),
            "active_fraction": activity.active_fraction(h), "linearised": activity.linearised_units(h),
            "sign_entropy": activity.sign_entropy(h), "norm": activity.feature_norm(h), "rows": EXAMPLES,
        }  # fmt: skip

    for i, h in enumerate(hidden):
        for name, part in parts_of(h).items():
            np.testing.assert_allclose(values[name][0, i], part, rtol=2e-5, err_msg=name)
    dormant = np.array([[activity.dormant_fraction(h, tau) for tau in config.taus] for h in hidden])
    np.testing.assert_allclose(values["dormant"][0], dormant, rtol=1e-6)
    np.testing.assert_allclose(values["dormant_mean"][0], dormant.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(values["dormant_pooled"][0], np.array([5, 4, 5, 4]) @ dormant / 18, rtol=1e-6)
    for name, expected in {"dormant_fraction": 1.0, "dead_units": [5, 4, 5, 4], "rows": EXAMPLES, "dormant": 1.0,
                           "dormant_pooled": 1.0, "dormant_mean": 1.0}.items():  # fmt: skip
        np.testing.assert_array_equal(values[name][1], np.broadcast_to(expected, values[name][1].shape), err_msg=name)
        values.pop(name)
    assert all((value[1] == 0.0).all() for value in values.values())


def test_feature_probe_takes_the_named_variants() -> None:
    configs = (FeatureProbe(), FeatureProbe(srank="l2_init", centred=True))
    measures = [config.build(MODEL).measure for config in configs]
    seen = look(make_params(), make_batch(), no_factors())
    kumar, other = jit(lambda p: [measure(seen._replace(params=p)) for measure in measures])(seen.params)
    assert (other["srank"] < kumar["srank"]).all()
    assert (other["effective_rank"] != kumar["effective_rank"]).all()


def test_monitor_averages_each_network_on_its_own() -> None:
    params, x = make_params(), make_batch()["x"]
    features = jit(MODEL.apply)(params, x)[1]
    # A name that only begins like another network's is another network.
    values = jit(monitor)(params, features | {"actor_target/dense_0": jnp.zeros((EXAMPLES, 3))})
    for network in ("actor", "critic"):
        hidden = [np.float64(h) for name, h in features.items() if name.startswith(f"{network}/")]
        for name, one in (
            ("participation_ratio", numpy_participation_ratio),
            ("dormant_fraction", lambda h: np.mean(np.abs(h).mean(axis=0) <= 0.025 * np.abs(h).mean())),
            ("feature_norm", lambda h: np.linalg.norm(h, axis=1).mean()),
        ):
            expected = np.mean([one(h) for h in hidden])
            np.testing.assert_allclose(values[f"{name}/{network}"], expected, rtol=2e-5)
    assert all(np.shape(value) == () for value in values.values())
    np.testing.assert_allclose(values["weight_norm"], tree.norm(params))
