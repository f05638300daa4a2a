"""The gradient of the loss on a batch."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class GradientProbe:
    """Norm of the loss gradient and the share of its entries that are exactly zero."""

    def build(self, model: Model) -> Probe:
        """The probe: ``norm`` (Euclidean, all parameters) and ``zero_fraction``, scalars."""
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            grads = jax.grad(seen.loss_fn)(seen.params, seen.batch)
            zeros = jnp.stack([jnp.sum(g == 0) for g in jax.tree.leaves(grads)]).sum()
            return {"norm": tree.norm(grads), "zero_fraction": zeros / tree.size(grads)}

        return Probe("gradient", measure, {}, {})
