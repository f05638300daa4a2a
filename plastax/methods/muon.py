"""Muon: steps whose matrices are orthogonalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from plastax import roles, tree
from plastax.methods.base import Settings
from plastax.roles import RolesOf, of_model
from plastax.types import Array, Method, Model, Params, Tree


def _dimensions(params: Params, roles_of: RolesOf) -> Tree:
    """The axes of the parameters that are matrices; None for all others."""
    found = roles_of.of(params)

    def one(name: str, _: Array) -> optax.contrib.MuonDimensionNumbers | None:
        if found[name].kind != "kernel":
            return None
        kernel = roles.axes(name, found[name], "muon", places=True)
        return None if kernel.places else optax.contrib.MuonDimensionNumbers(kernel.inputs, kernel.outputs)

    return tree.map_named(one, params)


@dataclass(frozen=True)
class Muon(Settings):
    """Muon, in place of the optimiser: momentum, with each matrix orthogonalised by five Newton-Schulz iterations.

    This is `optax.contrib.muon`. It replaces the experiment's optimiser, whose name, step size and moments then have no
    effect (a schedule of the step size, ``training.drops``, holds as for any method). Among composed methods it is
    innermost. Kernels of dense layers, the output layer's too, are stepped by Muon, each as one matrix, scaled by
    ``sqrt(max(1, fan out / fan in))``. Biases, normalisation layers, embeddings and convolutions are stepped by AdamW
    with Nesterov momentum and the same step size.

    References:
      Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, where Adam steps the first and the
      last layer; the code of arXiv 2509.22335 sweeps step sizes 1e-2 to 1e-4, with the weight decay of its L2 arm.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import methods
      >>> tx = methods.Muon(learning_rate=0.1).build(optax.identity())
      >>> params = {"dense": {"kernel": jnp.eye(2)}}
      >>> updates, _ = tx.update({"dense": {"kernel": 7 * jnp.eye(2)}}, tx.init(params), params)
      >>> print(round(float(updates["dense"]["kernel"][0, 0]), 2))  # the gradient's size does not matter
      -0.11
    """

    replaces_optimizer: ClassVar = True
    off: ClassVar = None

    learning_rate: float = 1e-3
    """Step size."""
    beta: float = 0.95
    """Decay of the momentum of matrices."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices: they lose the step size times this at every step."""
    iterations: int = 5
    """Newton-Schulz iterations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", below=1)
        self.check("iterations", least=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """`optax.contrib.muon`; ``inner`` is not used."""

        def muon(params: Params) -> optax.GradientTransformation:
            # Dimensions of the whole tree: optax itself would ask for them part by part.
            return optax.contrib.muon(
                self.learning_rate, beta=self.beta, weight_decay=self.weight_decay, ns_steps=self.iterations,
                muon_weight_dimension_numbers=_dimensions(params, of_model(model)),
            )  # fmt: skip

        def update(updates: Tree, state: Tree, params: Params | None = None, **_: object) -> tuple[Tree, Tree]:
            return muon(updates).update(updates, state, params)

        return optax.GradientTransformationExtraArgs(lambda params: muon(params).init(params), update)
