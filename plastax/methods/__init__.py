"""Plasticity-preserving methods, one a file, each an `optax.GradientTransformationExtraArgs`.

`METHODS` names what an experiment can select: the frozen configuration whose ``build(optimiser, model)`` wraps an
optimiser into the method; `compose` makes one of several. The transformations themselves compose by `optax.chain`:
``optax.chain(l2(1e-3), optax.adam(1e-3), effective_rank(1e-4))`` is L2-ER.
"""

from plastax.methods.backprop import Backprop
from plastax.methods.compose import compose
from plastax.methods.effective_rank import EffectiveRank, effective_rank, mean_effective_rank
from plastax.methods.l2 import L2, l2
from plastax.methods.l2_er import L2ER
from plastax.methods.l2_init import L2Init, l2_init
from plastax.methods.layernorm import LayerNorm, LayerNormL2
from plastax.methods.reset import Reset, reset
from plastax.methods.shrink_and_perturb import ShrinkAndPerturb, shrink_and_perturb
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
}

__all__ = [
    "L2",
    "L2ER",
    "METHODS",
    "Backprop",
    "EffectiveRank",
    "L2Init",
    "LayerNorm",
    "LayerNormL2",
    "Reset",
    "ShrinkAndPerturb",
    "WeightDecay",
    "compose",
    "effective_rank",
    "l2",
    "l2_init",
    "mean_effective_rank",
    "reset",
    "shrink_and_perturb",
    "weight_decay",
]
