"""Isometry regularisation: hidden kernels are kept semi-orthogonal, whichever way they are rectangular."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
import optax

from plastax.errors import ConfigError
from plastax.methods.base import Settings, on_hidden_kernels
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model

Form = Literal["loss", "decoupled"]


def isometry(strength: float | Array = 1e-3, roles: RolesOf = STRUCTURE) -> Method:
    """Adds the gradient of ``strength * sum_l |W^T W - I|_F^2``, or of ``|W W^T - I|_F^2``, to what it is given.

    ``W`` is a hidden layer's kernel (``roles``), a convolution's as ``[h * w * c_in, c_out]``; the first form where it
    has at least as many rows as columns, with the gradient ``4 W (W^T W - I)``, else the second, ``4 (W W^T - I) W``.
    Before the optimiser in a chain it is a term of the loss; behind it, with ``-strength``, a step of its own, outside
    the moments: with Adam that is AdamO, whose learning rate times mu is this ``strength``.

    References:
      arXiv 2606.09762, eq. 16 (the penalty) and 19 to 20 (AdamO), from notes that cite it.
    """

    def slope(w: Array) -> Array:
        eye = jnp.eye(min(w.shape), dtype=w.dtype)
        return 4 * (w @ (w.T @ w - eye)) if w.shape[0] >= w.shape[1] else 4 * ((w @ w.T - eye) @ w)

    return on_hidden_kernels("isometry", slope, strength, roles)


@dataclass(frozen=True)
class Isometry(Settings):
    """Isometry regularisation: keeps all singular values of each hidden kernel at one."""

    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance from a semi-orthogonal kernel; decoupled: step size on it."""
    form: Form = "loss"
    """loss: a term of the loss, through the optimiser | decoupled: a step of its own beside it (AdamO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise ConfigError.unknown("Isometry.form", self.form, get_args(Form))

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(isometry, inner)``; decoupled ``chain(inner, isometry)``."""
        if self.form == "decoupled":
            return optax.chain(inner, isometry(-self.strength, of_model(model)))
        return optax.chain(isometry(self.strength, of_model(model)), inner)
