"""Means over seeds, and how sure we are of them.

Intervals of means and of paired differences are Student's t intervals, and those of interquartile means are t intervals
with the jackknife's standard error over seeds (Tukey's; of a mean both are the same). A bootstrap interval is too short
for the seeds that people have: of 95 % and four seeds of normal values it covers about 80 %, a t interval 95 %.
Correlations and probabilities, which have bounds, keep a bootstrap interval: BCa (Efron, "Better bootstrap confidence
intervals", JASA 82, 1987), or percentiles where BCa is not defined, because every resample lies on one side of the
value. `experiments.bench.intervals` measures what each covers: t intervals of lognormal values 83 to 88 %, and of the
interquartile mean of seeds of two kinds about 80 %. Fewer than `FEWEST` seeds have no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
import xarray as xr

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST = 3
"""Seeds that an interval takes at least: of two, a t interval is 18 times as wide as the seeds are apart."""


def about_intervals(seeds: int, of: str = "") -> str:
    """What stands after "mean over n seeds" of numbers with intervals, and in the place of intervals."""
    skewed = "covers about 85 % where seeds are very skewed"
    return f" [95 % t interval{of}; {skewed}]" if seeds >= FEWEST else f"; no intervals of fewer than {FEWEST} seeds"


ABOUT_BOOTSTRAP = "bootstrap interval (4 seeds: covers about 85 %)"
"""What stands with the intervals of `resample`; `experiments.bench.intervals` measures the number."""


# Values in memory at a time: 16 MB a temporary array, for however many cells.
_VALUES = 2_000_000


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


def _ends(
    value: np.ndarray, resampled: np.ndarray, left_out: Sequence[np.ndarray], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of some values.

    Args:
      value: ``[...]``.
      resampled: ``[..., R]``, of every resample; sorted in place.
      left_out: ``[..., S]`` for each sample that is resampled by itself: the value without each of its seeds.
      confidence: of the interval, in (0, 1).

    Returns:
      ``[...]`` each; NaN where a resample is.
    """
    resampled.sort(axis=-1)
    # What is as large as the value but for rounding is a tie, which counts half.
    near = 1e-12 * np.abs(resampled[..., [0, -1]]).max(axis=-1)
    below = sum((resampled < (value + side * near)[..., None]).sum(axis=-1) for side in (-1, 1)) / 2
    share = below / resampled.shape[-1]
    defined = (share > 0) & (share < 1)
    bias = np.where(defined, scipy.special.ndtri(np.where(defined, share, 0.5)), 0.0)
    # Efron's acceleration: the skewness of what single seeds contribute, summed over samples.
    away = [one.mean(axis=-1, keepdims=True) - one for one in left_out]
    weights = [(one.shape[-1] - 1) / one.shape[-1] for one in left_out]
    cubes = sum(weight**3 * (one**3).sum(axis=-1) for weight, one in zip(weights, away))
    squares = sum(weight**2 * (one**2).sum(axis=-1) for weight, one in zip(weights, away))
    skewed = defined & (squares > 0)
    skew = np.where(skewed, cubes, 0.0) / (6 * np.where(skewed, squares, 1.0) ** 1.5)
    ends = []
    for z in scipy.special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2]):
        level = scipy.special.ndtr(bias + (bias + z) / (1 - skew * (bias + z)))
        place = np.asarray(level * (resampled.shape[-1] - 1))
        whole = np.floor(place).astype(int)
        lower, upper = (
            np.take_along_axis(resampled, np.minimum(whole + k, resampled.shape[-1] - 1)[..., None], -1)[..., 0]
            for k in (0, 1)
        )
        # NaN are sorted to the end.
        ends.append(np.where(np.isnan(resampled[..., -1]), np.nan, lower + (place - whole) * (upper - lower)))
    return ends[0], ends[1]


