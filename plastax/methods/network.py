"""Options of the model that the field speaks of as methods: normalisation, nonlinearities, initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plastax.methods.base import Settings
from plastax.methods.l2 import L2


@dataclass(frozen=True)
class LayerNorm(Settings):
    """LayerNorm with scale and bias before every nonlinearity.

    References:
      Ba, Kiros and Hinton, arXiv 1607.06450; for plasticity: Lyle et al., arXiv 2303.01486.
    """

    model_options: ClassVar = {"layer_norm": True}


@dataclass(frozen=True)
class LayerNormL2(L2):
    """LayerNorm and coupled L2, a strong baseline (the norm's own parameters are not decayed).

    References:
      Lyle et al., "Disentangling the causes of plasticity loss in neural networks", arXiv 2402.18762.
    """

    model_options: ClassVar = {"layer_norm": True}


@dataclass(frozen=True)
class CReLU(Settings):
    """CReLU: every hidden unit gives ``relu(z)`` and ``relu(-z)``, so that no unit is ever silent.

    The model's widths count units, as for ReLU. Each layer then reads twice as many features, and hidden layers of
    width n give the network nearly twice the parameters. Kumar et al. compare at equal numbers of parameters: for that
    set narrower widths (about ``n / sqrt(2)`` if hidden layers dominate).

    References:
      Shang et al., ICML 2016, definition 2.1; for plasticity: Abbas et al., "Loss of plasticity in continual deep
      reinforcement learning", CoLLAs 2023, and Kumar et al., arXiv 2308.11958.
    """

    model_options: ClassVar = {"activation": "crelu"}


@dataclass(frozen=True)
class DeepFourier(Settings):
    """Deep Fourier features: every hidden unit gives ``sin(z)`` and ``cos(z)``, one of which is always steep.

    The model's widths count units, as for ReLU, so layers have two features a unit. The paper keeps the number of
    features, which is half the width here.

    References:
      Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", arXiv 2410.20634.
    """

    model_options: ClassVar = {"activation": "deep_fourier"}


@dataclass(frozen=True)
class SmoothLeaky(Settings):
    """Smooth-Leaky, ``a z + (1 - a) z sigmoid(c z / p)``, in every hidden layer: smooth, and never quite flat.

    It has the paper's constants a = 0.1, p = 3, c = 5. Its randomised version, which draws a, is not included.

    References:
      Lillo and Cheney, "Activation function design sustains plasticity in continual learning", arXiv 2509.22562,
      equation 1.
    """

    model_options: ClassVar = {"activation": "smooth_leaky"}


@dataclass(frozen=True)
class Orthogonal(Settings):
    """Orthogonal initialisation: all kernels, the output layer's too, are drawn orthogonal with gain sqrt(2).

    It is the start that methods assume which keep kernels orthogonal (Parseval regularisation, isometry):
    ``orthogonal+parseval``. The actor-critic networks are always initialised so and have no such option.

    References:
      Saxe, McClelland and Ganguli, ICLR 2014, section 3; for plasticity: Chung et al., "Parseval regularization for
      continual reinforcement learning", arXiv 2412.07224.
    """

    model_options: ClassVar = {"initializer": "orthogonal"}
