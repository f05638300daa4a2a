"""L2-ER, the paper's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from plastax.methods.base import chain
from plastax.methods.effective_rank import EffectiveRank
from plastax.methods.l2 import L2, l2
from plastax.roles import of_model
from plastax.types import Method, Model


@dataclass(frozen=True)
class L2ER(EffectiveRank):
    """L2-ER: coupled L2 and effective-rank ascent together, the paper's method.

    References:
      arXiv 2509.22335, section 7: ER raises the input factor of the Kronecker-factored Hessian, L2 keeps the output
      factor from collapsing under growing weights.

    Examples:
      >>> from plastax import methods
      >>> method = methods.L2ER(er_lr=1e-4).build(optax.adam(1e-3))
    """

    off: ClassVar = {"er_lr": 0.0, "l2": 0.0}

    l2: float = L2.l2
    """Strength of the L2 term (paper: 1e-3), see `L2`."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(l2, inner, effective_rank)``; as a term of the loss ``chain(l2, effective_rank, inner)``."""
        return chain(l2(self.l2, of_model(model)), super().build(inner, model))
