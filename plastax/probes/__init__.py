"""Pure measurements of one network: what to look at when a network stops learning.

`ranks` and `activity` define what is measured of plain arrays; each of the other files is one probe. `PROBES` names
what an experiment can select; each entry is the frozen configuration whose ``build(model)`` makes the
`plastax.types.Probe`. `measure` takes them of any network, in a training loop of one's own.
"""

from plastax.probes import activity, ranks
from plastax.probes.activity import dead_units, dormant_fraction
from plastax.probes.alone import measure
from plastax.probes.features import FeatureProbe, monitor
from plastax.probes.gradient import GradientProbe
from plastax.probes.kronecker import KroneckerSpectrum
from plastax.probes.movement import MovementProbe
from plastax.probes.ntk import NTKProbe
from plastax.probes.plasticity import PlasticityProbe
from plastax.probes.spectrum import GGN, Hessian
from plastax.probes.trainability import TrainabilityProbe
from plastax.probes.weights import WeightProbe

PROBES = {
    "features": FeatureProbe(),
    "weights": WeightProbe(),
    "movement": MovementProbe(),
    "gradient": GradientProbe(),
    "hessian": Hessian(),
    "ggn": GGN(),
    "kronecker": KroneckerSpectrum(),
    "ntk": NTKProbe(),
    "trainability": TrainabilityProbe(),
    "plasticity": PlasticityProbe(),
}

__all__ = [
    "GGN",
    "PROBES",
    "FeatureProbe",
    "GradientProbe",
    "Hessian",
    "KroneckerSpectrum",
    "MovementProbe",
    "NTKProbe",
    "PlasticityProbe",
    "TrainabilityProbe",
    "WeightProbe",
    "activity",
    "dead_units",
    "dormant_fraction",
    "measure",
    "monitor",
    "ranks",
]