def _draws(seeds: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the seeds in each resample, ``[resamples, seeds]``."""
    return rng.integers(0, seeds, (resamples, seeds))


def _counts(seeds: int, resamples: int) -> np.ndarray:
    """How often each seed is in each resample, ``[resamples, seeds]``; a report drawn twice shows the same numbers."""
    draws = _draws(seeds, resamples, np.random.default_rng(0))
    return (draws[..., None] == np.arange(seeds)).sum(axis=1).astype(float)


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean over the first axis, and its t interval; NaN entries are left out.

    Args:
      values: ``[S, ...]``, one row a seed.
      confidence: of the interval, in (0, 1).

    Returns:
      Arrays ``[...]``, in the unit of the values.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    # Of values without the first one of their seeds, sums keep their digits, and values that are all equal stay so.
    first = np.take_along_axis(values, finite.argmax(axis=0)[None], axis=0)[0] if len(values) else np.zeros(count.shape)
    away = np.where(finite, values - first, 0.0)
    shift = away.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(finite, (away - shift) ** 2, 0.0).sum(axis=0)
    free = np.maximum(count - 1, 1)
    half = scipy.stats.t.ppf((1 + confidence) / 2, free) * np.sqrt(squares / free / np.maximum(count, 1))
    half = np.where(count >= FEWEST, half, np.nan)
    mean = np.where(count > 0, first + shift, np.nan)
    return Interval(mean, mean - half, mean + half, count)


def over_seeds(data: xr.DataArray, confidence: float = CONFIDENCE) -> xr.Dataset:
    """`mean_interval` over the dimension ``seed`` of a labelled array.

    Args:
      data: any dimensions, one of them ``seed``.
      confidence: of the interval.

    Returns:
      Variables ``mean``, ``low``, ``high`` and ``seeds`` (how many had a value), without the dimension ``seed``.
    """
    data = data.transpose("seed", ...)
    kept = data.isel(seed=0, drop=True)
    interval = mean_interval(data.values, confidence)
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


def jackknife(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray, paired: bool = True, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth statistic of whole seeds, and its t interval: what belongs to a seed stays together.

    The standard error is the jackknife's, from the statistic without each seed in turn. Of a mean this is Student's
    interval, of a difference of means of samples that are not paired Welch's.

    Args:
      statistic: ``(*samples [..., S, T]) -> [...]``.
      *samples: ``[..., S, T]`` each, without NaN; S may differ where they are not paired.
      paired: whether row k of every sample is the same seed.
      confidence: of the interval.

    Returns:
      The statistic ``[...]``, and the ends of its interval; NaN with fewer than `FEWEST` seeds in a sample.
    """
    value = np.asarray(statistic(*samples))
    sizes = [sample.shape[-2] for sample in samples]
    if min(sizes) < FEWEST:
        return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    # All samples without the same seed; or one of them without each of its seeds, the others whole.
    groups = [range(len(samples))] if paired else [[k] for k in range(len(samples))]
    variances, frees = [], []
    for group in groups:
        size = sizes[group[0]]
        rows = [_left_out(size) if k in group else np.tile(np.arange(n), (size, 1)) for k, n in enumerate(sizes)]
        without = statistic(*(np.take(sample, row, axis=-2) for sample, row in zip(samples, rows)))
        variances.append((size - 1) * np.var(without, axis=-1))
        frees.append(size - 1)
    variance = sum(variances)
    # Welch's degrees of freedom.
    parts = sum(one**2 / free for one, free in zip(variances, frees))
    free = np.divide(variance**2, parts, out=np.full(np.shape(variance), float(min(frees))), where=parts > 0)
    half = scipy.stats.t.ppf((1 + confidence) / 2, free) * np.sqrt(variance)
    return value, value - half, value + half


def reweigh(
    statistic: Callable[[np.ndarray], np.ndarray],
    seeds: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    size: int = 1,
) -> tuple[float, float, float]:
    """Any statistic of weighted seeds, and its bootstrap interval.

    Args:
      statistic: ``(weights [..., S]) -> [...]``; a weight says how often a seed is there.
      seeds: S.
      confidence: of the interval.
      resamples: number of bootstrap resamples.
      size: values that the statistic has in memory for each resample.

    Returns:
      The statistic, and the ends of its interval; NaN with fewer than `FEWEST` seeds.
    """
    value = np.asarray(statistic(np.ones(seeds)))
    if seeds < FEWEST:
        return float(value), np.nan, np.nan
    parts = np.array_split(_counts(seeds, resamples), -(-resamples * size // _VALUES))
    resampled = np.concatenate([statistic(part) for part in parts])
    low, high = _ends(value, resampled, [statistic(1.0 - np.eye(seeds))], confidence)
    return float(value), float(low), float(high)


def resample(
    statistic: Callable[..., np.ndarray],
    *samples: np.ndarray,
    paired: bool = True,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Any statistic of whole seeds, and its bootstrap interval: what belongs to a seed stays together.

    Args:
      statistic: ``(*samples [..., S, T]) -> [...]``; the leading axes are resamples.
      *samples: ``[S, T]`` each, without NaN, one row a seed.
      paired: whether row k of every sample is the same seed, and is resampled together.
      confidence: of the interval.
      resamples: number of bootstrap resamples.

    Returns:
      The statistic, and the ends of its interval; NaN with fewer than `FEWEST` seeds in a sample.
    """
    value = np.asarray(statistic(*samples))
    sizes, rng = [len(sample) for sample in samples], np.random.default_rng(0)
    if min(sizes) < FEWEST:
        return float(value), np.nan, np.nan

    def of(rows: Sequence[np.ndarray]) -> np.ndarray:
        return statistic(*(sample[row] for sample, row in zip(samples, rows)))

    # Rows of every sample in each resample; then, for what is resampled by itself, without each of its seeds.
    if paired:
        draws = [_draws(sizes[0], resamples, rng)] * len(samples)
        without = [[_left_out(sizes[0])] * len(samples)]
    else:
        draws = [_draws(size, resamples, rng) for size in sizes]
        whole = [[np.tile(np.arange(size), (other, 1)) for size in sizes] for other in sizes]
        without = [[*rows[:k], _left_out(sizes[k]), *rows[k + 1 :]] for k, rows in enumerate(whole)]
    batches = -(-resamples * max(sample.size for sample in samples) // _VALUES)
    resampled = np.concatenate([of(rows) for rows in zip(*(np.array_split(draw, batches) for draw in draws))])
    low, high = _ends(value, resampled, [of(rows) for rows in without], confidence)
    return float(value), float(low), float(high)


def _left_out(seeds: int) -> np.ndarray:
    """All rows but the k-th in row k, ``[seeds, seeds - 1]``."""
    return np.array([np.delete(np.arange(seeds), k) for k in range(seeds)])
