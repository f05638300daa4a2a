"""What every probe keeps to, and the settings that it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from plastax import testing
from plastax.errors import ConfigError
from plastax.methods import METHODS
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
from plastax.testing.probes import Kind
from tests.probes.network import MODEL

COSTLY = ("hessian", "trainability", "plasticity", "gain", "readiness")
"""To compile; `ggn` has what is special about spectra, and each has tests of its own."""
# As an experiment has them: with a budget.
CONFIGS = {**PROBES, "trainability": PROBES["trainability"].within(0.1, 20)}


def test_no_probe_has_the_name_of_a_method() -> None:
    """Both are groups of settings: ``--redo.tau``, ``--hessian.order``."""
    assert not PROBES.keys() & METHODS.keys()


@pytest.mark.parametrize("kind", [pytest.param("supervised", marks=pytest.mark.slow), "reinforcement"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COSTLY)) for name in PROBES],
)
def test_registered_probe_keeps_its_promises(name: str, kind: Kind) -> None:
    assert CONFIGS[name].name == name
    testing.check_probe(CONFIGS[name], kinds=(kind,))


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
