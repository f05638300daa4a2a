"""The empirical neural tangent kernel: how many directions of the outputs one gradient step can tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from plastax import curvature, ranges
from plastax.probes import ranks
from plastax.probes.base import ProbeConfig, thinned
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class NTKProbe(ProbeConfig):
    """Ranks, condition number and eigenvalues of the empirical neural tangent kernel on a few examples, exact."""

    name: ClassVar[str] = "ntk"

    examples: int = 16
    """Examples of the probe batch (at most); with C outputs the kernel has 16 C rows, each a backward pass."""
    delta: float = 0.01
    """The srank leaves out this share of the eigenvalues' sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "examples", least=1)
        ranges.check(self, self.name, "delta", above=0, below=1)

    def build(self, model: Model) -> Probe:
        """The probe, of ``K = J J^T``, ``[n C, n C]`` for n examples and C outputs, not divided by either.

        ``eigenvalues`` ``[ntk_index]``, descending; ``srank`` of K, ``effective_rank`` (power 1 of K's eigenvalues:
        its entropy rank) and ``numerical_rank``, ``largest`` and ``trace``; ``condition_number``, the largest
        eigenvalue over the smallest that ``numerical_rank`` counts, 0 for the zero kernel. K's eigenvalues are the
        squares of J's singular values, so its srank is the `ranks.pca_rank` of J, and smaller than the `ranks.srank` of
        J in other papers. All ranks are at most n C: compare them at one number of examples. Under batch normalisation
        J is that of the outputs of these n examples together, and K belongs to them as a whole.

        References:
          Jacot, Gabriel and Hongler, "Neural tangent kernel", NeurIPS 2018; see `plastax.curvature.ntk_spectrum`.
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            kernel = curvature.ntk_spectrum(seen.outputs_fn, seen.params, seen.batch)
            values = kernel.nodes[0][::-1]
            rank = ranks.numerical_rank(values, values.size)
            smallest = jnp.min(jnp.where(jnp.arange(values.size) < rank, values, values[0]))
            return {
                "eigenvalues": values,
                "srank": ranks.srank(values, self.delta),
                "effective_rank": ranks.effective_rank(values),
                "numerical_rank": rank,
                "condition_number": values[0] / jnp.where(smallest == 0, 1.0, smallest),
                "largest": values[0],
                "trace": jnp.sum(values),
            }

        return Probe(self.name, measure, {"eigenvalues": ("ntk_index",)}, {}, every=self.every)
