"""Spectra of the Kronecker factors of every layer."""

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
        The first four again as ``running_*``, from what the training step's own backward passes accumulated during the
        task (NaN at its start, and where training takes no factors).

        Layers are those with a kernel; the groups of a convolution are one layer. All of these again as ``other_*``
        ``[other_layer, ...]`` for embeddings and normalisations, see `plastax.curvature.kronecker`. ``left_out``
        ``[parameter]``, only where there are such: the share of each parameter that is in no factor.
        """
        check_network(self, model)
        factored = model.factored or by_convention(model.layers)
        without = shares_without(factored, jax.eval_shape(model.init, tree.key_like()))
        others = tuple(name for name in factored if name not in model.layers)
        groups = {of: names for of, names in (("", model.layers), ("other_", others)) if names}

        def spectra(layers: dict[str, Factors], names: tuple[str, ...]) -> tuple[dict[str, Array], list[Eigenvalues]]:
            values = [eigenvalues(layers[name]) for name in names]
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
            found = factors(inputs, tap_grads)
            out: dict[str, Array] = {}
            for of, names in groups.items():
                fresh, values = spectra(found, names)
                running = spectra(seen.factors.mean(), names)[0] if seen.factors.total else jax.tree.map(missing, fresh)
                own = fresh | {f"running_{name}": value for name, value in running.items()}
                own["rank"] = jnp.stack([rank(v, jnp.asarray(self.eps)).astype(jnp.float32) for v in values])
                own["a_eigenvalues"] = _padded([v.a for v in values])
                own["g_eigenvalues"] = _padded([v.g for v in values])
                out |= {f"{of}{name}": value for name, value in own.items()}
            return out | ({"left_out": jnp.asarray(list(without.values()))} if without else {})

        def missing(x: Array) -> Array:
            return jnp.full_like(x, jnp.nan)

        dims: dict[str, tuple[str, ...]] = {}
        coords: dict[str, tuple[object, ...]] = {"eps": self.eps}
        for of, names in groups.items():
            coords[f"{of}layer"] = names
            for name in ("a_effective_rank", "g_effective_rank", "a_largest", "g_largest"):
                dims |= {f"{of}{name}": (f"{of}layer",), f"{of}running_{name}": (f"{of}layer",)}
            dims[f"{of}rank"] = (f"{of}layer", "eps")
            dims |= {f"{of}{side}_eigenvalues": (f"{of}layer", f"{of}{side}_index") for side in ("a", "g")}
        if without:
            dims, coords = dims | {"left_out": ("parameter",)}, coords | {"parameter": tuple(without)}
        return Probe(self.name, measure, dims, coords, every=self.every)


def _padded(rows: list[Array]) -> Array:
    rows = [jnp.sort(row.ravel()) if row.ndim > 1 else row for row in rows]
    width = max(row.size for row in rows)
    return jnp.stack([jnp.pad(row, (0, width - row.size), constant_values=jnp.nan) for row in rows])
