"""Deep Fourier features: an option of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plastax.methods.base import Settings


@dataclass(frozen=True)
class DeepFourier(Settings):
    """Deep Fourier features: every hidden unit gives ``sin(z)`` and ``cos(z)``, one of which is always steep.

    The widths of the model count units, as for ReLU, and so the layers have two features a unit; the paper keeps the
    number of features, which is half the width here.

    References:
      Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", arXiv 2410.20634.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"activation": "deep_fourier"}
