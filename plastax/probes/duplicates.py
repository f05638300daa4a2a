"""Near-duplicate units: those that do what another unit of their layer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.probes import activity
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.probes.ranks import rows
from plastax.types import Array, Model, Probe, ProbeInput


@jax.default_matmul_precision("highest")
def nearest(features: Array) -> Array:
    """Every unit's largest cosine with another unit of its layer, ``[units]``; 0 for silent units.

    Units are compared by their activations on the batch, up to a positive factor, and not centred. A cosine of 1 means
    that two units are copies of each other: equal gradients keep them together.

    Args:
      features: ``[B, ..., units]``, of one layer.
    """
    h = rows(features)
    norms = jnp.linalg.norm(h, axis=0, keepdims=True)
    unit = h / jnp.where(norms == 0, 1.0, norms)
    cosines = jnp.where(jnp.eye(h.shape[1], dtype=bool), -1.0, unit.T @ unit)
    return jnp.where(norms[0] == 0, 0.0, jnp.max(cosines, axis=1))


@dataclass(frozen=True)
class DuplicateProbe(ProbeConfig):
    """Share of units of every hidden layer whose activations are nearly those of another unit."""

    name: ClassVar[str] = "duplicates"
    needs: ClassVar[tuple[Need, ...]] = ("features",)

    threshold: float = 0.95
    """Units whose cosine is at least this are near-duplicates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "threshold", above=0, most=1)

    def build(self, model: Model) -> Probe:
        """The probe.

        ``[feature_layer]``: ``fraction``, the share of all units with `nearest` at least ``threshold``, and ``cosine``,
        the mean of `nearest` over units. ``pooled``: the fraction over the units of all layers. Silent units count as
        no duplicates: see ``features/dead_units``. Fewer examples than units make large cosines more likely by chance.

        References:
          After Joudaki et al., "Barriers for learning in an evolving world: mathematical understanding of loss of
          plasticity", arXiv 2510.00304 (manifolds of cloned units).
        """
        check_network(self, model)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            layers = seen.features_fn(seen.params, seen.batch)
            found = [nearest(layers[name]) for name in model.hidden]
            # Rounding must not tell exact copies apart.
            least = self.threshold - 1e-6
            fraction = jnp.stack([jnp.mean(cosines >= least, dtype=jnp.float32) for cosines in found])
            widths = jnp.asarray([cosines.size for cosines in found], jnp.float32)
            return {
                "fraction": fraction,
                "cosine": jnp.stack([jnp.mean(cosines) for cosines in found]),
                "pooled": activity.pooled(fraction, widths),
            }

        dims = dict.fromkeys(("fraction", "cosine"), ("feature_layer",))
        return Probe(self.name, measure, dims, {"feature_layer": model.hidden}, every=self.every)
