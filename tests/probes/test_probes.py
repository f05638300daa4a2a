"""What every probe keeps to, and the settings that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.errors import ConfigError
from plastax.probes import (
    GGN,
    PROBES,
    FeatureProbe,
    GradientProbe,
    Hessian,
    KroneckerSpectrum,
    NTKProbe,
    TrainabilityProbe,
)
from tests.probes.network import (
    MODEL,
    assert_declared,
    live_and_dead,
    look,
    make_batch,
    make_params,
    measure_of,
    no_factors,
)

# As an experiment has them: with a budget.
CONFIGS = {**PROBES, "trainability": PROBES["trainability"].within(0.1, 20)}
every_probe = pytest.mark.parametrize("name", PROBES)


@every_probe
def test_registered_probe(name: str, assert_no_retrace: Callable) -> None:
    probe = CONFIGS[name].build(MODEL)
    assert probe.name == name
    shapes = jax.eval_shape(lambda p, b: probe.measure(look(p, b, no_factors())), make_params(), make_batch())
    assert_declared(probe, shapes)

    params, batch, seeds = live_and_dead(), make_batch(), jnp.arange(2)
    values = measure_of(CONFIGS[name])(params, batch, seeds)
    assert {k: v.shape[1:] for k, v in values.items()} == {k: v.shape for k, v in shapes.items()}
    for key, value in values.items():
        padding = np.isnan(value[0]) if key.endswith("_eigenvalues") else np.zeros_like(value[0], bool)
        for network in range(2):
            np.testing.assert_array_equal(np.isfinite(value[network]), ~padding, err_msg=key)

    # The other network's neighbour, and the order, change nothing; nor does the other batch compile.
    other = make_batch(3)
    with assert_no_retrace():
        measure_of(CONFIGS[name])(params, other, seeds)
    flipped = measure_of(CONFIGS[name])(jax.tree.map(lambda x: x[::-1], params), batch, seeds[::-1])
    for key, value in values.items():
        np.testing.assert_allclose(flipped[key][1], value[0], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: FeatureProbe(tau=1.0), "features.tau"),
        (lambda: FeatureProbe(tau=-0.1), "features.tau"),
        (lambda: FeatureProbe(taus=(0.0, 2.0)), "features.taus"),
        (lambda: FeatureProbe(srank="dohare"), "features.srank"),
        (lambda: FeatureProbe(every=0), "features.every"),
        (lambda: GradientProbe(minibatches=1), "gradient.minibatches"),
        (lambda: GradientProbe(taus=(1.0,)), "gradient.taus"),
        (lambda: NTKProbe(examples=0), "ntk.examples"),
        (lambda: NTKProbe(delta=0.0), "ntk.delta"),
        (lambda: KroneckerSpectrum(eps=()), "kronecker.eps"),
        (lambda: KroneckerSpectrum(eps=(-1e-3,)), "kronecker.eps"),
        (lambda: Hessian(order=0), "hessian.order"),
        (lambda: GGN(probes=0), "ggn.probes"),
        (lambda: GGN(examples=0), "ggn.examples"),
        (lambda: GGN(method="dense"), "ggn.method"),
        (lambda: TrainabilityProbe(tau=0.0), "trainability.tau"),
        (lambda: TrainabilityProbe(order=0), "trainability.order"),
        (lambda: TrainabilityProbe(learning_rate=-1.0), "trainability.learning_rate"),
        (lambda: TrainabilityProbe(learning_rate=0.1).build(MODEL), "trainability.steps"),
        (lambda: Hessian(eps=(1e-3, -1e-3)), "hessian.eps"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        make()
