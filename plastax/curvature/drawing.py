"""Smoothed spectral densities, for drawing only: do not count with them."""

from __future__ import annotations

import jax.numpy as jnp

from plastax.curvature.counting import Quadrature, counts
from plastax.types import Array


def density(
    s: Quadrature, grid: Array | None, bandwidth: float | Array | None, linear: float | Array | None
) -> tuple[Array, Array]:
    """`Spectrum.density`, which says what the arguments are."""

    def axis(x: Array) -> Array:
        return x if linear is None else jnp.arcsinh(x / linear)

    nodes = axis(s.nodes)
    # A complete spectrum may leave out zeros; the axis must hold them too.
    low, high = jnp.min(nodes), jnp.max(nodes)
    known = counts(s)
    zeros = s.dim - known.sum(jnp.ones_like(nodes))
    zeros = jnp.where(s.complete, jnp.maximum(zeros, 0.0), 0.0)
    low = jnp.where(zeros > 0, jnp.minimum(low, 0.0), low)
    high = jnp.where(zeros > 0, jnp.maximum(high, 0.0), high)
    if bandwidth is None:
        span = high - low
        # One point has no range: take its size, or one.
        span = jnp.where(span > 0, span, jnp.where(high == 0, 1.0, jnp.abs(high)))
        bandwidth = span / 100.0
    if grid is None:
        points = jnp.linspace(low - 5.0 * bandwidth, high + 5.0 * bandwidth, 1000)
        grid = points if linear is None else linear * jnp.sinh(points)
    else:
        points = axis(grid)

    def kernel(z: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square(z / bandwidth))

    total = known.sum(kernel(points[:, None, None] - nodes[None])) + zeros * kernel(points)
    return grid, total / (s.dim * bandwidth * jnp.sqrt(2.0 * jnp.pi))
