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

from plastax import linalg, tree
from plastax.probes.base import Settings
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


def mean_magnitude(params: Tree) -> Array:
    """Mean absolute value of all entries of a tree, a scalar.

    The "weight magnitude" of Dohare et al. and of Kumar et al. Plasticine's is `root_mean_square`: larger, and moved by
    few large weights.
    """
    total = jax.tree.reduce(jnp.add, jax.tree.map(lambda x: jnp.sum(jnp.abs(x)), params), jnp.zeros(()))
    return total / tree.size(params)


def root_mean_square(params: Tree) -> Array:
    """``||theta||_2 / sqrt(P)``, a scalar: what Plasticine means by weight magnitude."""
    return tree.norm(params) / jnp.sqrt(float(tree.size(params)))


@jax.default_matmul_precision("highest")
def spectral_norm(kernel: Array) -> Array:
    """Largest singular value of a kernel, a scalar.

    Of a convolution's ``[h, w, in, out]`` that of its matrix ``[h w in, out]``, which is what public codes penalise. It
    is not the norm of the convolution as an operator on images; that is at most ``sqrt(h w)`` times as large.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    largest = jnp.max(jnp.abs(matrix))
    # Squares of the entries must neither over- nor underflow. The largest eigenvalue loses nothing in the Gram matrix.
    matrix = matrix / jnp.where(largest == 0, 1.0, largest)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return largest * jnp.sqrt(jnp.maximum(linalg.eigvalsh(gram)[-1], 0.0))


@dataclass(frozen=True)
class WeightProbe(Settings):
    """Norm, mean magnitude and spectral norm of every layer's kernel; norm and magnitude of all parameters."""

    name: ClassVar[str] = "weights"

    def build(self, model: Model) -> Probe:
        """The probe.

        ``norm`` (Frobenius), ``mean_magnitude`` and ``spectral_norm`` are ``[layer]``, of kernels; ``total_norm`` and
        ``total_mean_magnitude``, of all parameters, are scalars.
        """
        measures: dict[str, Callable[[Array], Array]] = {
            "norm": tree.norm,
            "mean_magnitude": mean_magnitude,
            "spectral_norm": spectral_norm,
        }

        def measure(seen: ProbeInput) -> dict[str, Array]:
            params = tree.wide(seen.params)
            found = kernels(params, model)
            values = {name: jnp.stack([fn(kernel) for kernel in found]) for name, fn in measures.items()}
            return values | {
                "total_norm": tree.norm(params),
                "total_mean_magnitude": mean_magnitude(params),
            }

        return Probe(self.name, measure, dict.fromkeys(measures, ("layer",)), {"layer": model.layers}, every=self.every)


def kernels(params: Params, model: Model) -> list[Array]:
    """The kernels of the layers, in their order, in float32 at least."""
    leaves = tree.named_leaves(tree.wide(params))
    return [leaves[f"{layer}/kernel"] for layer in model.layers]
