"""Parseval regularisation: keeps the units of every hidden layer orthogonal to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax

from plastax.methods.base import Settings, check_numbers, kernel_penalty
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model


@dataclass(frozen=True)
class Parseval(Settings):
    """Parseval regularisation: keeps the weight vectors of each hidden layer's units orthonormal."""

    off: ClassVar = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from orthogonality (Plasticine: 1e-3)."""
    scale: float = 1.0
    """Squared length of every unit's weights (Plasticine: 1; 2 fits ReLU and orthogonal initialisation of gain
    sqrt(2))."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(parseval, inner)``."""
        return optax.chain(parseval(**vars(self), roles=of_model(model)), inner)


def orthonormality_slope(w: Array, scale: float | Array = 1.0) -> Array:
    """The gradient ``4 W (W^T W - scale I)`` of ``|W^T W - scale I|_F^2``."""
    return 4 * (w @ (w.T @ w - scale * jnp.eye(w.shape[1], dtype=w.dtype)))


def parseval(
    strength: float | Array = Parseval.strength, scale: float | Array = Parseval.scale, roles: RolesOf = STRUCTURE
) -> Method:
    """Adds the gradient of ``strength * sum_l |W_l^T W_l - scale I|_F^2`` to the gradient, before the optimiser.

    ``W_l`` ``[inputs, units]`` is the kernel of hidden layer l, a convolution's as ``[h * w * c_in, c_out]``. The
    weight vectors of different units become orthogonal, with squared length ``scale``. That is impossible in a layer
    with more units than inputs; `isometry` takes the other side there. The paper adds a learnable scale of every
    layer's inputs, and orthogonal initialisation, which is an option of the model.

    ``roles`` says which layers are hidden.

    References:
      Chung et al., "Parseval regularization for continual reinforcement learning", arXiv 2412.07224.

    Examples:
      >>> from plastax import methods
      >>> from plastax.roles import Roles
      >>> tx = optax.chain(methods.parseval(0.1, roles=Roles(output=())), optax.sgd(1.0))
      >>> params = {"dense": {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}}
      >>> updates, _ = tx.update({"dense": {"kernel": jnp.zeros((2, 2))}}, tx.init(params), params)
      >>> print(updates["dense"]["kernel"][1, 1])
      -2.4
    """
    check_numbers("parseval", scale=scale)
    return kernel_penalty("parseval", lambda w: orthonormality_slope(w, scale), strength, roles)
