"""Hessian and Gauss-Newton spectra: Lanczos quadrature with error bars, or exact by the Gram matrix where cheaper."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from plastax import curvature, ranges, tree
from plastax.curvature import blocks, gram
from plastax.curvature.blocks import Grouping
from plastax.curvature.products import Way
from plastax.probes.base import EPS, ProbeConfig, check_thresholds, order_within, thinned
from plastax.roles import of_model
from plastax.types import LATER, Array, Key, Model, Operator, Probe, ProbeInput

SUMS = ("effective_rank", "stable_rank", "trace", "frobenius", "negative_mass")
"""Estimates of `curvature.Spectrum` that are one number each."""
SCALARS = (
    *(f"{name}{end}" for end in ("", "_se") for name in SUMS),
    *("largest", "largest_residual", "smallest", "smallest_residual", "complete", "dim"),
)  # fmt: skip


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

    blocks: Grouping = dataclasses.field(default="whole", metadata=LATER)
    """layers or kinds: also the spectra of diagonal blocks, one for each layer (normalisations are layers, too) or for
    each kind of parameters: embedding, q, k, v, out, mlp, conv, norm, head. whole: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "order", "probes", "examples", least=1)
        ranges.check_choices(self, self.name, blocks=Grouping)
        check_thresholds(self, self.eps)

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """The spectrum on ``seen.batch``."""
        raise NotImplementedError

    def spectra(self, seen: ProbeInput, groups: Mapping[str, Sequence[str]]) -> curvature.BlockSpectra:
        """Those of blocks, too; ``groups``: block -> names of its parameters."""
        raise NotImplementedError

    def build(self, model: Model) -> Probe:
        """The probe.

        Its values: ``nodes``, ``weights``, ``residuals`` ``[probe, node]``, the raw quadrature, which gives all others
        again; ``rank`` and ``relative_rank`` ``[eps]``, ``effective_rank``, ``stable_rank``, ``trace``,
        ``frobenius`` norm and ``negative_mass`` with their standard errors ``<name>_se``; ``largest`` eigenvalue (the
        Hessian's is the sharpness) and ``smallest``, with residual bounds; ``breakdowns`` ``[probe]``; ``complete``, 1
        where the nodes are the eigenvalues; ``dim``. Of products by finite differences also ``rounding``, the size
        below which an eigenvalue may be their error.

        With ``blocks`` the same again as ``block_<name>`` ``[block, ...]``, padded with NaN where blocks have fewer
        nodes than the whole; and ``off_diagonal``, see `plastax.curvature.BlockSpectra.off_diagonal`, with its error.
        """
        groups: Mapping[str, Sequence[str]] = {}
        if self.blocks != "whole":
            groups = blocks.groups(jax.eval_shape(model.init, tree.key_like()), self.blocks, of_model(model))

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen, eps = thinned(seen, self.examples), jnp.asarray(self.eps)
            if not groups:
                s = self.spectrum(seen)
                noise = {} if s.unit is None else {"rounding": s.rounding()}
                return noise | _values(s, eps)
            found = self.spectra(seen, groups)
            whole, share = _values(found.whole, eps), found.off_diagonal()
            parts = _of_blocks(tuple(found.blocks.values()), eps, whole)
            return whole | parts | {"off_diagonal": share.value, "off_diagonal_se": share.standard_error}

        dims: dict[str, tuple[str, ...]] = {"breakdowns": ("probe",)}
        dims |= dict.fromkeys(("nodes", "weights", "residuals"), ("probe", "node"))
        dims |= dict.fromkeys(("rank", "rank_se", "relative_rank", "relative_rank_se"), ("eps",))
        coords: dict[str, tuple[Any, ...]] = {"eps": self.eps}
        if groups:
            dims |= {f"block_{name}": ("block", *dims.get(name, ())) for name in (*dims, *SCALARS)}
            coords["block"] = tuple(groups)
        return Probe(self.name, measure, dims, coords, every=self.every)


