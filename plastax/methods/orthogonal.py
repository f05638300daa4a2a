"""Orthogonal initialisation: an option of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plastax.methods.base import Settings


@dataclass(frozen=True)
class Orthogonal(Settings):
    """Orthogonal initialisation: all kernels, the output layer's too, are drawn orthogonal with gain sqrt(2).

    What methods that keep kernels orthogonal start from (Parseval regularisation, isometry): ``orthogonal+parseval``.
    The actor-critic networks have no such option because they are always initialised so.

    References:
      Saxe, McClelland and Ganguli, ICLR 2014, section 3; for plasticity: Chung et al., "Parseval regularization for
      continual reinforcement learning", arXiv 2412.07224.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"initializer": "orthogonal"}
