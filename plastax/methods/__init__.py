"""Plasticity-preserving methods, each an `optax.GradientTransformationExtraArgs`.

`METHODS` names what an experiment can select: frozen configurations whose ``build(optimiser, model)`` wraps an
optimiser into the method. `compose` makes one of several. Transformations compose by `optax.chain`:
``optax.chain(l2(1e-3), optax.adam(1e-3), effective_rank(1e-4))`` is L2-ER. `README.md` beside this file lists all, and
says how to add one.
"""

from plastax.methods.adam import adam_per_parameter
from plastax.methods.adam_rel import AdamRel, MomentReset
from plastax.methods.backprop import Backprop
from plastax.methods.c_chain import CChain, c_chain
from plastax.methods.compose import compose
from plastax.methods.continual_backprop import ContinualBackprop, continual_backprop
from plastax.methods.dash import Dash, dash
from plastax.methods.effective_rank import EffectiveRank, effective_rank, mean_effective_rank
from plastax.methods.hare_tortoise import HareTortoise, hare_tortoise
from plastax.methods.isometry import Isometry, isometry
from plastax.methods.l2 import L2, l2
from plastax.methods.l2_er import L2ER
from plastax.methods.l2_init import L2Init, l2_init
from plastax.methods.muon import Muon
from plastax.methods.network import CReLU, DeepFourier, LayerNorm, LayerNormL2, Orthogonal, SmoothLeaky
from plastax.methods.normalize_and_project import NormalizeAndProject, project
from plastax.methods.parseval import Parseval, parseval
from plastax.methods.plasticity_injection import PlasticityInjection, plasticity_injection
from plastax.methods.redo import ReDo, redo
from plastax.methods.regrama import ReGraMa, regrama
from plastax.methods.reset import Reset, reset
from plastax.methods.reset_head import ResetHead, reset_head
from plastax.methods.self_normalized_resets import SelfNormalizedResets, self_normalized_resets
from plastax.methods.shrink_and_perturb import ShrinkAndPerturb, shrink_and_perturb
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
