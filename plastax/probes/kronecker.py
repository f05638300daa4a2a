"""Spectra of the Kronecker factors of every dense layer."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from plastax.curvature import kronecker
from plastax.curvature.running import Running
from plastax.types import Array, ConfigError, Model, Probe, ProbeInput


@dataclass(frozen=True)
class KroneckerSpectrum:
    """Spectra of every dense layer's Kronecker factors (KFAC): input side A, output-gradient side G."""

    eps: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    """Thresholds of the eps-rank of the Kronecker product."""

    def __post_init__(self) -> None:
        if not self.eps or min(self.eps) < 0:
            message = f"kronecker.eps: {self.eps} is not allowed; give one or more numbers, none negative"
            raise ConfigError(message)

    def build(self, model: Model) -> Probe:
        """The probe.

        Its values, from the factors on the probe batch: ``a_effective_rank``, ``g_effective_rank``, ``a_largest``,
        ``g_largest`` ``[layer]``; ``rank`` ``[layer, eps]`` of the product, counted without forming it; and the
        eigenvalues themselves, ``a_eigenvalues`` and ``g_eigenvalues`` ``[layer, ...]``, ascending, padded with NaN.
        The first four again as ``running_*``, from what the training step's own backward passes accumulated during the
        task (NaN at its start, and where training takes no factors).
        """
        eps = jnp.asarray(self.eps)

        def summary(factors: dict[str, kronecker.Factors]) -> tuple[dict[str, Array], list[kronecker.Eigenvalues]]:
            values = [kronecker.eigenvalues(factors[layer]) for layer in model.layers]
            ranks = [kronecker.effective_rank(v) for v in values]
            return {
                "a_effective_rank": jnp.stack([r.a for r in ranks]),
                "g_effective_rank": jnp.stack([r.g for r in ranks]),
                "a_largest": jnp.stack([v.a[-1] for v in values]),
                "g_largest": jnp.stack([v.g[-1] for v in values]),
            }, values

        def measure(seen: ProbeInput) -> dict[str, Array]:
            tap_grads, (_, inputs) = jax.grad(seen.tapped_loss_fn, argnums=1, has_aux=True)(
                seen.params, seen.taps_fn(seen.batch), seen.batch
            )
            fresh, values = summary(kronecker.factors(inputs, tap_grads))
            out = fresh | {
                "rank": jnp.stack([kronecker.rank(v, eps).astype(jnp.float32) for v in values]),
                "a_eigenvalues": _padded([v.a for v in values]),
                "g_eigenvalues": _padded([v.g for v in values]),
            }
            return out | {f"running_{name}": value for name, value in running(seen.factors, fresh).items()}

        def running(factors: Running, like: dict[str, Array]) -> dict[str, Array]:
            missing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), like)
            if not factors.total:
                return missing
            # NaN must not reach the eigensolver: LAPACK may not return from it.
            safe = Running(factors.total, jnp.where(factors.weight > 0, factors.weight, 1.0))
            return jax.tree.map(lambda x, nan: jnp.where(factors.weight > 0, x, nan), summary(safe.mean())[0], missing)

        per_layer = ("a_effective_rank", "g_effective_rank", "a_largest", "g_largest")
        dims: dict[str, tuple[str, ...]] = dict.fromkeys(
            (*per_layer, *(f"running_{name}" for name in per_layer)), ("layer",)
        )
        dims |= {"rank": ("layer", "eps"), "a_eigenvalues": ("layer", "a_index"), "g_eigenvalues": ("layer", "g_index")}
        return Probe("kronecker", measure, dims, {"layer": model.layers, "eps": self.eps})


def _padded(rows: list[Array]) -> Array:
    width = max(row.shape[0] for row in rows)
    return jnp.stack([jnp.pad(row, (0, width - row.shape[0]), constant_values=jnp.nan) for row in rows])
