"""The smoothed epsilon-rank of the literature, for comparison: it measures nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plastax.curvature.spectrum import Spectrum
from plastax.types import Array

GRID_POINTS = 10_000
"""Points of the published grid."""
GRID_MARGIN = 0.01
"""How far the published grid extends beyond the spectrum."""
KERNEL_VARIANCE = 1e-5
"""Variance of the published kernel, in units of the larger of one and the spectrum's range."""


def published_epsilon_rank(s: Spectrum, eps: float | Array) -> Array:
    """Number of eigenvalues beyond ``eps`` by the published recipe. For comparison only: use `Spectrum.rank`.

    The recipe takes one probe's quadrature, smooths it with Gaussians of variance ``1e-5 max(1, range)`` on a grid of
    10,000 points, drops the points with ``|x| <= eps``, and integrates the rest by one trapezoidal rule. It has two
    biases, both upwards and both large where plasticity research looks:

    * *Leakage.* The kernel's standard deviation is at least 3.2e-3. Zeros, which a collapsed network has by the
      thousand, spill past every ``eps`` of that order: a share of ``erfc(eps / (sd sqrt(2)))``, 75 % at 1e-3. It is
      zero only for ``eps`` above four standard deviations.
    * *The bridged hole.* Across the dropped points the trapezoidal rule joins -eps to eps and adds
      ``eps (density(-eps) + density(eps))``.

    On an over-trained network of 3,122 parameters with 9 eigenvalues beyond 1e-3 the recipe counts 3,097; without the
    bridge it would count 2,347. Its result also grows with the largest eigenvalue alone, through the kernel.

    Args:
      s: the spectrum; the first probe is used, with its weights as they are.
      eps: threshold, a scalar or ``[E]``.

    Returns:
      P times the published share, of the shape of ``eps``. It may exceed P.

    References:
      "Spectral Collapse Drives Loss of Plasticity in Deep Continual Learning", arXiv 2509.22335 (the recipe, from its
      released code). Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian
      eigenvalue density", ICML 2019 (the smoothed density, there for drawing).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> s = curvature.from_eigenvalues(jnp.zeros(100).at[:3].set(jnp.array([1.0, 0.5, 0.2])), 100)
      >>> bool(jax.jit(curvature.published_epsilon_rank)(s, 1e-3) > 70)  # of three eigenvalues
      True
    """
    nodes, weights = s.nodes[0], s.weights[0]
    low, high = jnp.min(nodes), jnp.max(nodes)
    variance = KERNEL_VARIANCE * jnp.maximum(1.0, high - low)
    grid = jnp.linspace(low - GRID_MARGIN, high + GRID_MARGIN, GRID_POINTS)
    kernel = jnp.exp(-jnp.square(grid[:, None] - nodes[None]) / (2.0 * variance)) / jnp.sqrt(2.0 * jnp.pi * variance)
    density = jnp.sum(kernel * weights[None], axis=-1)
    density = density / (jnp.sum(density) * (grid[1] - grid[0]))
    slices = jnp.diff(grid) * (density[1:] + density[:-1]) / 2.0

    def share(eps: Array) -> Array:
        left, right = grid < -eps, grid > eps
        sides = jnp.sum(jnp.where((left[1:] & left[:-1]) | (right[1:] & right[:-1]), slices, 0.0))
        # The last point before the hole and the first one after it, if both exist.
        before, after = jnp.sum(left) - 1, GRID_POINTS - jnp.sum(right)
        bridge = (grid[after] - grid[before]) * (density[after] + density[before]) / 2.0
        return sides + jnp.where(jnp.any(left) & jnp.any(right), bridge, 0.0)

    eps = jnp.asarray(eps, nodes.dtype)
    return (s.dim * jax.vmap(share)(eps.reshape(-1))).reshape(eps.shape)
