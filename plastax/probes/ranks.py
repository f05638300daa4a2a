"""The ranks of a feature matrix that the literature reports, each as a function of singular values.

They answer different questions, and public codes mix up their names: what one calls "stable rank" is another's
`srank`. None orders methods by how well they keep learning: in the runs of arXiv 2509.22335 the features of the
best method have neither the highest nor the lowest effective rank. All are at most the number of rows, so a batch
smaller than the layer is wide caps them. All but `pyoi_rank` ignore the features' scale. Zero features have rank 0,
features with NaN the rank NaN. The results are float32 scalars.

Examples:
  >>> import jax.numpy as jnp
  >>> from plastax.probes import ranks
  >>> features = jnp.diag(jnp.array([4.0, 2.0, 0.1]))
  >>> values = ranks.singular_values(features)  # once
  >>> found = ranks.effective_rank(values), ranks.srank(values), ranks.stable_rank(values)
  >>> [round(float(x), 2) for x in found]
  [2.03, 3.0, 1.25]
  >>> found = ranks.pca_rank(values), ranks.numerical_rank(values, 3), ranks.pyoi_rank(values, 3, eps=0.1)
  >>> [float(x) for x in found]
  [2.0, 3.0, 2.0]
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp

from plastax import linalg, tree
from plastax.types import Array

SrankVariant = Literal["kumar", "l2_init", "plasticine"]
NumericalVariant = Literal["numpy", "dohare"]


def rows(features: Array) -> Array:
    """``[B, d]`` as it is; ``[B, h, w, c]``, where a channel is one unit, as ``[B h w, c]``; ``[B, T, d]`` alike.

    In float32 at least, as is everything made of them.

    The code of Kumar et al.'s L2 Init flattens to ``[B, h w c]`` instead, where each place of a channel is a unit:
    ``features.reshape(B, -1)`` first gives its numbers.
    """
    return tree.wide(features).reshape(-1, features.shape[-1])


def counting(counted: Array | None) -> Array | None:
    """``counted`` ``[B, T]`` as ``[B T, 1]``: which `rows` a mean is over, for its argument ``where``; None: all."""
    return None if counted is None else counted.reshape(-1, 1)


def singular_values(features: Array, centred: bool = False, counted: Array | None = None) -> Array:
    """Singular values of the features, descending, ``[min(n, d)]`` for the ``n`` `rows` of ``d`` units.

    Args:
      features: ``[B, ..., d]``, floating point.
      centred: subtract the mean over rows first (PCA proper). The public codes do not: ReLU features then have one
        large singular value along their mean, which pulls every relative rank down.
      counted: bool ``[B, T]``, see `plastax.types.Model`; features elsewhere are zero, and change no singular value.
    """
    h, where = rows(features), counting(counted)
    if centred:
        h = h - jnp.mean(h, axis=0, keepdims=True, where=where)
        h = h if where is None else jnp.where(where, h, 0)
    return linalg.svdvals(h)


def _relative(values: Array) -> Array:
    """Over the largest, so that powers neither over- nor underflow; zeros stay zeros."""
    largest = jnp.max(values)
    return values / jnp.where(largest == 0, 1.0, largest)


def _known(values: Array, rank: Array) -> Array:
    """``rank`` as float32, NaN where a value is NaN: comparisons with NaN are false, and count nothing."""
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, rank.astype(jnp.float32))


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; variants are {', '.join(allowed)}")


def effective_rank(values: Array, power: int = 1) -> Array:
    """``exp(-sum_i p_i log p_i)`` with ``p_i = s_i^power / sum_j s_j^power``; from 1 to the rank.

    Power 1, of singular values, is the paper's and what the public codes compute (Dohare's, Plasticine, lop-jax, L2
    Init). Power 2, of the second moments' eigenvalues, is "the effective rank of the covariance". It is never larger:
    two numbers from different papers compare only if the powers agree. `linalg.effective_rank` is the same with a
    gradient.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    weights = _relative(values) ** power
    total = jnp.sum(weights)
    p = weights / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return _known(values, jnp.where(total == 0, 0.0, jnp.exp(entropy)))


