"""How many eigenvalues each quadrature node stands for, and how well a quadrature knows a count: exactly, if it can.

These functions implement the methods of `plastax.curvature.Spectrum`, whose docstrings give the reasons.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from plastax.curvature.lanczos import BREAKDOWN_ROUNDINGS
from plastax.types import Array

COUNTABLE = 0.4
"""Ritz values beyond a threshold count eigenvalues one by one if they are at most this share of the order."""
CONVERGED_RESIDUAL = 1e-3
"""Relative residual below which a Ritz value counts as an eigenvalue, however many others there are."""
AGREEMENT_DEVIATIONS = 4.0
"""Standard deviations by which the quadrature weight of counted eigenvalues may differ from their number."""
LEFTOVER_MARGIN = 10.0
"""How many times larger than what a fresh vector after a breakdown saw a counted eigenvalue must be. The fresh vector
misses an eigenvalue that large with a probability of 8 %, and every probe has its own fresh vector."""
LEAST_LEAK_RATIO = 0.1
"""A node says nothing about thresholds farther away than its residual over this; see `_leak`."""
INTERPOLATION_ERROR = 0.1
"""Uncertainty of interpolating between two nodes of a smooth density, in units of their multiplicity."""
PRODUCT_ROUNDINGS = 4.0
"""Eigenvalues up to this many rounding errors of narrow products, in units of the norm, may be rounding themselves."""
DISAGREEMENT_MARGIN = 4.0
"""Eigenvalues that are rounding alone are at most this many times as large as their spread over probes."""
LEAST_FREEDOM = 2.0
"""Degrees of freedom below which a standard error is not widened further: the two terms of its series end there."""
UNIFORM_WIDTH = math.sqrt(12.0)
"""Width of a uniform distribution in units of its standard deviation."""
KINK_ERROR = 0.125
"""Error of a quadrature at a kink of f, in units of the f of a node's uncertainty: that of the trapezoidal rule, whose
Euler-Maclaurin term for a kink is a periodic Bernoulli polynomial of order two."""


_Read = TypeVar("_Read", bound=Callable[..., Any])


def in_one_program(*static: str) -> Callable[[_Read], _Read]:
    """Decorates a function that reads a `Quadrature`: called with values, it compiles as one program.

    Without it every operation is a program: more than a hundred in a first call, which takes seconds. Within `jit` the
    function becomes part of the caller's program, as without it.

    Args:
      *static: names of the arguments that are constants of the program.
    """

    def decorate(read: _Read) -> _Read:
        program = jax.jit(read, static_argnames=static, inline=True)

        @functools.wraps(read)
        def call(s: Quadrature, *args: Any, **options: Any) -> Any:
            # An integer argument has 32 bits, which networks outgrow. All uses of it are in floating numbers.
            dim: Any = float(s.dim) if isinstance(s.dim, int | np.integer) else s.dim
            return program(s._replace(dim=dim), *args, **options)

        return cast(_Read, call)

    return decorate


class Quadrature(NamedTuple):
    """Gauss quadratures of one operator's spectral density: R probes of K nodes each.

    Attributes:
      nodes: ``[R, K]``, Ritz values, ascending.
      weights: ``[R, K]``, non-negative; they sum to one for every probe.
      residuals: ``[R, K]``; an eigenvalue lies within this distance of the node, up to rounding.
      dim: number of eigenvalues P, an int or an int32 scalar.
      breakdowns: int32 ``[R]``, how often the Krylov space was exhausted.
      leftovers: ``[R]``, norm of the operator's image of the last fresh unit vector after a breakdown; zero without a
        breakdown. About ``1 / sqrt(P)`` of the Frobenius norm of what had not been found by then.
      complete: bool scalar, whether the nodes *are* the eigenvalues (all that are not zero), each once for every probe.
      unit: rounding unit of the operator's products if they are narrower than the nodes, else None.
    """

    nodes: Array
    weights: Array
    residuals: Array
    dim: int | Array
    breakdowns: Array
    leftovers: Array
    complete: Array
    unit: Array | None = None

    @in_one_program()
    def norm(self) -> Array:
        """Largest absolute eigenvalue, a scalar; NaN if anything here is NaN, or a node or weight infinite."""
        finite = jnp.all(jnp.isfinite(self.nodes)) & jnp.all(jnp.isfinite(self.weights))
        known = finite & ~jnp.any(jnp.isnan(self.residuals)) & ~jnp.any(jnp.isnan(self.leftovers))
        return jnp.where(known, jnp.max(jnp.abs(self.nodes)), jnp.nan)


def disagreement(s: Quadrature) -> Array:
    """How far the eigenvalues that complete probes found differ; zero if only by the rounding of vectors."""
    found = jnp.max(jnp.max(s.nodes, axis=0) - jnp.min(s.nodes, axis=0))
    return jnp.where(s.complete & (found > BREAKDOWN_ROUNDINGS * jnp.finfo(s.nodes.dtype).eps * s.norm()), found, 0.0)


def rounding(s: Quadrature) -> Array:
    """`Spectrum.rounding`."""
    norm = s.norm()
    least = BREAKDOWN_ROUNDINGS * jnp.finfo(norm.dtype).eps * norm
    if s.unit is not None:
        least = jnp.maximum(least, PRODUCT_ROUNDINGS * s.unit * norm)
    return jnp.maximum(least, DISAGREEMENT_MARGIN * disagreement(s)) if s.nodes.shape[0] > 1 else least


def doubtful(size: Array, residuals: Array, eps: Array, small: Array) -> Array:
    """Whether a node's eigenvalue could be on the other side of ``eps`` than the node."""
    return ~(jnp.abs(size - eps) > residuals + small / 4.0)


