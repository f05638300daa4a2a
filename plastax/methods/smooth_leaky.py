"""The nonlinearity Smooth-Leaky: an option of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plastax.methods.base import Settings


@dataclass(frozen=True)
class SmoothLeaky(Settings):
    """Smooth-Leaky, ``a z + (1 - a) z sigmoid(c z / p)``, in every hidden layer: smooth, and never quite flat.

    With the paper's constants a = 0.1, p = 3, c = 5. Its randomised version, which draws a, is not here.

    References:
      Lillo and Cheney, "Activation function design sustains plasticity in continual learning", arXiv 2509.22562,
      equation 1.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"activation": "smooth_leaky"}
