"""Hessian and Gauss-Newton spectra: Lanczos quadrature with error bars, or exact by the Gram matrix where cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import jax.numpy as jnp

from plastax import curvature, linalg, ranges, tree
from plastax.curvature.gram import Way
from plastax.errors import ConfigError
from plastax.probes.base import EPS, ProbeConfig, check_thresholds, order_within, thinned
from plastax.types import Array, Model, Params, Probe, ProbeInput


@dataclass(frozen=True)
class _SpectrumProbe(ProbeConfig):
    """What the two spectra share: how much to measure, and the values derived from the quadrature."""

    order: int = 24
    """Lanczos steps of each probe vector: the resolution of the spectrum. From the number of parameters on: exact."""
    probes: int = 2
    """Random probe vectors: the precision of its sums; their standard errors fall with the square root."""
    eps: tuple[float, ...] = EPS
    """Thresholds of the eps-rank, absolute; the same numbers are used relative to the largest eigenvalue."""
    examples: int = 128
    """Examples of the probe batch for the curvature (at most); the cost is proportional to them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "order", "probes", "examples", least=1)
        check_thresholds(self, self.eps)

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """The spectrum on ``seen.batch``."""
        raise NotImplementedError

    def build(self, model: Model) -> Probe:
        """The probe.

        Its values: ``nodes``, ``weights``, ``residuals`` ``[probe, node]``, the raw quadrature, which gives all others
        again; ``rank`` and ``relative_rank`` ``[eps]``, ``effective_rank``, ``stable_rank``, ``trace``,
        ``frobenius`` norm and ``negative_mass`` with their standard errors ``<name>_se``; ``largest`` eigenvalue (the
        Hessian's is the sharpness) and ``smallest``, with residual bounds; ``breakdowns`` ``[probe]``; ``complete``, 1
        where the nodes are the eigenvalues; ``dim``.
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            eps = jnp.asarray(self.eps)
            s = self.spectrum(thinned(seen, self.examples))
            estimates = {
                "rank": s.rank(eps),
                "relative_rank": s.rank(eps, relative=True),
                "effective_rank": s.effective_rank(),
                "stable_rank": s.stable_rank(),
                "trace": s.trace(),
                "frobenius": s.frobenius(),
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
                    "complete": s.complete.astype(jnp.float32),
                    "dim": jnp.asarray(s.dim, jnp.float32),
                }
            )

        quadrature = dict.fromkeys(("nodes", "weights", "residuals"), ("probe", "node"))
        ranks = dict.fromkeys(("rank", "rank_se", "relative_rank", "relative_rank_se"), ("eps",))
        dims = quadrature | ranks | {"breakdowns": ("probe",)}
        return Probe(self.name, measure, dims, {"eps": self.eps}, every=self.every)


@dataclass(frozen=True)
class Hessian(_SpectrumProbe):
    """Spectrum of the loss's Hessian by Lanczos quadrature: eps-rank, effective rank, extremes, trace, with errors."""

    name: ClassVar[str] = "hessian"

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """The Hessian's of the mean loss on the batch: by Lanczos, or dense and exact from the order P on.

        The dense matrix takes as many products as it has columns, and one decomposition. A complete Lanczos run gives
        the same eigenvalues and takes longer.
        """

        @linalg.sequential
        def eigenvalues(params: Params) -> Array:
            return linalg.eigvalsh(curvature.dense(curvature.hessian(seen.loss_fn, params, data=seen.batch)))

        size = tree.size(seen.params)
        if self.order >= size:
            return curvature.from_eigenvalues(eigenvalues(seen.params), size)
        op = curvature.hessian(seen.loss_fn, seen.params, data=seen.batch)
        return curvature.spectrum(op, seen.key, self.order, self.probes)


@dataclass(frozen=True)
class GGN(_SpectrumProbe):
    """Spectrum of the generalised Gauss-Newton matrix: the Hessian without the curvature of the network itself."""

    name: ClassVar[str] = "ggn"

    examples: int = 32
    """Examples of the probe batch for it (at most): few, so that the exact Gram matrix tends to cost less than
    Lanczos."""
    method: Way = "auto"
    """gram: exact, by the Gram matrix of the examples' gradients; lanczos; auto: whichever costs less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Way):
            raise ConfigError.unknown("ggn.method", self.method, get_args(Way))

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """That of ``J^T C J``: J the Jacobian of the outputs, C the program's output curvature."""
        return curvature.ggn_spectrum(
            seen.outputs_fn,
            seen.params,
            seen.batch,
            seen.output_loss,
            seen.key,
            order_within(self.order, seen),
            self.probes,
            self.method,
        )
