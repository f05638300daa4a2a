"""Pure measurements of one network: what to look at when a network stops learning.

`PROBES` names what an experiment can select; each entry is the frozen configuration whose ``build(model)`` makes the
`plastax.types.Probe`.
"""

from plastax.probes.features import FeatureProbe, dead_units, dormant_fraction, monitor
from plastax.probes.gradient import GradientProbe
from plastax.probes.kronecker import KroneckerSpectrum
from plastax.probes.spectrum import GGN, Hessian
from plastax.probes.trainability import TrainabilityProbe
from plastax.probes.weights import WeightProbe

PROBES = {
    "features": FeatureProbe(),
    "weights": WeightProbe(),
    "gradient": GradientProbe(),
    "hessian": Hessian(),
    "ggn": GGN(),
    "kronecker": KroneckerSpectrum(),
    "trainability": TrainabilityProbe(),
}

__all__ = [
    "GGN",
    "PROBES",
    "FeatureProbe",
    "GradientProbe",
    "Hessian",
    "KroneckerSpectrum",
    "TrainabilityProbe",
    "WeightProbe",
    "dead_units",
    "dormant_fraction",
    "monitor",
]
