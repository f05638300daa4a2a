"""Hessian and Gauss-Newton spectra by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import curvature
from plastax.types import Array, ConfigError, Model, Operator, Probe, ProbeInput


@dataclass(frozen=True)
class _SpectrumProbe:
    """What the two spectra share: how much to measure, and what is derived from the quadrature."""

    name: ClassVar[str]

    order: int = 24
    """Lanczos steps of each probe vector: the resolution of the spectrum."""
    probes: int = 2
    """Random probe vectors: the precision of its sums; their standard errors fall with the square root."""
    eps: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    """Thresholds of the eps-rank, absolute; the same numbers are used relative to the largest eigenvalue."""
    examples: int = 256
    """Examples of the probe batch that the curvature is taken on (at most; it costs in proportion)."""

    def __post_init__(self) -> None:
        for field in ("order", "probes", "examples"):
            if getattr(self, field) < 1:
                message = f"{self.name}.{field}: {getattr(self, field)} is not allowed; give 1 or more"
                raise ConfigError(message)
        if not self.eps or min(self.eps) < 0:
            message = f"{self.name}.eps: {self.eps} is not allowed; give one or more numbers, none negative"
            raise ConfigError(message)

    def operator(self, seen: ProbeInput) -> Operator:
        """The operator whose spectrum is taken, on ``seen.batch``."""
        raise NotImplementedError

    def build(self, model: Model) -> Probe:
        """The probe.

        Its values: ``nodes``, ``weights``, ``residuals`` ``[probe, node]``, the raw quadrature, from which everything
        can be computed again; ``rank`` and ``relative_rank`` ``[eps]``, ``effective_rank``, ``trace``,
        ``negative_mass`` with their standard errors ``<name>_se``; ``largest`` and ``smallest`` eigenvalue with
        residual bounds; ``breakdowns`` ``[probe]``.
        """
        del model
        eps = jnp.asarray(self.eps)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            # Spread over the batch, whose order is time.
            batch = jax.tree.map(lambda x: x[:: max(1, -(-x.shape[0] // self.examples))], seen.batch)
            s = curvature.spectrum(self.operator(seen._replace(batch=batch)), seen.key, self.order, self.probes)
            estimates = {
                "rank": s.rank(eps),
                "relative_rank": s.rank(eps, relative=True),
                "effective_rank": s.effective_rank(),
                "trace": s.trace(),
                "negative_mass": s.negative_mass(),
            }
            ends = s.extreme(1)
            return (
                {"nodes": s.nodes, "weights": s.weights, "residuals": s.residuals}
                | {name: estimate.value for name, estimate in estimates.items()}
                | {f"{name}_se": estimate.standard_error for name, estimate in estimates.items()}
                | {
                    "largest": ends.largest[0],
                    "largest_residual": ends.largest_residuals[0],
                    "smallest": ends.smallest[0],
                    "smallest_residual": ends.smallest_residuals[0],
                    "breakdowns": s.breakdowns.astype(jnp.float32),
                    "dim": jnp.asarray(s.dim, jnp.float32),
                }
            )

        quadrature = dict.fromkeys(("nodes", "weights", "residuals"), ("probe", "node"))
        ranks = dict.fromkeys(("rank", "rank_se", "relative_rank", "relative_rank_se"), ("eps",))
        dims = quadrature | ranks | {"breakdowns": ("probe",)}
        return Probe(self.name, measure, dims, {"eps": self.eps})


@dataclass(frozen=True)
class Hessian(_SpectrumProbe):
    """Spectrum of the loss's Hessian by Lanczos quadrature: eps-rank, effective rank, extremes, trace, with errors."""

    name: ClassVar[str] = "hessian"

    def operator(self, seen: ProbeInput) -> Operator:
        """The Hessian of the mean loss on the batch."""
        return curvature.hessian(seen.loss_fn, seen.params, data=seen.batch)


@dataclass(frozen=True)
class GGN(_SpectrumProbe):
    """Spectrum of the generalised Gauss-Newton matrix: the Hessian without the curvature of the network itself."""

    name: ClassVar[str] = "ggn"

    def operator(self, seen: ProbeInput) -> Operator:
        """``J^T C J``: J the Jacobian of the outputs, C the program's output curvature."""
        return curvature.ggn(seen.outputs_fn, seen.output_loss, seen.params, data=seen.batch)