class Counts(NamedTuple):
    """How many eigenvalues every node stands for, and which nodes are eigenvalues themselves.

    Attributes:
      multiplicities: ``[R, K]``, one where counted.
      counted: bool ``[R, K]``.
      threshold: scalar; every eigenvalue beyond it, in absolute value, is counted.
      differ: bool scalar, whether complete probes found different eigenvalues.
    """

    multiplicities: Array
    counted: Array
    threshold: Array
    differ: Array

    def sum(self, values: Array) -> Array:
        """Sum of a function over the spectrum from its values at the nodes, ``[..., R, K] -> [...]``."""
        return jnp.mean(jnp.sum(jnp.broadcast_to(self.multiplicities, values.shape) * values, axis=-1), axis=-1)

    def error(self, values: Array) -> Array:
        """The probes' part of the standard error of `sum`, ``[..., R, K] -> [...]``.

        The variance over the eigenvalues is itself estimated, with ``R (sum_k n_k g_k)^2 / sum_k n_k g_k^2`` degrees of
        freedom for squared deviations g: the deviation of one probe is a sum of ``n_k`` squared normal variables. Two
        standard errors are widened to the interval of Student's distribution of the same confidence, 95.4 %.

        References:
          Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2, 1946.
          Abramowitz and Stegun, "Handbook of mathematical functions", 1964, 26.7.5 (quantiles, for 2 of the normal).
        """
        estimated = jnp.sum(jnp.where(self.counted[0], 0.0, self.multiplicities[0]))
        probes = values.shape[-2]
        share = jnp.where(self.counted, 0.0, self.multiplicities) / (probes * jnp.maximum(estimated, 1.0))
        share = jnp.broadcast_to(share, values.shape)
        mean = jnp.sum(share * values, axis=(-1, -2), keepdims=True)
        squared = jnp.square(values - mean)
        spread = jnp.sum(share * squared, axis=(-1, -2))
        error = estimated * jnp.sqrt(2.0 * spread / ((estimated + 2.0) * probes))
        relative = squared / jnp.where(spread == 0, 1.0, spread)[..., None, None]
        part = share * relative
        kurtosis = jnp.sum(jnp.where(part > 0, part * relative, 0.0), axis=(-1, -2))
        freedom = probes * estimated / jnp.maximum(kurtosis, 1.0)
        one_over = 1.0 / jnp.maximum(freedom, LEAST_FREEDOM)
        error *= 1.0 + 1.25 * one_over + 1.53 * jnp.square(one_over)
        if probes == 1:
            return error
        # Complete probes that differ are all wrong, and not independently: their spread, not that of their mean.
        each = jnp.sum(jnp.broadcast_to(self.multiplicities, values.shape) * values, axis=-1)
        return error + jnp.where(self.differ, jnp.std(each, axis=-1), 0.0)


