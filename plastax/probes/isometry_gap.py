"""How far the kernels are from isometries, which keep the lengths of activations and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import roles
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.probes.weights import kernel_names, kernels
from plastax.types import Array, Model, Probe, ProbeInput


@jax.default_matmul_precision("highest")
def deviations(matrix: Array) -> tuple[Array, Array]:
    """``sqrt(mean_i (s_i^2 - 1)^2)`` of the singular values s, scalar; and the same of ``s_i^2 / mean_j s_j^2``.

    The first is ``|W^T W - I|_F / sqrt(k)``, or with ``W W^T``, whichever of the two is the smaller matrix, ``[k, k]``.
    The second leaves a common factor out: it is 0 if all singular values are equal, and for the zero matrix.

    Args:
      matrix: ``[inputs, units]``.
    """
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    size = len(gram)
    mean = jnp.trace(gram) / size
    identity = jnp.eye(size, dtype=gram.dtype)

    def rms(x: Array) -> Array:
        return jnp.linalg.norm(x) / jnp.sqrt(float(size))

    return rms(gram - identity), rms(gram / jnp.where(mean == 0, 1.0, mean) - jnp.where(mean == 0, 0.0, identity))


@dataclass(frozen=True)
class IsometryGapProbe(ProbeConfig):
    """Deviation of every layer's kernel from an isometry, and from a multiple of one."""

    name: ClassVar[str] = "isometry_gap"
    needs: ClassVar[tuple[Need, ...]] = ("kernels",)

    def build(self, model: Model) -> Probe:
        """The probe.

        ``deviation`` and ``relative_deviation`` ``[layer]`` are those of `deviations`, a convolution's as the matrix
        ``[h w in, out]``, the mean over the layers of a stack. Activations are left out: an orthogonal kernel times
        sqrt(2), which makes up for the half that a ReLU cuts off, has a deviation of 1 and a relative one of 0.

        References:
          After "Preserving plasticity in continual learning via dynamical isometry", arXiv 2606.09762, whose penalty
          (`plastax.methods.isometry`) is the square of ``deviation`` times k, summed over hidden layers.
        """
        check_network(self, model)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            found = roles.of_model(model).of(seen.params)
            names = kernel_names(seen.params, roles.of_model(model), self.name)

            def one(name: str, kernel: Array) -> Array:
                role = found[name]
                matrices = roles.matrices(kernel, role, roles.axes(name, role, self.name))
                stacked = jax.vmap(deviations)(matrices.reshape(-1, *matrices.shape[-2:]))
                return jnp.stack([jnp.mean(x) for x in stacked])

            named = zip((names[layer] for layer in model.layers), kernels(seen.params, model))
            values = jnp.stack([one(name, kernel) for name, kernel in named], axis=1)
            return {"deviation": values[0], "relative_deviation": values[1]}

        dims = dict.fromkeys(("deviation", "relative_deviation"), ("layer",))
        return Probe(self.name, measure, dims, {"layer": model.layers}, every=self.every)
