"""Plasticity-preserving methods, one a file, each an `optax.GradientTransformationExtraArgs`.

`METHODS` names what an experiment can select: the frozen configuration whose ``build(optimiser, model)`` wraps an
optimiser into the method; `compose` makes one of several. The transformations themselves compose by `optax.chain`:
``optax.chain(l2(1e-3), optax.adam(1e-3), effective_rank(1e-4))`` is L2-ER.
"""

from plastax.methods.adam_rel import AdamRel, MomentReset
from plastax.methods.backprop import Backprop
from plastax.methods.compose import compose
from plastax.methods.crelu import CReLU
from plastax.methods.dash import Dash, dash
from plastax.methods.deep_fourier import DeepFourier
from plastax.methods.effective_rank import EffectiveRank, effective_rank, mean_effective_rank
from plastax.methods.hare_tortoise import HareTortoise, hare_tortoise
from plastax.methods.l2 import L2, l2
from plastax.methods.l2_er import L2ER
from plastax.methods.l2_init import L2Init, l2_init
from plastax.methods.layernorm import LayerNorm, LayerNormL2
from plastax.methods.muon import Muon
from plastax.methods.normalize_and_project import NormalizeAndProject, project
from plastax.methods.orthogonal import Orthogonal
from plastax.methods.plasticity_injection import PlasticityInjection, plasticity_injection
from plastax.methods.reset import Reset, reset
from plastax.methods.shrink_and_perturb import ShrinkAndPerturb, shrink_and_perturb
from plastax.methods.smooth_leaky import SmoothLeaky
from plastax.methods.trac import Trac, trac
from plastax.methods.upgd import UPGD, upgd
from plastax.methods.weight_clipping import WeightClipping, weight_clipping
from plastax.methods.weight_decay import WeightDecay, weight_decay
from plastax.types import MethodConfig

METHODS: dict[str, MethodConfig] = {
    "backprop": Backprop(),
    "l2": L2(),
    "weight_decay": WeightDecay(),
    "l2_init": L2Init(),
    "effective_rank": EffectiveRank(),
    "l2_er": L2ER(),
    "layernorm": LayerNorm(),
    "layernorm_l2": LayerNormL2(),
    "reset": Reset(),
    "shrink_and_perturb": ShrinkAndPerturb(),
    "upgd": UPGD(),
    "weight_clipping": WeightClipping(),
    "normalize_and_project": NormalizeAndProject(),
    "adam_rel": AdamRel(),
    "moment_reset": MomentReset(),
    "trac": Trac(),
    "hare_tortoise": HareTortoise(),
    "muon": Muon(),
    "dash": Dash(),
    "plasticity_injection": PlasticityInjection(),
    "crelu": CReLU(),
    "deep_fourier": DeepFourier(),
    "smooth_leaky": SmoothLeaky(),
    "orthogonal": Orthogonal(),
}

__all__ = [
    "L2",
    "L2ER",
    "METHODS",
    "UPGD",
    "AdamRel",
    "Backprop",
    "CReLU",
    "Dash",
    "DeepFourier",
    "EffectiveRank",
    "HareTortoise",
    "L2Init",
    "LayerNorm",
    "LayerNormL2",
    "MomentReset",
    "Muon",
    "NormalizeAndProject",
    "Orthogonal",
    "PlasticityInjection",
    "Reset",
    "ShrinkAndPerturb",
    "SmoothLeaky",
    "Trac",
    "WeightClipping",
    "WeightDecay",
    "compose",
    "dash",
    "effective_rank",
    "hare_tortoise",
    "l2",
    "l2_init",
    "mean_effective_rank",
    "plasticity_injection",
    "project",
    "reset",
    "shrink_and_perturb",
    "trac",
    "upgd",
    "weight_clipping",
    "weight_decay",
]
