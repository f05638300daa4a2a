"""The probes by name, each with its default settings."""

from __future__ import annotations

from collections.abc import Mapping

from plastax.probes.base import ProbeConfig
from plastax.probes.churn import ChurnProbe
from plastax.probes.duplicates import DuplicateProbe
from plastax.probes.features import FeatureProbe
from plastax.probes.gain import GainProbe
from plastax.probes.gradient import GradientProbe
from plastax.probes.isometry_gap import IsometryGapProbe
from plastax.probes.kronecker import KroneckerSpectrum
from plastax.probes.movement import MovementProbe
from plastax.probes.noise import NoiseProbe
from plastax.probes.ntk import NTKProbe
from plastax.probes.plasticity import PlasticityProbe
from plastax.probes.readiness import ReadinessProbe
from plastax.probes.robustness import RobustnessProbe
from plastax.probes.spectrum import GGN, Hessian
from plastax.probes.trainability import TrainabilityProbe
from plastax.probes.weights import WeightProbe

PROBES: Mapping[str, ProbeConfig] = {
    config.name: config
    for config in (
        FeatureProbe(),
        WeightProbe(),
        MovementProbe(),
        GradientProbe(),
        Hessian(),
        GGN(),
        KroneckerSpectrum(),
        NTKProbe(),
        TrainabilityProbe(),
        PlasticityProbe(),
        GainProbe(),
        ReadinessProbe(),
        NoiseProbe(),
        ChurnProbe(),
        DuplicateProbe(),
        IsometryGapProbe(),
        RobustnessProbe(),
    )
}
