"""Isometry regularisation: keeps hidden kernels semi-orthogonal, whether they are wide or tall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import optax

from plastax.methods.base import Settings, kernel_penalty
from plastax.methods.parseval import orthonormality_slope
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model

Form = Literal["loss", "decoupled"]


@dataclass(frozen=True)
class Isometry(Settings):
    """Isometry regularisation: keeps all singular values of each hidden kernel at one."""

    off: ClassVar = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from a semi-orthogonal kernel; decoupled: step size on it."""
    form: Form = "loss"
    """loss: a term of the loss, through the optimiser | decoupled: a step of its own beside it (AdamO)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(isometry, inner)``; decoupled ``chain(inner, isometry)``."""
        if self.form == "decoupled":
            return optax.chain(inner, isometry(-self.strength, of_model(model)))
        return optax.chain(isometry(self.strength, of_model(model)), inner)


def isometry(strength: float | Array = Isometry.strength, roles: RolesOf = STRUCTURE) -> Method:
    """Adds the gradient of ``strength * sum_l |W^T W - I|_F^2``, or of ``|W W^T - I|_F^2``, to the updates.

    ``W`` is a hidden layer's kernel, a convolution's as ``[h * w * c_in, c_out]``. A kernel with at least as many rows
    as columns gets the first form, with the gradient ``4 W (W^T W - I)``; others get ``4 (W W^T - I) W``. Before the
    optimiser in a chain it is a term of the loss. After it, with ``-strength``, it is a step of its own that bypasses
    the moments: with Adam that is AdamO, whose learning rate times mu is this ``strength``.

    ``roles`` says which layers are hidden.

    References:
      arXiv 2606.09762, eq. 16 (the penalty) and 19 to 20 (AdamO), from notes that cite it.

    Examples:
      >>> from plastax import methods
      >>> from plastax.roles import Roles
      >>> tx = methods.isometry(0.1, Roles(output=()))
      >>> params = {"dense": {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}}
      >>> updates, _ = tx.update({"dense": {"kernel": jnp.zeros((2, 2))}}, tx.init(params), params)
      >>> print(jnp.diag(updates["dense"]["kernel"]))
      [0.  2.4]
    """

    def slope(w: Array) -> Array:
        if w.shape[0] >= w.shape[1]:
            return orthonormality_slope(w)
        return 4 * ((w @ w.T - jnp.eye(w.shape[0], dtype=w.dtype)) @ w)

    return kernel_penalty("isometry", slope, strength, roles)
