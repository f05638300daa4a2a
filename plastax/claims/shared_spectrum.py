"""Whether the loss-weighted Gram matrix and the Gauss-Newton matrix of a network have the same non-zero eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from plastax import curvature, ranges
from plastax.probes.base import ProbeConfig, order_within, thinned
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class SharedSpectrum(ProbeConfig):
    """Difference between the eigenvalues of the Gram matrix and those that Lanczos finds of the Gauss-Newton matrix."""

    name: ClassVar[str] = "shared_spectrum"

    examples: int = 8
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "examples", least=1)

    def build(self, model: Model) -> Probe:
        """The probe.

        Its value ``difference`` is the largest difference between eigenvalues of the same place in descending order, in
        units of the largest. Lanczos takes twice as many steps as the Gram matrix has eigenvalues, so it finds all.

        References:
          Prakash et al., arXiv 2509.22335v3: the two matrices have the same non-zero eigenvalues.
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            args = seen.outputs_fn, seen.params, seen.batch, seen.output_loss
            gram = curvature.ggn_spectrum(*args, seen.key, method="gram").nodes[0]
            # Rounding makes the smallest eigenvalues converge late.
            order = order_within(2 * gram.size, seen)
            found = curvature.spectrum(curvature.ggn(*args), seen.key, order, 1).nodes[0]
            count = min(gram.size, order)
            first, second = (jnp.sort(values)[::-1][:count] for values in (gram, found))
            return {"difference": jnp.max(jnp.abs(first - second)) / jnp.max(jnp.abs(first))}

        return Probe(self.name, measure, {}, {}, every=self.every)
