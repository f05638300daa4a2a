"""Parseval regularisation: the units of every hidden layer are kept orthogonal to one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from plastax.methods.base import Settings, check_numbers, on_hidden_kernels
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model


def parseval(strength: float | Array = 1e-3, scale: float | Array = 1.0, roles: RolesOf = STRUCTURE) -> Method:
    """Adds the gradient of ``strength * sum_l |W_l^T W_l - scale I|_F^2`` to the gradient, before the optimiser.

    ``W_l`` ``[inputs, units]`` is the kernel of hidden layer l (which are hidden says ``roles``), a convolution's as
    ``[h * w * c_in, c_out]``: the
    vectors of weights into different units are to be orthogonal, of squared length ``scale``. Layer l's gradient is
    ``4 W (W^T W - scale I)``. Where a layer has more units than inputs that cannot hold; `isometry` takes the other
    side there. The paper adds a learnable scale of every layer's inputs, and orthogonal initialisation, which are
    options of the model.

    References:
      Chung et al., "Parseval regularization for continual reinforcement learning", arXiv 2412.07224.
    """

    def slope(w: Array) -> Array:
        return 4 * (w @ (w.T @ w - scale * jnp.eye(w.shape[1], dtype=w.dtype)))

    check_numbers("parseval", scale=scale)
    return on_hidden_kernels("parseval", slope, strength, roles)


@dataclass(frozen=True)
class Parseval(Settings):
    """Parseval regularisation: keeps the weight vectors of each hidden layer's units orthonormal."""

    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from orthogonality (Plasticine: 1e-3)."""
    scale: float = 1.0
    """Squared length of every unit's weights (Plasticine: 1; 2 fits ReLU and orthogonal initialisation of gain
    sqrt(2))."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(parseval, inner)``."""
        return optax.chain(parseval(self.strength, self.scale, of_model(model)), inner)
