"""What spectra and estimates look like; smoothed densities are for drawing only: do not count with them."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from plastax.curvature.counting import Quadrature, counts
from plastax.drawing import import_matplotlib
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


def with_error(value: float, error: float) -> str:
    """A value, to two digits of its standard error.

    >>> with_error(16.234, 1.81), with_error(3.0, 0.0), with_error(1.234e-9, 2e-10)
    ('16.2 ± 1.8', '3 ± 0', '1.23e-09 ± 2e-10')
    """
    if not math.isfinite(value + error) or error <= 0:
        return f"{value:.6g} ± {error:.2g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 6 or abs(value) >= 1e7:
        return f"{value:.3g} ± {error:.2g}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def plot(s: Quadrature, ax: Any) -> Any:
    """`Spectrum.plot`."""
    import_matplotlib()
    from matplotlib import pyplot

    ax = pyplot.subplots()[1] if ax is None else ax
    linear = float(jnp.maximum(s.norm() * 1e-3, jnp.finfo(s.nodes.dtype).tiny))
    grid, height = density(s, None, None, linear)
    ax.plot(grid, height)
    nodes = np.ravel(s.nodes)
    ax.plot(nodes, np.zeros_like(nodes), "|", color="black", alpha=0.5)
    ax.set_xscale("symlog", linthresh=linear)
    ax.set(xlabel="eigenvalue", ylabel="density (smoothed)", title=f"{s.dim} eigenvalues")
    return ax
