"""Plasticity-preserving methods, one a file, each an `optax.GradientTransformationExtraArgs`.

`METHODS` names what an experiment can select: the frozen configuration whose ``build(optimiser, model)`` wraps an
optimiser into the method; `compose` makes one of several. The transformations themselves compose by `optax.chain`:
``optax.chain(l2(1e-3), optax.adam(1e-3), effective_rank(1e-4))`` is L2-ER.
"""

from plastax.methods.adam import adam_per_parameter
from plastax.methods.adam_rel import AdamRel, MomentReset
from plastax.methods.backprop import Backprop
from plastax.methods.c_chain import CChain, c_chain
from plastax.methods.compose import compose
from plastax.methods.continual_backprop import ContinualBackprop, continual_backprop
from plastax.methods.crelu import CReLU
from plastax.methods.dash import Dash, dash
from plastax.methods.deep_fourier import DeepFourier
from plastax.methods.effective_rank import EffectiveRank, effective_rank, mean_effective_rank
from plastax.methods.hare_tortoise import HareTortoise, hare_tortoise
from plastax.methods.isometry import Isometry, isometry
from plastax.methods.l2 import L2, l2
from plastax.methods.l2_er import L2ER
from plastax.methods.l2_init import L2Init, l2_init
from plastax.methods.layernorm import LayerNorm, LayerNormL2
from plastax.methods.muon import Muon
from plastax.methods.normalize_and_project import NormalizeAndProject, project
from plastax.methods.orthogonal import Orthogonal
from plastax.methods.parseval import Parseval, parseval
from plastax.methods.plasticity_injection import PlasticityInjection, plasticity_injection
from plastax.methods.redo import ReDo, redo
from plastax.methods.regrama import ReGraMa, regrama
from plastax.methods.reset import Reset, reset
from plastax.methods.reset_head import ResetHead, reset_head
from plastax.methods.self_normalized_resets import SelfNormalizedResets, self_normalized_resets
from plastax.methods.shrink_and_perturb import ShrinkAndPerturb, shrink_and_perturb
from plastax.methods.smooth_leaky import SmoothLeaky
from plastax.methods.spectral_norm import SpectralNorm, spectral_norm
from plastax.methods.trac import Trac, trac
from plastax.methods.upgd import UPGD, upgd
from plastax.methods.wasserstein_init import WassersteinInit, wasserstein_init
from plastax.methods.weight_clipping import WeightClipping, weight_clipping
from plastax.methods.weight_decay import WeightDecay, weight_decay
from plastax.types import MethodConfig

METHODS: dict[str, MethodConfig] = {
    "backprop": Backprop(),
    "l2": L2(),
    "weight_decay": WeightDecay(),
    "l2_init": L2Init(),
    "wasserstein_init": WassersteinInit(),
    "spectral_norm": SpectralNorm(),
    "parseval": Parseval(),
    "isometry": Isometry(),
    "c_chain": CChain(),
    "effective_rank": EffectiveRank(),
    "l2_er": L2ER(),
    "layernorm": LayerNorm(),
    "layernorm_l2": LayerNormL2(),
    "reset": Reset(),
    "reset_head": ResetHead(),
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
    "continual_backprop": ContinualBackprop(),
    "redo": ReDo(),
    "regrama": ReGraMa(),
    "self_normalized_resets": SelfNormalizedResets(),
}

__all__ = [
    "L2",
    "L2ER",
    "METHODS",
    "UPGD",
    "AdamRel",
    "Backprop",
    "CChain",
    "CReLU",
    "ContinualBackprop",
    "Dash",
    "DeepFourier",
    "EffectiveRank",
    "HareTortoise",
    "Isometry",
    "L2Init",
    "LayerNorm",
    "LayerNormL2",
    "MomentReset",
    "Muon",
    "NormalizeAndProject",
    "Orthogonal",
    "Parseval",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "Reset",
    "ResetHead",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "SmoothLeaky",
    "SpectralNorm",
    "Trac",
    "WassersteinInit",
    "WeightClipping",
    "WeightDecay",
    "adam_per_parameter",
    "c_chain",
    "compose",
    "continual_backprop",
    "dash",
    "effective_rank",
    "hare_tortoise",
    "isometry",
    "l2",
    "l2_init",
    "mean_effective_rank",
    "parseval",
    "plasticity_injection",
    "project",
    "redo",
    "regrama",
    "reset",
    "reset_head",
    "self_normalized_resets",
    "shrink_and_perturb",
    "spectral_norm",
    "trac",
    "upgd",
    "wasserstein_init",
    "weight_clipping",
    "weight_decay",
]
