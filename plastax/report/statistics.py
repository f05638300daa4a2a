"""Means over seeds, and how sure we are of them.

Means have Student's t intervals. Interquartile means have t intervals with the bootstrap's standard error: the
jackknife's is too small where seeds are of two kinds. Correlations and probabilities, which have bounds, have BCa
bootstrap intervals (Efron, "Better bootstrap confidence intervals", JASA 82, 1987). `experiments.bench.intervals`
measures what each of them covers. Fewer than `FEWEST` seeds have no interval.

Seed k of every arm sees the same tasks. So differences are taken seed by seed, where what tasks and seeds add cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST = 3
"""Seeds that an interval needs: the t interval of two seeds is 18 times as wide as the seeds are apart."""


COVERAGE = {
    "mean": "covers about 85 % where seeds are very skewed",
    "iqm": "covers about 90 % where seeds are of two kinds",
}
"""What a t interval of a statistic covers at worst, measured by `experiments.bench.intervals`."""
ABOUT_BOOTSTRAP = "bootstrap interval (4 seeds: covers about 85 %)"
"""Follows numbers with a BCa interval; measured likewise."""

_VALUES = 2_000_000
"""Values in memory at a time: 16 MB for each temporary array."""


def about_intervals(seeds: int, of: str = "", statistic: str = "mean") -> str:
    """What follows "mean over n seeds": how its interval is made and what it covers, or why it has none."""
    if seeds < FEWEST:
        return f"; no intervals of fewer than {FEWEST} seeds"
    return f" [95 % t interval{of}; {COVERAGE[statistic]}]"


class Interval(NamedTuple):
    """A mean over seeds and its confidence interval, arrays of one shape.

    Attributes:
      mean: NaN where no seed has a value.
      low: lower end; NaN where fewer than `FEWEST` seeds have a value.
      high: upper end, likewise.
      seeds: number of seeds with a value.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean over the first axis, and its t interval; NaN entries are left out.

    Args:
      values: ``[S, ...]``, one row for each seed.
      confidence: of the interval, in (0, 1).

    Returns:
      Arrays ``[...]``, in the unit of the values.

    Examples:
      >>> found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
      >>> print(f"{found.mean} [{found.low:.2f}, {found.high:.2f}]")
      2.5 [0.45, 4.55]
    """
    from scipy import special  # Imported on use here and below: a run starts without scipy and xarray.

    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    # Differences to the first seed keep the digits of sums, and equal values equal.
    first = np.take_along_axis(values, finite.argmax(axis=0)[None], axis=0)[0] if len(values) else np.zeros(count.shape)
    away = np.where(finite, values - first, 0.0)
    shift = away.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(finite, (away - shift) ** 2, 0.0).sum(axis=0)
    free = np.maximum(count - 1, 1)
    half = special.stdtrit(free, (1 + confidence) / 2) * np.sqrt(squares / free / np.maximum(count, 1))
    half = np.where(count >= FEWEST, half, np.nan)
    mean = np.where(count > 0, first + shift, np.nan)
    return Interval(mean, mean - half, mean + half, count)


def over_seeds(data: xr.DataArray, confidence: float = CONFIDENCE) -> xr.Dataset:
    """`mean_interval` over the dimension ``seed`` of a labelled array.

    Args:
      data: has the dimension ``seed``, among others.
      confidence: of the interval.

    Returns:
      Variables ``mean``, ``low``, ``high`` and ``seeds`` (with a value), without the dimension ``seed``.

    Examples:
      >>> import xarray as xr
      >>> data = xr.DataArray([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], dims=("seed", "task"))
      >>> over_seeds(data)["mean"].values
      array([2., 5.])
    """
    import xarray as xr

    data = data.transpose("seed", ...)
    kept = data.isel(seed=0, drop=True)
    interval = mean_interval(data.values, confidence)
    names = ("mean", "low", "high", "seeds")
    return xr.Dataset({name: (kept.dims, array) for name, array in zip(names, interval)}, kept.coords)


def jackknife(
    statistic: Callable[..., np.ndarray], *seeds: int, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """A smooth statistic of weighted seeds, and its t interval with the jackknife's standard error.

    Of a mean this is Student's interval, of a difference of means of two samples Welch's.

    Args:
      statistic: ``(weights [..., S] of each sample) -> [...]``; a weight says how often a seed counts.
      *seeds: S of every sample. Paired samples have the same weights, and are one here.
      confidence: of the interval, in (0, 1).

    Returns:
      The statistic, and the ends of its interval; NaN with fewer than `FEWEST` seeds in a sample.
    """
    value = float(statistic(*map(np.ones, seeds)))
    if min(seeds) < FEWEST:
        return value, np.nan, np.nan
    from scipy import special

    variances = []
    for sample, size in enumerate(seeds):
        whole = [np.ones((size, other)) for other in seeds]
        whole[sample] = 1.0 - np.eye(size)
        variances.append((size - 1) * float(np.var(statistic(*whole))))
    variance = sum(variances)
    # Degrees of freedom by Welch and Satterthwaite.
    parts = sum(one**2 / (size - 1) for one, size in zip(variances, seeds))
    free = variance**2 / parts if parts > 0 else min(seeds) - 1
    half = special.stdtrit(free, (1 + confidence) / 2) * np.sqrt(variance)
    return value, value - half, value + half


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *seeds: int,
    student: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    size: int = 1,
) -> tuple[float, float, float]:
    """Any statistic of weighted seeds, and its bootstrap interval: what belongs to a seed stays together.

    Args:
      statistic: see `jackknife`.
      *seeds: see `jackknife`.
      student: a t interval with the bootstrap's standard error, for a statistic without bounds; otherwise BCa, or
        percentiles where BCa is not defined because all resamples lie on one side of the value.
      confidence: of the interval, in (0, 1).
      resamples: number of bootstrap resamples.
      size: values that the statistic keeps in memory for each resample.

    Returns:
      The statistic, and the ends of its interval; NaN with fewer than `FEWEST` seeds in a sample.
    """
    value = float(statistic(*map(np.ones, seeds)))
    if min(seeds) < FEWEST:
        return value, np.nan, np.nan

    def of(*rows: np.ndarray, axis: int) -> Any:
        return statistic(*((one[..., None] == np.arange(n)).sum(axis - 1) * 1.0 for one, n in zip(rows, seeds)))

    from scipy import special, stats

    # Where seeds are all equal, BCa divides zero by zero.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            [np.arange(n) for n in seeds],
            of,
            n_resamples=resamples,
            batch=max(1, _VALUES // max(size, sum(n * n for n in seeds))),
            vectorized=True,
            confidence_level=confidence,
            method="percentile" if student else "BCa",
            # A report that is drawn twice shows the same numbers.
            rng=np.random.default_rng(0),
        )
    if student:
        # The bootstrap divides by S, not by S - 1: of a mean this makes it Student's interval.
        free = min(seeds) - 1
        half = special.stdtrit(free, (1 + confidence) / 2) * found.standard_error * np.sqrt((free + 1) / free)
        return value, value - half, value + half
    low, high = found.confidence_interval
    if np.isnan([low, high]).any():
        low, high = np.quantile(found.bootstrap_distribution, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(low), float(high)
