"""The size of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from plastax import tree
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class WeightProbe:
    """Norm and mean magnitude of every dense layer's kernel, and the norm of all parameters."""

    def build(self, model: Model) -> Probe:
        """The probe: ``norm`` (Frobenius) and ``mean_magnitude`` are ``[layer]``, ``total_norm`` is a scalar."""

        def measure(seen: ProbeInput) -> dict[str, Array]:
            leaves = tree.named_leaves(seen.params)
            kernels = [leaves[f"{layer}/kernel"] for layer in model.layers]
            return {
                "norm": jnp.stack([tree.norm(k) for k in kernels]),
                "mean_magnitude": jnp.stack([jnp.mean(jnp.abs(k)) for k in kernels]),
                "total_norm": tree.norm(seen.params),
            }

        return Probe("weights", measure, {"norm": ("layer",), "mean_magnitude": ("layer",)}, {"layer": model.layers})
