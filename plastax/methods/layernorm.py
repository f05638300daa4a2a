"""Layer normalisation, which the field speaks of as a method: an option of the model, alone or with L2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plastax.methods.base import Settings
from plastax.methods.l2 import L2


@dataclass(frozen=True)
class LayerNorm(Settings):
    """LayerNorm with scale and bias before every nonlinearity.

    References:
      Ba, Kiros and Hinton, arXiv 1607.06450; for plasticity: Lyle et al., arXiv 2303.01486.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"layer_norm": True}


@dataclass(frozen=True)
class LayerNormL2(L2):
    """LayerNorm and coupled L2, a strong baseline (the norm's own parameters are not decayed).

    References:
      Lyle et al., "Disentangling the causes of plasticity loss in neural networks", arXiv 2402.18762.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"layer_norm": True}
