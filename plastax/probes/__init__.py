"""Pure measurements of one network: what to look at when a network stops learning.

`PROBES` holds the probes by name, as experiments select them. `measure` runs them on any network, in any training loop.
`ranks` and `activity` define the numbers as functions of plain arrays. README.md beside this file says how to add one.
"""

from plastax.probes import activity, ranks
from plastax.probes.activity import dead_units, dormant_fraction
from plastax.probes.churn import ChurnProbe
from plastax.probes.duplicates import DuplicateProbe
from plastax.probes.features import FeatureProbe
from plastax.probes.gain import GainProbe
from plastax.probes.gradient import GradientProbe
from plastax.probes.isometry_gap import IsometryGapProbe
from plastax.probes.kronecker import KroneckerSpectrum
from plastax.probes.measuring import measure
from plastax.probes.movement import MovementProbe
from plastax.probes.noise import NoiseProbe
from plastax.probes.ntk import NTKProbe
from plastax.probes.plasticity import PlasticityProbe
from plastax.probes.readiness import ReadinessProbe
from plastax.probes.registry import PROBES
from plastax.probes.robustness import RobustnessProbe
from plastax.probes.spectrum import GGN, Hessian
from plastax.probes.trainability import TrainabilityProbe
from plastax.probes.weights import WeightProbe

__all__ = [
    "GGN",
    "PROBES",
    "ChurnProbe",
    "DuplicateProbe",
    "FeatureProbe",
    "GainProbe",
    "GradientProbe",
    "Hessian",
    "IsometryGapProbe",
    "KroneckerSpectrum",
    "MovementProbe",
    "NTKProbe",
    "NoiseProbe",
    "PlasticityProbe",
    "ReadinessProbe",
    "RobustnessProbe",
    "TrainabilityProbe",
    "WeightProbe",
    "activity",
    "dead_units",
    "dormant_fraction",
    "measure",
    "ranks",
]