def _values(s: curvature.Spectrum, eps: Array) -> dict[str, Array]:
    """All that is recorded of a spectrum."""
    estimates = {"rank": s.rank(eps), "relative_rank": s.rank(eps, relative=True)}
    estimates |= {name: getattr(s, name)() for name in SUMS}
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


def _of_blocks(found: Sequence[curvature.Spectrum], eps: Array, whole: Mapping[str, Array]) -> dict[str, Array]:
    """``block_<name>``, each padded with NaN to the shape of the whole's value."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, s in enumerate(found):
        alike.setdefault(s.nodes.shape, []).append(i)
    out = {name: jnp.full((len(found), *like.shape), jnp.nan, like.dtype) for name, like in whole.items()}
    for places in alike.values():
        # Spectra of one shape are summarised together: one program in place of many.
        together = jax.tree.map(lambda *x: jnp.stack(x), *(found[i] for i in places))
        for name, value in jax.vmap(_values, (0, None))(together, eps).items():
            out[name] = out[name].at[(jnp.array(places), *(slice(size) for size in value.shape[1:]))].set(value)
    return {f"block_{name}": value for name, value in out.items()}


@dataclass(frozen=True)
class Hessian(_SpectrumProbe):
    """Spectrum of the loss's Hessian by Lanczos quadrature: eps-rank, effective rank, extremes, trace, with errors."""

    name: ClassVar[str] = "hessian"

    product: Way = dataclasses.field(default="auto", metadata=LATER)
    """How products are taken: the gradient's forward derivative, its reverse one, or finite differences; auto: the
    first of them that the network allows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check_choices(self, self.name, product=Way)

    def operator(self, seen: ProbeInput) -> Operator:
        """The Hessian of the mean loss on the batch."""
        return curvature.hessian(seen.loss_fn, seen.params, data=seen.batch, product=self.product)

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """By Lanczos, or dense and exact from the order P on."""
        return blocks.dense_or_lanczos(self.operator(seen), seen.key, self.order, self.probes)

    def spectra(self, seen: ProbeInput, groups: Mapping[str, Sequence[str]]) -> curvature.BlockSpectra:
        """All from one linearisation."""
        return curvature.block_spectra(self.operator(seen), seen.key, groups, self.order, self.probes)


@dataclass(frozen=True)
class GGN(_SpectrumProbe):
    """Spectrum of the generalised Gauss-Newton matrix: the Hessian without the curvature of the network itself."""

    name: ClassVar[str] = "ggn"

    examples: int = 32
    """Examples of the probe batch for it (at most): few, so that the exact Gram matrix tends to cost less than
    Lanczos."""
    method: gram.Way = "auto"
    """gram: exact, by the Gram matrix of the examples' gradients; lanczos; auto: whichever costs less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check_choices(self, self.name, method=gram.Way)

    def spectrum(self, seen: ProbeInput) -> curvature.Spectrum:
        """That of ``J^T C J``: J the Jacobian of the outputs, C the program's output curvature."""
        order = order_within(self.order, seen)
        return curvature.ggn_spectrum(
            seen.outputs_fn, seen.params, seen.batch, seen.output_loss, seen.key, order, self.probes, self.method
        )

    def spectra(self, seen: ProbeInput, groups: Mapping[str, Sequence[str]]) -> curvature.BlockSpectra:
        """Each that of the network as a function of the block alone."""

        def part(names: Sequence[str], key: Key) -> curvature.Spectrum:
            own = tree.map_named(lambda name, x: x if name in names else None, seen.params)
            whole = lambda p: jax.tree.map(  # noqa: E731
                lambda new, old: old if new is None else new, p, seen.params, is_leaf=lambda x: x is None
            )
            outputs = lambda p, batch: seen.outputs_fn(whole(p), batch)  # noqa: E731
            return self.spectrum(seen._replace(params=own, outputs_fn=outputs, key=key))

        keys = jax.random.split(jax.random.fold_in(seen.key, 1 << 20), len(groups))
        found = {label: part(names, keys[i]) for i, (label, names) in enumerate(groups.items())}
        return curvature.BlockSpectra(found, self.spectrum(seen))
