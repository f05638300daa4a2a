"""The probe of features against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from plastax.probes import FeatureProbe, activity, ranks
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
