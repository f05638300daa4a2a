"""Means over seeds, and how sure we are of them.

Intervals are bootstrap intervals of the mean by `scipy.stats.bootstrap`: BCa (Efron, "Better bootstrap confidence
intervals", JASA 82, 1987), and percentile intervals where BCa is not defined, because resampling hardly changes the
mean. With fewer than about ten seeds any bootstrap interval is too short (four seeds: about 80 % instead of 95 %).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

CONFIDENCE = 0.95
RESAMPLES = 9999
# Resamples that are in memory at a time: a thousand tasks of a hundred seeds then take 80 MB.
_BATCH = 100
# Values in memory at a time where single statistics are resampled.
_VALUES = 1_000_000


class Interval(NamedTuple):
    """A mean over seeds and its confidence interval, arrays of one shape.

    Attributes:
      mean: NaN where no seed has a value.
      low: lower end; NaN where fewer than two seeds have a value.
      high: upper end, likewise.
      seeds: number of seeds with a value.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def _bootstrap(values: np.ndarray, method: str, confidence: float, resamples: int) -> np.ndarray:
    """Ends ``[2, cells]`` of the interval of the mean of ``[S, cells]`` without NaN, S >= 2."""
    with warnings.catch_warnings():
        # Both say that an interval is NaN, which the caller looks at.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = scipy.stats.bootstrap(
            (values,),
            np.mean,
            axis=0,
            vectorized=True,
            method=method,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=_BATCH,
            # A report drawn twice shows the same numbers.
            rng=np.random.default_rng(0),
        )
    return np.stack([result.confidence_interval.low, result.confidence_interval.high])


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES) -> Interval:
    """Mean over the first axis, and its bootstrap interval; NaN entries are left out.

    Args:
      values: ``[S, ...]``, one row a seed.
      confidence: of the interval, in (0, 1).
      resamples: number of bootstrap resamples.

    Returns:
      Arrays ``[...]``, in the unit of the values.
    """
    values = np.asarray(values, np.float64)
    shape = values.shape[1:]
    cells = values.reshape(len(values), -1)
    finite = np.isfinite(cells)
    count = finite.sum(axis=0)
    total = np.where(finite, cells, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    ends = np.full((2, len(count)), np.nan)
    # Cells that lack the same seeds (usually none) are resampled together, in one vectorised call.
    patterns, member = np.unique(finite, axis=1, return_inverse=True)
    for index, pattern in enumerate(patterns.T):
        if pattern.sum() < 2:
            continue
        here = np.flatnonzero(member.reshape(-1) == index)
        part = cells[np.ix_(pattern, here)]
        ends[:, here] = _bootstrap(part, "BCa", confidence, resamples)
        broken = here[~np.isfinite(ends[:, here]).all(axis=0)]
        if broken.size:
            ends[:, broken] = _bootstrap(cells[np.ix_(pattern, broken)], "percentile", confidence, resamples)
    return Interval(*(array.reshape(shape) for array in (mean, ends[0], ends[1], count)))


def over_seeds(data: xr.DataArray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES) -> xr.Dataset:
    """`mean_interval` over the dimension ``seed`` of a labelled array.

    Args:
      data: any dimensions, one of them ``seed``.
      confidence: of the interval.
      resamples: number of bootstrap resamples.

    Returns:
      Variables ``mean``, ``low``, ``high`` and ``seeds`` (how many had a value), without the dimension ``seed``.
    """
    data = data.transpose("seed", ...)
    kept = data.isel(seed=0, drop=True)
    interval = mean_interval(data.values, confidence, resamples)
    names = ("mean", "low", "high", "seeds")
    return xr.Dataset({name: (kept.dims, array) for name, array in zip(names, interval)}, kept.coords)


def paired_difference(a: xr.DataArray, b: xr.DataArray, confidence: float = CONFIDENCE) -> xr.Dataset:
    """Mean of ``a - b`` seed by seed, over the seeds that both have, and its interval.

    Seed k of every arm sees the same tasks, so what tasks and seeds add to both cancels.

    Args:
      a: any dimensions, one of them ``seed``.
      b: the same dimensions.
      confidence: of the interval.

    Returns:
      As `over_seeds`.
    """
    return over_seeds(a - b, confidence)


def resample(
    statistic: Callable[..., np.ndarray],
    *samples: np.ndarray,
    paired: bool = True,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Any statistic of whole seeds, and its bootstrap interval: what belongs to a seed stays together.

    Args:
      statistic: ``(*samples [..., S, ...]) -> [...]``; the leading axes are resamples.
      *samples: ``[S, ...]`` each, without NaN, one row a seed.
      paired: whether row k of every sample is the same seed, and is resampled together.
      confidence: of the interval.
      resamples: number of bootstrap resamples.

    Returns:
      The statistic, and the ends of its interval: BCa, else percentile (see above); NaN with fewer than two seeds.
    """
    value = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return value, np.nan, np.nan

    def of_rows(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
        del axis
        return statistic(*(sample[row.astype(int)] for sample, row in zip(samples, rows)))

    # Row numbers are what is resampled, because SciPy reduces one axis only, and a seed has more than one number.
    rows = tuple(np.arange(len(sample)) for sample in samples)
    batch = max(_BATCH, _VALUES // max(np.size(sample) for sample in samples))
    ends = np.array([np.nan, np.nan])
    for method in ("BCa", "percentile"):
        if np.isfinite(ends).all():
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            interval = scipy.stats.bootstrap(
                rows,
                of_rows,
                vectorized=True,
                paired=paired and len(rows) > 1,
                method=method,
                confidence_level=confidence,
                n_resamples=resamples,
                batch=batch,
                rng=np.random.default_rng(0),
            ).confidence_interval
        ends = np.array([interval.low, interval.high])
    return value, float(ends[0]), float(ends[1])