def counts(s: Quadrature) -> Counts:
    """Which nodes count one by one, and what the others stand for; `Spectrum.counts` has the conditions."""
    probes, order = s.nodes.shape
    small = rounding(s)
    size = jnp.abs(s.nodes)
    ordered = jnp.sort(size[0])[::-1]
    # Entry c - 1 is about counting c nodes; all but the last, which has no next node.
    thresholds = ((ordered[:-1] + ordered[1:]) / 2.0)[:, None, None]
    count = jnp.arange(1, order).astype(size.dtype)
    beyond = size[None] > thresholds
    sure = jnp.all(jnp.sum(beyond, axis=-1, dtype=count.dtype) == count[:, None], axis=-1)
    sure &= ~jnp.any(doubtful(size[None], s.residuals[None], thresholds, small), axis=(-1, -2))
    converged = s.residuals <= CONVERGED_RESIDUAL * size
    sure &= (count <= COUNTABLE * order) | jnp.all(~beyond | converged[None], axis=(-1, -2))
    unseen = LEFTOVER_MARGIN * jnp.sqrt(1.0 * s.dim) * jnp.max(s.leftovers)
    sure &= thresholds[:, 0, 0] > jnp.maximum(small, unseen)
    equal = jnp.diff(s.nodes, axis=-1) <= small
    twice = jnp.any(beyond[..., 1:] & equal[None], axis=(-1, -2))
    sure &= ~twice | jnp.all(s.breakdowns > 0)
    ratio = s.dim * jnp.sum(jnp.where(beyond, s.weights[None], 0.0), axis=(-1, -2)) / (probes * count)
    variance = 2.0 / (9.0 * probes * count)
    sure &= jnp.abs(jnp.cbrt(ratio) - (1.0 - variance)) <= AGREEMENT_DEVIATIONS * jnp.sqrt(variance)

    threshold = jnp.min(jnp.where(sure, thresholds[:, 0, 0], jnp.inf), initial=jnp.inf)
    threshold = jnp.where(s.complete, -1.0, threshold)
    counted = size > threshold
    total = jnp.sum(counted[0], dtype=size.dtype)
    rest = jnp.where(counted, 0.0, s.weights)
    mass = jnp.sum(rest, axis=-1, keepdims=True)
    shared = (s.dim - total) * rest / jnp.where(mass == 0, 1.0, mass)
    return Counts(jnp.where(counted, 1.0, shared), counted, threshold, disagreement(s) > 0)


def _leak(residuals: Array, distance: Array, gap: Array) -> Array:
    """Share of a node's multiplicity that may lie ``distance`` away, in a cell of width ``gap``.

    The residual of a Ritz pair is the standard deviation of the eigenvalues in its vector. By Chebyshev's inequality at
    most ``(residual / d)^2`` of it lies a distance d or more away. What is nearer than half the cell is assumed to be
    there; otherwise the node would have moved. Shares below one percent (`LEAST_LEAK_RATIO`) are ignored.
    """
    distance = jnp.maximum(distance, jnp.where(jnp.isinf(gap), 0.0, gap) / 2.0)
    ratio = residuals / jnp.maximum(distance, jnp.finfo(distance.dtype).tiny)
    return jnp.where(ratio > LEAST_LEAK_RATIO, jnp.square(jnp.minimum(ratio, 1.0)), 0.0)


class Cells(NamedTuple):
    """The nodes on both sides of every gap, the two outer ones included, ``[1, R, K + 1]`` each.

    Attributes:
      low: position of the lower node, minus infinity without one.
      high: position of the upper node, infinity without one.
      low_n: multiplicity of the lower node, zero if it is counted.
      high_n: multiplicity of the upper node, zero if it is counted.
      low_r: residual of the lower node.
      high_r: residual of the upper node.
    """

    low: Array
    high: Array
    low_n: Array
    high_n: Array
    low_r: Array
    high_r: Array


def _cells(s: Quadrature, known: Counts) -> Cells:
    n = jnp.where(known.counted, 0.0, known.multiplicities)
    end = jnp.full_like(n[:, :1], jnp.inf)
    nothing = jnp.zeros_like(end)
    pairs = [
        (jnp.concatenate([before, x], axis=-1), jnp.concatenate([x, after], axis=-1))
        for before, x, after in ((-end, s.nodes, end), (nothing, n, nothing), (nothing, s.residuals, nothing))
    ]
    return Cells(*(side[None] for pair in pairs for side in pair))


