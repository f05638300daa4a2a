"""Spectra of operators by stochastic Lanczos quadrature: counts, effective rank and trace, each with its error.

Nothing is smoothed before it is counted. A density smoothed by a kernel of width s leaks the bulk at zero past every
threshold of a few s, and makes thousands of large eigenvalues out of nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.curvature import checks, counting, drawing
from plastax.curvature.counting import Counts, Quadrature, in_one_program
from plastax.types import Array


class Estimate(NamedTuple):
    """A value and its standard error, arrays of one shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> curvature.Estimate(jnp.float32(1833.4), jnp.float32(507.1))
      1833 ± 507
    """

    value: Array
    standard_error: Array

    def __repr__(self) -> str:
        """``1833 ± 507``; several in brackets. Traced values are shown as they are."""
        if not checks.concrete(tuple(self)):
            return f"Estimate(value={self.value}, standard_error={self.standard_error})"
        pairs = zip(np.ravel(self.value), np.ravel(self.standard_error))
        words = [drawing.with_error(float(value), float(error)) for value, error in pairs]
        return f"[{', '.join(words)}]" if np.ndim(self.value) else words[0]

    def to_dict(self) -> dict[str, Any]:
        """``{"value": ..., "standard_error": ...}``, numbers or lists of numbers."""
        return {name: np.asarray(x).tolist() for name, x in self._asdict().items()}


class Extremes(NamedTuple):
    """Eigenvalues at both ends of a spectrum, each ``[k]``, outermost first.

    An eigenvalue lies within each value's residual, up to rounding.
    """

    largest: Array
    largest_residuals: Array
    smallest: Array
    smallest_residuals: Array


class Spectrum(Quadrature):
    """Gauss quadratures of one operator's spectral density, one per probe vector: R probes of K nodes.

    For a probe q, uniform on the sphere, and any function f, ``sum_k w_k f(node_k)`` approximates ``q^T f(A) q``, whose
    mean is ``tr f(A) / P`` and whose variance is ``2 / (P + 2)`` times the variance of f over the eigenvalues. One
    eigenvalue has a weight of ``1 / P`` with a standard deviation of 140 %: weights are good for many eigenvalues, bad
    for few. But Lanczos finds the few outermost eigenvalues one by one. So the methods work with *multiplicities*: one
    for every Ritz value that is known to be an eigenvalue. The remaining ``P - C`` eigenvalues, with C known ones, are
    shared out by weight. See `counts` for the conditions.

    Standard errors use the variance above on the remaining part, with all probes' nodes for its eigenvalues, so one
    probe is enough. The quadrature itself is exact for polynomials. Functions with a step (`rank`) or a kink at zero
    (`effective_rank`, `negative_mass`) add a second part to the error, from the residuals and multiplicities of the
    nodes there. It falls with K alone, and is the same for every probe. No standard error contains the operator's own
    rounding. All are zero if everything that matters is counted, and if the spectrum is complete. Methods are for one
    spectrum: `vmap` them over many. `Quadrature` describes the fields.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """One line: dimension, nodes x probes, the largest absolute eigenvalue, the trace."""
        probes, order = self.nodes.shape[-2:]
        shape = f"dim {self.dim}, {order} x {probes}"
        if not checks.concrete(tuple(self)) or self.nodes.ndim > 2:
            return f"Spectrum({shape}, nodes {self.nodes.shape})"
        return f"Spectrum({shape}, top {float(self.norm()):.4g}, trace {self.trace()})"

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as numbers and lists of numbers."""
        return {name: None if x is None else np.asarray(x).tolist() for name, x in self._asdict().items()}

    def plot(self, ax: Any = None) -> Any:
        """Draws the smoothed density over a symmetric-logarithmic axis, and the nodes of all probes below.

        Args:
          ax: axes of matplotlib; new ones by default.

        Returns:
          The axes.
        """
        return drawing.plot(self, ax)

    @in_one_program()
    def rounding(self) -> Array:
        """Size below which an eigenvalue may be rounding, a scalar.

        A few rounding errors of the norm, in the vectors' type or in that of 16-bit products. If complete probes
        disagree, they have found rounding that no type reveals, as of a network that computes in 16 bits inside. Then
        nothing below four times their spread is told from zero, and the spread is part of all standard errors.
        """
        return counting.rounding(self)

    @in_one_program()
    def counts(self) -> Counts:
        """How many eigenvalues every node stands for, and which nodes are eigenvalues counted one by one.

        The largest C nodes in absolute value count one each, for the largest C that meets these conditions at the
        threshold halfway to the next node:

        * every probe has C nodes beyond it, and no residual reaches across it,
        * they are at most `COUNTABLE` of the order, or have all converged to `CONVERGED_RESIDUAL`,
        * their weights agree with C (as a chi-squared variable of ``C R`` degrees of freedom would, within
          `AGREEMENT_DEVIATIONS`),
        * no two of them are equal, or every probe's Krylov space was exhausted and the last fresh vectors saw nothing
          of that size left (`LEFTOVER_MARGIN`).

        Ritz values never outnumber the eigenvalues beyond a threshold (interlacing). But until it is exhausted, a
        Krylov space holds only one copy of a multiple eigenvalue, and those that rounding adds. The last two conditions
        notice missing copies if they are many, if some were found, or if the space was exhausted. In an operator of
        full rank, an exactly double eigenvalue can pass as one. With a single probe, an eigenvalue whose vector is
        almost orthogonal to the probe can go unnoticed: once in ten thousand counts of networks' Hessians, never seen
        with two probes.

        Returns:
          ``multiplicities`` ``[R, K]``, which sum to P for every probe, ``counted``, bool ``[R, K]``, C per probe, and
          the ``threshold`` beyond which all are counted.

        References:
          Golub and Van Loan, "Matrix computations", theorem 8.1.7 (interlacing). Wilson and Hilferty, "The distribution
          of chi-square", PNAS 17, 1931 (its cube root is nearly normal).
        """
        return counting.counts(self)

    @in_one_program("relative")
    def rank(self, eps: float | Array, relative: bool = False) -> Estimate:
        """Number of eigenvalues of absolute value above ``eps``.

        If few eigenvalues are beyond ``eps`` they are counted: exact, with standard error zero. Many are estimated by
        weight, and between nodes by interpolation. The standard error then has three parts:

        * the probes' part, about ``sqrt(2 N / R)`` for N of many eigenvalues,
        * the resolution's part: what the nodes next to ``eps`` and ``-eps`` may stand for on the other side, as far as
          their
          residuals reach, as a uniform uncertainty. A higher order reduces it, more probes do not,
        * ``1 / sqrt(R)``, so that no small number looks exact.

        Where the first part dominates, the exact rank is within two standard errors in about 95 % of cases. The second
        part dominates for thresholds closer to zero than the nodes next to zero: the error is then the same in every
        case, and the standard error is a bound on it rather than a spread.

        Args:
          eps: threshold, a scalar or ``[E]``. Thresholds below `rounding` are raised to it: 0 asks for the numerical
            rank.
          relative: whether ``eps`` is in units of the largest absolute eigenvalue.

        Returns:
          An estimate of the shape of ``eps``.

        References:
          Ubaru and Saad, "Fast methods for estimating the numerical rank of large matrices", ICML 2016 (ranks as
          integrals of the density). Golub and Meurant, "Matrices, moments and quadrature with applications", 2010
          (Chebyshev, Markov and Stieltjes: a quadrature's distribution function errs by at most the adjacent weights).
        """
        eps = jnp.asarray(eps, self.nodes.dtype) * (self.norm() if relative else 1.0)
        value, error = counting.beyond(self, jnp.maximum(eps, self.rounding()).reshape(-1))
        # Comparisons with NaN are false, which would be a rank of zero.
        value = jnp.where(jnp.isnan(eps.reshape(-1)), jnp.nan, value)
        return self._estimate(value.reshape(eps.shape), error.reshape(eps.shape))

    @in_one_program()
    def rank_curve(self, grid: Array | None = None) -> tuple[Array, Estimate]:
        """The whole curve ``eps -> rank(eps)``.

        Args:
          grid: thresholds ``[E]``; by default 64, evenly spaced in their logarithm, from rounding to the largest
            absolute eigenvalue.

        Returns:
          The thresholds ``[E]`` and `rank` at each. The value does not increase with eps. Errors at neighbouring
          thresholds are strongly correlated.
        """
        if grid is None:
            one = jnp.ones((), self.nodes.dtype)
            scale = jnp.where(self.norm() == 0, 1.0, self.norm())
            grid = scale * jnp.geomspace(self._relative_rounding(), one, 64)
        return grid, self.rank(grid)

    @in_one_program()
    def trace(self) -> Estimate:
        """Sum of the eigenvalues.

        References:
          Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
        """
        return self._sum(self.nodes)

    @in_one_program()
    def frobenius(self) -> Estimate:
        """Frobenius norm: the root of the sum of the squared eigenvalues."""
        scale = jnp.where(self.norm() == 0, 1.0, self.norm())
        value, error = self._sum(jnp.square(self.nodes / scale))
        root = jnp.sqrt(value)
        return Estimate(scale * root, scale * error / (2.0 * jnp.where(root == 0, 1.0, root)))

    @in_one_program()
    def stable_rank(self) -> Estimate:
        """Squared Frobenius norm over the squared largest absolute eigenvalue; zero for the zero operator.

        Between one and the rank. It counts eigenvalues by their squares. Do not confuse it with the *intrinsic
        dimension* (trace over norm), which some call by the same name.

        References:
          Rudelson and Vershynin, "Sampling from large matrices: an approach through geometric functional analysis",
          Journal of the ACM 54, 2007, section 1 (there: numerical rank).
        """
        return self._sum(jnp.square(self.nodes / jnp.where(self.norm() == 0, 1.0, self.norm())))

    @in_one_program()
    def condition_number(self, eps: float | Array = 0.0) -> Estimate:
        """Largest absolute eigenvalue over the smallest one above ``eps``, both in absolute value.

        If all eigenvalues above ``eps`` are counted, it is known up to their residuals, with standard error zero. If
        they are estimated by weight, the smallest is only known to lie between ``eps`` and the first node whose
        residual keeps it above ``eps``. The value is then the middle of that range, with the standard error of a
        uniform uncertainty.

        Args:
          eps: threshold, a scalar; raised to rounding if it is below, as by default.

        Returns:
          The condition number, at least one. With the default ``eps`` it is at most about 3e5 in float32, which means
          "singular to working precision". NaN if no eigenvalue is above ``eps``.

        Examples:
          >>> import jax, jax.numpy as jnp
          >>> from plastax import curvature
          >>> s = curvature.from_eigenvalues(jnp.array([8.0, 2.0, 0.0]), 3)
          >>> float(jax.jit(lambda s: s.condition_number().value)(s))
          4.0
        """
        norm, size, counts = self.norm(), jnp.abs(self.nodes), self.counts()
        eps = jnp.maximum(jnp.asarray(eps, size.dtype), self.rounding())
        known = jnp.all((size <= eps) | counts.counted) & (self.rank(eps).standard_error == 0)
        reach = jnp.where(known, 0.0, self.residuals)
        smallest = jnp.min(jnp.where(size - reach > eps, size + reach, norm))
        low, high = norm / smallest, norm / eps
        value = jnp.where(known, low, (low + high) / 2.0)
        error = jnp.where(known, 0.0, (high - low) / counting.UNIFORM_WIDTH)
        return self._estimate(jnp.where(norm > eps, value, jnp.nan), error)

    @in_one_program()
    def effective_rank(self) -> Estimate:
        """Exponential of the entropy of ``p_i = |lambda_i| / sum_j |lambda_j|``.

        With multiplicities n and ``S = sum_k n_k |x_k|``, ``L = sum_k n_k |x_k| log |x_k|``, means over the probes, it
        is ``S exp(-L / S)``. The standard error is that of its linearisation in the two sums, plus the quadrature's
        error at their kink at zero. Eigenvalues below rounding count as zero. Zero for the zero operator.

        References:
          Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
        """
        norm = self.norm()

        def parts(nodes: Array) -> tuple[Array, Array]:
            x = jnp.abs(nodes) / jnp.where(norm == 0, 1.0, norm)
            x = jnp.where(x <= self._relative_rounding(), 0.0, x)
            return x, x * jnp.log(jnp.where(x == 0, 1.0, x))

        counts = self.counts()
        s, l = (counts.sum(part) for part in parts(self.nodes))
        s = jnp.maximum(s, jnp.finfo(s.dtype).tiny)

        def slope(nodes: Array) -> Array:
            x, x_log_x = parts(nodes)
            return (1.0 + l / s) / s * x - x_log_x / s

        value = jnp.where(norm == 0, 0.0, s * jnp.exp(-l / s))
        return self._estimate(value, value * self._error(counts, slope))

    @in_one_program()
    def negative_mass(self) -> Estimate:
        """Share of the negative eigenvalues in the sum of absolute values, from 0 to 1; 0 for the zero operator."""
        counts, small = self.counts(), self.rounding()

        def negative(nodes: Array) -> Array:
            return jnp.where(nodes < -small, jnp.abs(nodes), 0.0)

        total = counts.sum(jnp.abs(self.nodes))
        total = jnp.where(total == 0, 1.0, total)
        share = counts.sum(negative(self.nodes)) / total
        error = self._error(counts, lambda nodes: (negative(nodes) - share * jnp.abs(nodes)) / total)
        return self._estimate(share, error)

    def _relative_rounding(self) -> Array:
        norm = self.norm()
        least = counting.BREAKDOWN_ROUNDINGS * jnp.finfo(norm.dtype).eps
        return jnp.maximum(least, self.rounding() / jnp.where(norm == 0, 1.0, norm))

    def _error(self, counts: Counts, f: Callable[[Array], Array]) -> Array:
        """Standard error of the sum of a function with a kink at zero."""
        return jnp.hypot(counts.error(f(self.nodes)), counting.kink(self, counts, f))

    def _sum(self, values: Array) -> Estimate:
        """Sum of a polynomial of low degree, for which the quadrature itself is exact."""
        counts = self.counts()
        return self._estimate(counts.sum(values), counts.error(values))

    def _estimate(self, value: Array, error: Array) -> Estimate:
        unknown = jnp.isnan(self.norm())
        return Estimate(jnp.where(unknown, jnp.nan, value), jnp.where(unknown, jnp.nan, error))

    @in_one_program("k")
    def extreme(self, k: int) -> Extremes:
        """The k largest and the k smallest eigenvalues, with bounds on their errors.

        A probe's Ritz values never lie outside the corresponding eigenvalues; of all probes the outermost is taken.

        Args:
          k: how many at each end, at most the order. Static.

        Raises:
          ValueError: if ``k`` is not between 1 and the order.
        """
        order = self.nodes.shape[-1]
        if not 1 <= k <= order:
            raise ValueError(f"k must be between 1 and the order {order}, got {k}")

        def best(nodes: Array, residuals: Array, probe: Array) -> tuple[Array, Array]:
            return jnp.take_along_axis(nodes, probe[None], 0)[0], jnp.take_along_axis(residuals, probe[None], 0)[0]

        high, high_residuals = self.nodes[:, ::-1][:, :k], self.residuals[:, ::-1][:, :k]
        low, low_residuals = self.nodes[:, :k], self.residuals[:, :k]
        return Extremes(
            *best(high, high_residuals, jnp.argmax(high, axis=0)), *best(low, low_residuals, jnp.argmin(low, axis=0))
        )

    @in_one_program()
    def density(
        self,
        grid: Array | None = None,
        bandwidth: float | Array | None = None,
        *,
        linear: float | Array | None = None,
    ) -> tuple[Array, Array]:
        """Gaussian-smoothed density, for drawing only: do not count with it.

        Args:
          grid: ``[G]`` eigenvalues to evaluate it at; by default 1,000 points over the spectrum and five bandwidths
            around it, evenly spaced on the axis.
          bandwidth: standard deviation of the kernel on the axis; a hundredth of the spectrum's range by default.
          linear: for a symmetric-logarithmic axis ``y = arcsinh(x / linear)``: the eigenvalue below which it is about
            linear. None for a linear axis, ``y = x``.

        Returns:
          The grid and the density per unit of y on it, ``[G]`` each; the density integrates to one over y.

        References:
          Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 58, 2016, section 3.2.
        """
        return drawing.density(self, grid, bandwidth, linear)


def from_eigenvalues(values: Array, dim: int) -> Spectrum:
    """The spectrum of an operator with known eigenvalues.

    Args:
      values: ``[n]``, in any order, with all that are not zero among them.
      dim: number P of eigenvalues. Missing ones are zeros. If there are more values than P, those of the least absolute
        value, which can only be zeros, are left out.

    Returns:
      A complete spectrum of one probe with ``min(n, P)`` nodes of weight ``1 / P`` each.
    """
    nodes = _ascending(values, max(0, values.size - dim))[None]
    nothing = jnp.zeros((1,), nodes.dtype)
    weights = jnp.full_like(nodes, 1.0 / dim)
    return Spectrum(nodes, weights, jnp.zeros_like(nodes), dim, jnp.zeros((1,), jnp.int32), nothing, jnp.array(True))


@functools.partial(jax.jit, static_argnames="without", inline=True)
def _ascending(values: Array, without: int) -> Array:
    """The values in order, but for that many of the least absolute value."""
    return jnp.sort(values[jnp.argsort(jnp.abs(values))[without:]])
