"""Spectra of operators by stochastic Lanczos quadrature: counts, effective rank and trace, each with its error.

Nothing is smoothed before it is counted. A density smoothed by a kernel of width s leaks the bulk at zero past every
threshold of a few s, which makes thousands of large eigenvalues out of nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from plastax.curvature.lanczos import GUARD
from plastax.types import Array

FEW = 0.4
"""Ritz values beyond a threshold count eigenvalues one by one if they are at most this share of the order."""
CONVERGED = 1e-3
"""Relative residual below which a Ritz value counts as an eigenvalue whatever the number of others."""
AGREEMENT = 4.0
"""Standard deviations by which the quadrature weight of counted eigenvalues may differ from their number."""
MARGIN = 10.0
"""How many times larger than what a fresh vector after a breakdown saw a counted eigenvalue must be; the fresh vector
misses an eigenvalue that large with a probability of 8 %, and every probe has one of its own."""


class Estimate(NamedTuple):
    """A value and its standard error, arrays of one shape."""

    value: Array
    standard_error: Array


class Extremes(NamedTuple):
    """Eigenvalues at both ends of a spectrum, each ``[k]``, outermost first.

    An eigenvalue lies within each value's residual, up to rounding.
    """

    largest: Array
    largest_residuals: Array
    smallest: Array
    smallest_residuals: Array


def _rounding(norm: Array) -> Array:
    """Size below which eigenvalues of an operator of this norm are rounding."""
    return GUARD * jnp.finfo(norm.dtype).eps * norm


def _doubtful(size: Array, residuals: Array, eps: Array, norm: Array) -> Array:
    """Whether the eigenvalue that belongs to a node could be on the other side of ``eps`` than the node."""
    return jnp.abs(size - eps) <= residuals + _rounding(norm) / 4.0


class Shares(NamedTuple):
    """How many eigenvalues every node stands for, and whether it is one itself (bool): ``[R, K]`` each."""

    multiplicities: Array
    counted: Array

    def sum(self, values: Array) -> Array:
        """Sum of a function over the spectrum from its values at the nodes, ``[..., R, K] -> [...]``."""
        return jnp.mean(jnp.sum(jnp.broadcast_to(self.multiplicities, values.shape) * values, axis=-1), axis=-1)

    def error(self, values: Array) -> Array:
        """Standard error of `sum`, ``[..., R, K] -> [...]``."""
        estimated = jnp.sum(self.multiplicities[0] * ~self.counted[0])
        probes = values.shape[-2]
        share = jnp.where(self.counted, 0.0, self.multiplicities) / (probes * jnp.maximum(estimated, 1.0))
        share = jnp.broadcast_to(share, values.shape)
        mean = jnp.sum(share * values, axis=(-1, -2), keepdims=True)
        spread = jnp.sum(share * jnp.square(values - mean), axis=(-1, -2))
        return estimated * jnp.sqrt(2.0 * spread / ((estimated + 2.0) * probes))


class Spectrum(NamedTuple):
    """Gauss quadratures of one operator's spectral density, one a probe vector, of R probes and K nodes.

    For a probe q, uniform on the sphere, and any function f, ``sum_k w_k f(node_k)`` approximates ``q^T f(A) q``, whose
    mean is ``tr f(A) / P`` and whose variance is ``2 / (P + 2)`` times the variance of f over the eigenvalues. One
    eigenvalue has a weight of ``1 / P`` with a standard deviation of 140 %: weights are good for many eigenvalues, bad
    for few. The few outermost ones, though, Lanczos finds one by one. The methods therefore work with *multiplicities*:
    one for every Ritz value that is known to be an eigenvalue, ``P - C`` shared out by weight to the rest, C being the
    number of the former. See `shares` for the conditions.

    Standard errors use the variance above on the rest, with all probes' nodes for its eigenvalues, so one probe is
    enough to have one. They do not hold the error of the quadrature itself, which falls with K (except in
    `rank`). They are zero where all that matters is counted, and if the spectrum is complete.
    Methods are for one spectrum: `vmap` them over many.

    Attributes:
      nodes: ``[R, K]``, Ritz values, ascending.
      weights: ``[R, K]``, non-negative; they sum to one for every probe.
      residuals: ``[R, K]``, distance from every node within which there is an eigenvalue, up to rounding.
      dim: number of eigenvalues P, an int or an int32 scalar.
      breakdowns: int32 ``[R]``, how often the Krylov space was exhausted.
      leftovers: ``[R]``, norm of the operator's image of the last fresh unit vector after a breakdown, zero if there
        was none: about ``1 / sqrt(P)`` of the Frobenius norm of what had not been found by then.
      complete: bool scalar, whether the nodes *are* the eigenvalues (all that are not zero), each once for every probe.
    """

    nodes: Array
    weights: Array
    residuals: Array
    dim: int | Array
    breakdowns: Array
    leftovers: Array
    complete: Array

    def norm(self) -> Array:
        """Largest absolute eigenvalue, a scalar."""
        return jnp.max(jnp.abs(self.nodes))

    def shares(self) -> Shares:
        """How many eigenvalues every node stands for, and how many nodes are eigenvalues counted one by one.

        The largest C nodes in absolute value count one each, for the largest C for which, at the threshold halfway to
        the next node,

        * every probe has C nodes beyond it, and no residual reaches across it,
        * they are at most `FEW` of the order, or have all converged to `CONVERGED`,
        * their weights agree with C (as a chi-squared variable of ``C R`` degrees of freedom would, within
          `AGREEMENT`),
        * no two of them are equal, or every probe's Krylov space was exhausted and the last fresh vectors saw nothing
          of that size left (`MARGIN`).

        Ritz values never outnumber the eigenvalues beyond a threshold (interlacing), but a Krylov space holds only one
        copy of a multiple eigenvalue, and what rounding adds, until it is exhausted. The last two conditions notice
        missing copies if they are many, if some were found, or if the space was exhausted; in an operator of full rank,
        an exactly double eigenvalue can pass as one.

        Returns:
          ``multiplicities`` ``[R, K]``, which sum to P for every probe, and ``counted``, bool ``[R, K]``, C a probe.

        References:
          Golub and Van Loan, "Matrix computations", theorem 8.1.7 (interlacing). Wilson and Hilferty, "The distribution
          of chi-square", PNAS 17, 1931 (its cube root is nearly normal).
        """
        probes, order = self.nodes.shape
        norm = self.norm()
        size = jnp.abs(self.nodes)
        ordered = jnp.sort(size[0])[::-1]
        # Entry c - 1 is about counting c nodes; all but the last, which has no next node.
        thresholds = ((ordered[:-1] + ordered[1:]) / 2.0)[:, None, None]
        count = jnp.arange(1, order).astype(size.dtype)
        beyond = size[None] > thresholds
        sure = jnp.all(jnp.sum(beyond, axis=-1) == count[:, None], axis=-1)
        sure &= ~jnp.any(_doubtful(size[None], self.residuals[None], thresholds, norm), axis=(-1, -2))
        converged = self.residuals <= CONVERGED * size
        sure &= (count <= FEW * order) | jnp.all(~beyond | converged[None], axis=(-1, -2))
        unseen = MARGIN * jnp.sqrt(1.0 * self.dim) * jnp.max(self.leftovers)
        sure &= thresholds[:, 0, 0] > jnp.maximum(_rounding(norm), unseen)
        equal = jnp.diff(self.nodes, axis=-1) <= _rounding(norm)
        twice = jnp.any(beyond[..., 1:] & equal[None], axis=(-1, -2))
        sure &= ~twice | jnp.all(self.breakdowns > 0)
        ratio = self.dim * jnp.sum(self.weights[None] * beyond, axis=(-1, -2)) / (probes * count)
        variance = 2.0 / (9.0 * probes * count)
        sure &= jnp.abs(jnp.cbrt(ratio) - (1.0 - variance)) <= AGREEMENT * jnp.sqrt(variance)

        threshold = jnp.min(jnp.where(sure, thresholds[:, 0, 0], jnp.inf), initial=jnp.inf)
        counted = (size > threshold) | self.complete
        total = jnp.sum(counted[0])
        rest = jnp.where(counted, 0.0, self.weights)
        mass = jnp.sum(rest, axis=-1, keepdims=True)
        shared = (self.dim - total) * rest / jnp.where(mass == 0, 1.0, mass)
        return Shares(jnp.where(counted, 1.0, shared), counted)

    def rank(self, eps: float | Array, relative: bool = False) -> Estimate:
        """Number of eigenvalues of absolute value above ``eps``.

        Few eigenvalues beyond ``eps`` are counted: exact, with standard error zero. Many are estimated by weight; the
        standard error then has the probes' part, about ``sqrt(2 N / R)`` for N of many eigenvalues, and the
        quadrature's own: nodes next to ``eps`` or ``-eps`` whose residual reaches across may stand for eigenvalues on
        either side, so their multiplicity counts as a uniform uncertainty.

        Args:
          eps: threshold, a scalar or ``[E]``. Thresholds below rounding (`GUARD` eps of the type times the largest
            eigenvalue) are raised to it, so that 0 asks for the numerical rank.
          relative: whether ``eps`` is in units of the largest absolute eigenvalue.

        Returns:
          An estimate of the shape of ``eps``.

        References:
          Ubaru and Saad, "Fast methods for estimating the numerical rank of large matrices", ICML 2016 (ranks as
          integrals of the density). Golub and Meurant, "Matrices, moments and quadrature with applications", 2010
          (Chebyshev, Markov and Stieltjes: a quadrature's distribution function errs by at most the adjacent weights).
        """
        norm = self.norm()
        eps = jnp.asarray(eps, self.nodes.dtype) * (norm if relative else 1.0)
        shape = eps.shape
        eps = jnp.maximum(eps, _rounding(norm)).reshape(-1, 1, 1)
        nodes, residuals = self.nodes[None], self.residuals[None]
        size = jnp.abs(nodes)
        beyond = size > eps
        side = jnp.sign(nodes - eps) + jnp.sign(nodes + eps)
        change = side[..., 1:] != side[..., :-1]
        end = jnp.zeros_like(change[..., :1])
        adjacent = jnp.concatenate([change, end], axis=-1) | jnp.concatenate([end, change], axis=-1)
        shares = self.shares()
        doubt = shares.sum(adjacent & _doubtful(size, residuals, eps, norm)) / jnp.sqrt(12.0)
        error = jnp.hypot(shares.error(beyond.astype(size.dtype)), doubt)
        # Comparisons with NaN are false, which would be a rank of zero.
        value = jnp.where(jnp.isnan(norm), jnp.nan, shares.sum(beyond))
        return Estimate(value.reshape(shape), error.reshape(shape))

    def trace(self) -> Estimate:
        """Sum of the eigenvalues.

        References:
          Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
        """
        shares = self.shares()
        return Estimate(shares.sum(self.nodes), shares.error(self.nodes))

    def effective_rank(self) -> Estimate:
        """Exponential of the entropy of ``p_i = |lambda_i| / sum_j |lambda_j|``.

        With multiplicities n and ``S = sum_k n_k |x_k|``, ``L = sum_k n_k |x_k| log |x_k|``, means over the probes, it
        is ``S exp(-L / S)``; the standard error is that of its linearisation in the two sums. Eigenvalues below
        rounding count as zero. Zero for the zero operator.

        References:
          Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
        """
        norm = self.norm()
        x = jnp.abs(self.nodes) / jnp.where(norm == 0, 1.0, norm)
        x = jnp.where(x <= _rounding(jnp.ones_like(x)), 0.0, x)
        x_log_x = x * jnp.log(jnp.where(x == 0, 1.0, x))
        shares = self.shares()
        s, l = jnp.maximum(shares.sum(x), jnp.finfo(x.dtype).tiny), shares.sum(x_log_x)
        value = jnp.where(norm == 0, 0.0, s * jnp.exp(-l / s))
        return Estimate(value, value * shares.error((1.0 + l / s) / s * x - x_log_x / s))

    def negative_mass(self) -> Estimate:
        """Share of the negative eigenvalues in the sum of absolute values, from 0 to 1; 0 for the zero operator."""
        size = jnp.abs(self.nodes)
        shares = self.shares()
        total = shares.sum(size)
        total = jnp.where(total == 0, 1.0, total)
        negative = jnp.where(self.nodes < -_rounding(self.norm()), size, 0.0)
        share = shares.sum(negative) / total
        return Estimate(share, shares.error((negative - share * size) / total))

    def extreme(self, k: int) -> Extremes:
        """The k largest and the k smallest eigenvalues, with bounds on their errors.

        Of the probes' Ritz values, each of which lies inside the corresponding eigenvalue, the outermost is taken.

        Args:
          k: how many at each end, at most the order. Static.

        Raises:
          ValueError: if ``k`` is not between 1 and the order.
        """
        order = self.nodes.shape[-1]
        if not 1 <= k <= order:
            message = f"k must be between 1 and the order {order}, got {k}"
            raise ValueError(message)

        def best(nodes: Array, residuals: Array, probe: Array) -> tuple[Array, Array]:
            return jnp.take_along_axis(nodes, probe[None], 0)[0], jnp.take_along_axis(residuals, probe[None], 0)[0]

        high, high_residuals = self.nodes[:, ::-1][:, :k], self.residuals[:, ::-1][:, :k]
        low, low_residuals = self.nodes[:, :k], self.residuals[:, :k]
        return Extremes(
            *best(high, high_residuals, jnp.argmax(high, axis=0)), *best(low, low_residuals, jnp.argmin(low, axis=0))
        )

    def density(self, grid: Array | None = None, bandwidth: float | Array | None = None) -> tuple[Array, Array]:
        """Gaussian-smoothed density, for drawing only: never count on it.

        Args:
          grid: ``[G]`` where to evaluate; 1,000 points over the spectrum and five bandwidths around it by default.
          bandwidth: standard deviation of the kernel; a hundredth of the spectrum's range by default.

        Returns:
          The grid and the density on it, ``[G]`` each; the density integrates to one.

        References:
          Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 58, 2016, section 3.2.
        """
        low, high = jnp.min(self.nodes), jnp.max(self.nodes)
        if bandwidth is None:
            span = high - low
            # One point has no range; its size, or one, has to do.
            span = jnp.where(span > 0, span, jnp.where(high == 0, 1.0, jnp.abs(high)))
            bandwidth = span / 100.0
        if grid is None:
            grid = jnp.linspace(low - 5.0 * bandwidth, high + 5.0 * bandwidth, 1000)
        z = (grid[:, None, None] - self.nodes[None]) / bandwidth
        return grid, self.shares().sum(jnp.exp(-0.5 * jnp.square(z))) / (self.dim * bandwidth * jnp.sqrt(2.0 * jnp.pi))


def from_eigenvalues(values: Array, dim: int) -> Spectrum:
    """The spectrum of an operator whose eigenvalues are known.

    Args:
      values: ``[n]``, in any order, among them all that are not zero.
      dim: number P of eigenvalues. Zeros fill up what is missing; if there are more values than P, those of the least
        absolute value, which can only be zeros, are left out.

    Returns:
      A complete spectrum of one probe with ``min(n, P)`` nodes of weight ``1 / P`` each.
    """
    largest = jnp.argsort(jnp.abs(values))[max(0, values.size - dim) :]
    nodes = jnp.sort(values[largest])[None]
    nothing = jnp.zeros((1,), nodes.dtype)
    weights = jnp.full_like(nodes, 1.0 / dim)
    return Spectrum(nodes, weights, jnp.zeros_like(nodes), dim, jnp.zeros((1,), jnp.int32), nothing, jnp.array(True))
