"""Stochastic Lanczos quadrature: the measurement that makes a `Spectrum` of an operator."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plastax import linalg
from plastax.curvature.lanczos import tridiagonalise
from plastax.curvature.operators import flatten
from plastax.curvature.spectrum import Spectrum
from plastax.types import Array, Key, Operator


def spectrum(op: Operator, key: Key, order: int = 64, probes: int = 4) -> Spectrum:
    """Measures an operator's spectrum with ``order * probes`` products.

    Jittable and vmappable. Probes run one after another, and so do seeds under `vmap` on CPU, where that is faster; the
    memory is that of one basis, ``order * P`` numbers.

    Args:
      op: a symmetric operator over P scalars.
      key: for the probe vectors; probe r of a key is the same whatever the number of probes.
      order: Lanczos steps K a probe: resolution. Clamped to P, where the spectrum is complete. Static.
      probes: number of probe vectors R: precision of sums over many eigenvalues. Static.

    Returns:
      The spectrum, in float32 or the operator's wider type; NaN where the operator gives NaN.

    Raises:
      ValueError: if ``order`` or ``probes`` is not positive.

    References:
      Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl.
      38, 2017, algorithm 1. Chen, Trogdon and Ubaru, "Analysis of stochastic Lanczos quadrature for spectrum
      approximation", ICML 2021 (how many steps and probes).
    """
    if order < 1 or probes < 1:
        message = f"order and probes must be positive, got {order} and {probes}"
        raise ValueError(message)
    mv, dim, dtype = flatten(op)
    order = min(order, dim)

    def probe(key: Key) -> tuple[Array, ...]:
        start_key, restart_key = jax.random.split(key)
        start = jax.random.normal(start_key, (dim,), dtype)
        t = tridiagonalise(mv, start, restart_key, order)
        nodes, vectors = linalg.eigh(t.matrix())
        # A complete basis has every eigenvalue once, which no quadrature can better.
        weights = jnp.full_like(nodes, 1.0 / dim) if order == dim else jnp.square(vectors[0])
        return nodes, weights, t.couplings[-1] * jnp.abs(vectors[-1]), t.breakdowns, t.leftover

    @linalg.sequential
    def run(key: Key) -> tuple[Array, ...]:
        keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(probes))
        return jax.lax.map(probe, keys)

    nodes, weights, residuals, breakdowns, leftovers = run(key)
    return Spectrum(nodes, weights, residuals, dim, breakdowns, leftovers, jnp.array(order == dim))