def srank(values: Array, delta: float = 0.01, variant: SrankVariant = "kumar") -> Array:
    """Fewest singular values whose sum is at least ``1 - delta`` of all, with their *first* powers.

    Public codes differ by one:

    * ``kumar``: the paper's ``min k``. Also ``approximate_rank_abs`` of Dohare et al.'s code.
    * ``l2_init``: the number of cumulative shares below ``1 - delta``: one less. The code of Kumar et al.'s L2 Init.
    * ``plasticine``: that plus one, even of a silent layer: 1, not 0. RLE-Foundation's
      Plasticine, where it is called *stable rank* (as in Dohare et al.'s paper); the stable rank proper is
      `stable_rank`.

    References:
      Kumar et al., "Implicit under-parameterization inhibits data-efficient deep reinforcement learning", ICLR 2021,
      arXiv 2010.14498, section 3.
    """
    _check("variant", variant, get_args(SrankVariant))
    values = _relative(values)
    total = jnp.sum(values)
    shares = jnp.cumsum(values) / jnp.where(total == 0, 1.0, total)
    below = jnp.where(total == 0, 0, jnp.sum(shares < 1 - delta))
    # Rounding may leave the last share below one.
    reached = jnp.minimum(below + 1, values.size)
    return _known(
        values, {"kumar": jnp.where(total == 0, 0, reached), "l2_init": below, "plasticine": reached}[variant]
    )


def pca_rank(values: Array, share: float = 0.99) -> Array:
    """Fewest principal components that hold ``share`` of the sum of *squares*: `srank` of squared singular values.

    Dohare et al. and lop-jax call it approximate rank. Of uncentred features it is no variance: see `singular_values`.

    References:
      Yang et al., "Harnessing structures for value-based planning and reinforcement learning", arXiv 1909.12255
      (approximate rank).
    """
    return srank(_relative(values) ** 2, 1 - share)


def stable_rank(values: Array) -> Array:
    """``||H||_F^2 / ||H||_2^2``, the sum of squares over the largest: from 1 to the rank, not a whole number.

    Not what Dohare et al.'s paper and Plasticine call so: see `srank`.

    References:
      Rudelson and Vershynin, "Sampling from large matrices", Journal of the ACM 54, 2007 (numerical rank there).
    """
    return _known(values, jnp.sum(jnp.square(_relative(values))))


def numerical_rank(
    values: Array, longest: int | Array, variant: NumericalVariant = "numpy", eps: float | None = None
) -> Array:
    """Number of singular values beyond rounding.

    * ``numpy``: above ``longest * eps * largest``, eps of the values' own dtype (1.2e-7 in float32), the tolerance of
      `numpy.linalg.matrix_rank` and MATLAB. Of features in 16 bits, whose entries are off by a share of themselves,
      above ``eps`` times the Frobenius norm too.
    * ``dohare``: not exactly zero, as Dohare et al.'s code counts. Rounding makes nearly every one so: of a float32
      matrix of rank one that is mostly full rank.

    Args:
      values: ``[k]``.
      longest: the larger side of the matrix, ``max(n, d)``.
      variant: what counts as zero.
      eps: of the features' dtype, where that is narrower than the values'.
    """
    _check("variant", variant, get_args(NumericalVariant))
    relative, own = _relative(values), float(jnp.finfo(values.dtype).eps)
    tolerance = longest * own if variant == "numpy" else 0.0
    if variant == "numpy" and eps is not None and eps > own:
        tolerance = jnp.maximum(tolerance, eps * jnp.sqrt(jnp.sum(jnp.square(relative))))
    return _known(values, jnp.sum(relative > tolerance))


def pyoi_rank(values: Array, examples: int | Array, eps: float = 0.01) -> Array:
    """Number of singular values of ``H / sqrt(n)`` above ``eps``: the feature rank of Lyle et al.

    The threshold is absolute, so it changes with the features' scale: layers and methods whose feature norms differ do
    not compare.

    Args:
      values: ``[k]``.
      examples: the number n of rows.
      eps: the threshold.

    References:
      Lyle, Rowland and Dabney, "Understanding and preventing capacity loss in reinforcement learning", ICLR 2022
      (feature rank); called PyOI in later comparisons.
    """
    return _known(values, jnp.sum(values > eps * jnp.sqrt(jnp.asarray(examples, values.dtype))))
