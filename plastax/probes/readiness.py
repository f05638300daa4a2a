"""Optimisation readiness: how far one step can lower the loss, and how well a minibatch knows the direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import curvature, ranges, tree
from plastax.probes.base import ProbeConfig, order_within, thinned
from plastax.probes.gradient import parted
from plastax.types import Array, Model, Probe, ProbeInput, Tree


def readiness(grads: Tree, smoothness: Array) -> dict[str, Array]:
    """Strength, reliability and their product, scalars.

    With ``g`` the mean of the gradients ``g_b`` and L the smoothness:

    * ``strength``: ``|g|^2 / L``, twice the decrease that the best step along ``-g`` is sure of;
    * ``reliability``: ``|g|^2 / mean_b |g_b|^2``, from 0 (the gradients cancel) to 1 (all are equal);
    * ``readiness``: their product. Half of it bounds from below what the best step along one ``-g_b`` gains on average.

    All are zero without a gradient. Reliability rises with the size of the minibatches: compare at one size.

    Args:
      grads: a tree of gradients, leading axis m: of one minibatch or example each.
      smoothness: L, the largest absolute eigenvalue of the loss's Hessian.

    References:
      After Wang et al., "Predicting plasticity in deep continual learning: a theoretical perspective", arXiv
      2605.09044. The bound is the descent lemma for a step along one ``-g_b``, at the best step size eta:
      ``E[gain] >= eta |g|^2 - L eta^2 E|g_b|^2 / 2``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax.probes.readiness import readiness
      >>> found = readiness(jnp.array([[3.0, 1.0], [3.0, -1.0]]), jnp.float32(2))
      >>> {name: round(float(x), 2) for name, x in found.items()}
      {'strength': 4.5, 'reliability': 0.9, 'readiness': 4.05}
    """
    grads = tree.wide(grads)
    squared = jnp.square(tree.norm(jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)))
    single = jnp.mean(jnp.square(jax.vmap(tree.norm)(grads)))
    strength = jnp.where(squared == 0, 0.0, squared / smoothness)
    reliability = squared / jnp.where(single == 0, 1.0, single)
    return {"strength": strength, "reliability": reliability, "readiness": strength * reliability}


@dataclass(frozen=True)
class ReadinessProbe(ProbeConfig):
    """Optimisation readiness: strength of the gradient over smoothness, times agreement of minibatches."""

    name: ClassVar[str] = "readiness"

    minibatches: int = 8
    """Parts of the batch whose gradients are compared, each a copy of the gradient in memory. As many as examples:
    gradients of single examples."""
    order: int = 16
    """Lanczos steps for the smoothness."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "minibatches", least=2)
        ranges.check(self, self.name, "order", "examples", least=1)

    def build(self, model: Model) -> Probe:
        """The probe, all of whose values are scalars.

        ``strength``, ``reliability`` and ``readiness`` are those of `readiness`, for minibatches of one size. Gradients
        and Hessian are of the same examples: those that do not fill a minibatch are left out. ``smoothness`` is the
        Hessian's largest absolute eigenvalue at these parameters, not over a region. It is the outermost Ritz value of
        one Lanczos run, a lower bound; an eigenvalue lies within ``smoothness_residual`` of it.
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            parts = parted(seen.batch, min(self.minibatches, jax.tree.leaves(seen.batch)[0].shape[0]))
            whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
            op = curvature.hessian(seen.loss_fn, seen.params, data=whole)
            found = curvature.spectrum(op, seen.key, order_within(self.order, seen), probes=1)
            grads = jax.lax.map(lambda part: jax.grad(seen.loss_fn)(seen.params, part), parts)
            return readiness(grads, found.norm()) | {
                "smoothness": found.norm(),
                "smoothness_residual": found.residuals[0, jnp.argmax(jnp.abs(found.nodes[0]))],
            }

        return Probe(self.name, measure, {}, {}, every=self.every)
