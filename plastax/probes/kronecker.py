"""Spectra of the Kronecker factors of every dense and convolutional layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature.kronecker import (
    Eigenvalues,
    Factors,
    by_convention,
    effective_rank,
    eigenvalues,
    factors,
    rank,
    shares_without,
)
from plastax.probes.base import EPS, Need, ProbeConfig, check_network, check_thresholds
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class KroneckerSpectrum(ProbeConfig):
    """Spectra of every layer's Kronecker factors (KFAC, expand): input side A, output-gradient side G."""

    name: ClassVar[str] = "kronecker"
    needs: ClassVar[tuple[Need, ...]] = ("taps",)

    eps: tuple[float, ...] = EPS
    """Thresholds of the eps-rank of the Kronecker product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thresholds(self, self.eps)

    def build(self, model: Model) -> Probe:
        """The probe.

        Its values, from the factors on the probe batch: ``a_effective_rank``, ``g_effective_rank``, ``a_largest``,
        ``g_largest`` ``[layer]``; ``rank`` ``[layer, eps]`` of the product, counted without forming it; and the
        eigenvalues themselves, ``a_eigenvalues`` and ``g_eigenvalues`` ``[layer, ...]``, ascending, padded with NaN.
        Embeddings and normalisations are layers, too, see `plastax.curvature.kronecker`. The groups of a convolution
        are one layer. ``left_out`` ``[parameter]``, only where there are such: the share of each parameter that is in
        no factor. The first four again as ``running_*``, from what the training step's own backward passes accumulated
        during the task (NaN at its start, and where training takes no factors).
        """
        check_network(self, model)
        factored = model.factored or by_convention(model.layers)
        without = shares_without(factored, jax.eval_shape(model.init, tree.key_like()))

        def summary(layers: dict[str, Factors]) -> tuple[dict[str, Array], list[Eigenvalues]]:
            values = [eigenvalues(layers[layer]) for layer in factored]
            ranks = [effective_rank(v) for v in values]
            return {
                "a_effective_rank": jnp.stack([r.a for r in ranks]),
                "g_effective_rank": jnp.stack([r.g for r in ranks]),
                "a_largest": jnp.stack([jnp.max(v.a) for v in values]),
                "g_largest": jnp.stack([jnp.max(v.g) for v in values]),
            }, values

        def measure(seen: ProbeInput) -> dict[str, Array]:
            tap_grads, (_, inputs) = jax.grad(seen.tapped_loss_fn, argnums=1, has_aux=True)(
                seen.params, seen.taps_fn(seen.batch), seen.batch
            )
            fresh, values = summary(factors(inputs, tap_grads))
            out = fresh | {
                "rank": jnp.stack([rank(v, jnp.asarray(self.eps)).astype(jnp.float32) for v in values]),
                "a_eigenvalues": _padded([v.a for v in values]),
                "g_eigenvalues": _padded([v.g for v in values]),
            }
            if without:
                out["left_out"] = jnp.asarray(list(without.values()))
            running = summary(seen.factors.mean())[0] if seen.factors.total else jax.tree.map(missing, fresh)
            return out | {f"running_{name}": value for name, value in running.items()}

        def missing(x: Array) -> Array:
            return jnp.full_like(x, jnp.nan)

        per_layer = ("a_effective_rank", "g_effective_rank", "a_largest", "g_largest")
        dims: dict[str, tuple[str, ...]] = dict.fromkeys(
            (*per_layer, *(f"running_{name}" for name in per_layer)), ("layer",)
        )
        dims |= {"rank": ("layer", "eps"), "a_eigenvalues": ("layer", "a_index"), "g_eigenvalues": ("layer", "g_index")}
        coords: dict[str, tuple[object, ...]] = {"layer": tuple(factored), "eps": self.eps}
        if without:
            dims, coords = dims | {"left_out": ("parameter",)}, coords | {"parameter": tuple(without)}
        return Probe(self.name, measure, dims, coords, every=self.every)


def _padded(rows: list[Array]) -> Array:
    rows = [jnp.sort(row.ravel()) if row.ndim > 1 else row for row in rows]
    width = max(row.size for row in rows)
    return jnp.stack([jnp.pad(row, (0, width - row.size), constant_values=jnp.nan) for row in rows])
