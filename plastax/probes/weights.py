"""The size of the parameters.

Norms grow with a layer's width and mean magnitudes fall with it: compare over time, not between networks of different
shapes. Scales and biases of normalisation layers are in the totals but in no layer's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import linalg, roles, tree
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.roles import RolesOf
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


def mean_magnitude(params: Tree) -> Array:
    """Mean absolute value of all entries of a tree, a scalar.

    The "weight magnitude" of Dohare et al. and of Kumar et al. Plasticine's is `root_mean_square`: larger, and
    sensitive to few large weights.
    """
    total = jax.tree.reduce(jnp.add, jax.tree.map(lambda x: jnp.sum(jnp.abs(x)), params), jnp.zeros(()))
    return total / tree.size(params)


def root_mean_square(params: Tree) -> Array:
    """``||theta||_2 / sqrt(P)``, a scalar: Plasticine's weight magnitude."""
    return tree.norm(params) / jnp.sqrt(float(tree.size(params)))


@jax.default_matmul_precision("highest")
def spectral_norm(kernel: Array) -> Array:
    """Largest singular value of a kernel, a scalar.

    For a convolution's ``[h, w, in, out]`` it is that of the matrix ``[h w in, out]``, which public codes penalise. The
    norm of the convolution as an operator on images is another number, at most ``sqrt(h w)`` times as large.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    largest = jnp.max(jnp.abs(matrix))
    # Scaled, so that squares neither over- nor underflow. The largest eigenvalue loses nothing in the Gram matrix.
    matrix = matrix / jnp.where(largest == 0, 1.0, largest)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return largest * jnp.sqrt(jnp.maximum(linalg.eigvalsh(gram)[-1], 0.0))


@dataclass(frozen=True)
class WeightProbe(ProbeConfig):
    """Norm, mean magnitude and spectral norm of every layer's kernel; norm and magnitude of all parameters."""

    name: ClassVar[str] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("kernels",)

    def build(self, model: Model) -> Probe:
        """The probe.

        ``norm`` (Frobenius), ``mean_magnitude`` and ``spectral_norm`` are ``[layer]``, of kernels, and where one array
        stacks layers (`flax.linen.scan`) of the whole stack; ``total_norm`` and ``total_mean_magnitude``, of all
        parameters, are scalars. `plastax.roles` says which axes of a kernel are inputs and which units.
        """
        check_network(self, model)
        measures: dict[str, Callable[[Array], Array]] = {
            "norm": tree.norm,
            "mean_magnitude": mean_magnitude,
        }

        def measure(seen: ProbeInput) -> dict[str, Array]:
            params = tree.wide(seen.params)
            found = kernels(params, model)
            values = {name: jnp.stack([fn(kernel) for kernel in found]) for name, fn in measures.items()}
            return values | {
                "spectral_norm": _spectral_norms(params, model),
                "total_norm": tree.norm(params),
                "total_mean_magnitude": mean_magnitude(params),
            }

        dims = dict.fromkeys((*measures, "spectral_norm"), ("layer",))
        return Probe(self.name, measure, dims, {"layer": model.layers}, every=self.every)


def kernel_names(params: Params, roles_of: RolesOf, asks: str) -> dict[str, str]:
    """Layer -> its kernel's name, in the tree's order; in a layer with several, each kernel is a layer of its name.

    Raises:
      ConfigError: if no parameter is a kernel.
    """
    found = roles.kernels(roles_of.of(params), asks)
    layers = [role.layer for role in found.values()]
    return {role.layer if layers.count(role.layer) == 1 else name: name for name, role in found.items()}


def kernels(params: Params, model: Model) -> list[Array]:
    """The kernels of the layers, in their order, in float32 at least."""
    leaves, names = tree.named_leaves(tree.wide(params)), kernel_names(params, roles.of_model(model), "probes")
    return [leaves[names[layer]] for layer in model.layers]


def _spectral_norms(params: Params, model: Model) -> Array:
    found = roles.of_model(model).of(params)
    names = kernel_names(params, roles.of_model(model), "weights")

    def one(name: str, kernel: Array) -> Array:
        role = found[name]
        matrices = roles.matrices(kernel, role, roles.axes(name, role, "weights"))
        if matrices.ndim == 2:
            return spectral_norm(matrices)
        return jnp.max(jax.vmap(spectral_norm)(matrices.reshape(-1, *matrices.shape[-2:])))

    named = zip((names[layer] for layer in model.layers), kernels(params, model))
    return jnp.stack([one(name, kernel) for name, kernel in named])