def _edge(cells: Cells, t: Array) -> tuple[Array, Array, Array]:
    """For thresholds ``[E, 1, 1]``: their cell, what interpolation adds above them, and the error of that."""
    low, high, low_n, high_n, low_r, high_r = cells
    tiny, gap = jnp.finfo(low.dtype).tiny, high - low
    light = jnp.minimum(low_n, high_n)
    # A cell without width holds no threshold.
    up = jnp.clip(1.0 - (t - low) / jnp.maximum(jnp.minimum(low_r, gap), tiny), 0.0, 1.0)
    down = jnp.clip(1.0 - (high - t) / jnp.maximum(jnp.minimum(high_r, gap), tiny), 0.0, 1.0)
    heavy = jnp.maximum(low_n * _leak(low_r, t - low, gap), high_n * _leak(high_r, high - t, gap))
    error = jnp.maximum(heavy - light, 0.0) / 2.0 + INTERPOLATION_ERROR * jnp.minimum(heavy, light)
    return (low <= t) & (t < high), 0.5 * light * (up - down), error


def beyond(s: Quadrature, eps: Array) -> tuple[Array, Array]:
    """Number of eigenvalues of absolute value above each of ``eps`` ``[E]``, and its standard error, ``[E]`` each.

    A quadrature knows how many eigenvalues lie below a node up to the node's own multiplicity. Where the spectrum is
    dense, the step through the middle of that uncertainty is off by up to half a node, the same way for every probe. So
    between two nodes of similar multiplicity the count is interpolated, as far as their residuals reach. Between two
    unequal nodes only the lighter one's multiplicity is spread: the heavier one, like the zeros of a collapsed network,
    is not what a smooth density would have there.
    """
    small, size, known = rounding(s), jnp.abs(s.nodes), counts(s)
    cells = _cells(s, known)
    eps = eps[:, None, None]
    upper, added, upper_error = _edge(cells, eps)
    lower, removed, lower_error = _edge(cells, -eps)
    # If both thresholds are in one cell, anything from none to all of its nodes may lie between them.
    gap = cells.high - cells.low
    between = cells.low_n * _leak(cells.low_r, -eps - cells.low, gap)
    between += cells.high_n * _leak(cells.high_r, cells.high - eps, gap)
    # A node at zero is next to both thresholds, but can cross only one of them.
    parts = (upper & lower, between / 2.0), (upper, upper_error), (lower, lower_error)
    both, above, below = (jnp.sum(jnp.where(inside, part, 0.0), axis=-1) for inside, part in parts)
    error = jnp.where(jnp.any(upper & lower, axis=-1), both, jnp.maximum(above, below))
    far = size[None] > eps
    moved = jnp.where(upper, added, 0.0) - jnp.where(lower, removed, 0.0)
    value = known.sum(far.astype(size.dtype)) + jnp.mean(jnp.sum(moved, axis=-1), axis=-1)
    # Above the last counted eigenvalue only those are uncertain whose own residual reaches across.
    resolution = jnp.where(eps[:, 0, 0] < known.threshold, jnp.mean(error, axis=-1), 0.0)
    unsure = known.counted[None] & doubtful(size[None], s.residuals[None], eps, small) & ~s.complete
    resolution += jnp.mean(jnp.sum(unsure, axis=-1), axis=-1) / UNIFORM_WIDTH
    # A small number may be estimated as zero, and would look exact without this term.
    estimated = jnp.any(far & ~known.counted[None], axis=(-1, -2)) | (resolution > 0)
    least = jnp.where(estimated, 1.0 / s.nodes.shape[0], 0.0)
    probes = known.error(far.astype(size.dtype))
    return value, jnp.sqrt(jnp.square(probes) + jnp.square(resolution) + least)


def kink(s: Quadrature, known: Counts, f: Callable[[Array], Array]) -> Array:
    """Standard error of a quadrature's sum over ``f``, which is zero at zero and has a kink there: a scalar.

    Gauss quadratures are exact for polynomials of degree ``2 K - 1``, which a kink is far from. The nodes on both sides
    of zero may stand for eigenvalues as far away as their residuals and neighbours.
    """
    low, high, low_n, high_n, low_r, high_r = _cells(s, known)
    reach = jnp.minimum(high - low, s.norm())
    total = jnp.zeros_like(low)
    for n, r, x in ((low_n, low_r, low), (high_n, high_r, high)):
        width = jnp.minimum(r, reach)
        total += n * _leak(r, jnp.abs(x), jnp.zeros_like(x)) * jnp.maximum(jnp.abs(f(width)), jnp.abs(f(-width)))
    return KINK_ERROR * jnp.sum(jnp.where((low <= 0) & (high > 0), total, 0.0)) / low.shape[1]
