"""Concatenated ReLU, which the field speaks of as a method: an option of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plastax.methods.base import Settings


@dataclass(frozen=True)
class CReLU(Settings):
    """CReLU: every hidden unit gives ``relu(z)`` and ``relu(-z)``, so that none is ever silent.

    The widths of the model count units, as for ReLU: every layer then reads twice as many features, and a network of
    hidden layers of width n has nearly twice the parameters. Kumar et al. compare at equal numbers of parameters, with
    narrower layers; to do so set the model's widths (about ``n / sqrt(2)`` where hidden layers dominate).

    References:
      Shang et al., ICML 2016, definition 2.1; for plasticity: Abbas et al., "Loss of plasticity in continual deep
      reinforcement learning", CoLLAs 2023, and Kumar et al., arXiv 2308.11958.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"activation": "crelu"}
