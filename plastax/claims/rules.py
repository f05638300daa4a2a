"""Rules that turn the numbers of seeds into a verdict: pure functions of arrays.

A rule looks at one number for each seed (or method) and its 95 % interval. ``size`` is the smallest effect that the
claim speaks of, and ``above`` is what an effect has to exceed:

- not supported: the interval lies below ``size``, so the claimed effect is excluded;
- supported: otherwise, if the interval lies above ``above``;
- undecided: otherwise, or without an interval. `Finding.needed` says how many seeds would decide.

Without an effect a rule says "supported" in at most 2.5 % of studies. `all_of` joins findings: it supports a claim only
if every part is supported, so it errs no more often than one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from plastax.report.ranking import auc
from plastax.report.statistics import CONFIDENCE, FEWEST, mean_interval

Verdict = Literal["supported", "not supported", "undecided"]
SUPPORTED, NOT_SUPPORTED, UNDECIDED = VERDICTS = ("supported", "not supported", "undecided")

POWER = 0.8
"""Probability with which an effect of the claimed size is to be found."""
MOST = 1000
"""The most seeds that `Finding.needed` speaks of."""
CHANGE_LEVEL = 0.05
"""Probability with which independent values have a `change_point`."""


class Finding(NamedTuple):
    """What a rule found.

    Attributes:
      verdict: one of `VERDICTS`.
      effect: the number that was judged.
      low: lower end of its 95 % interval; NaN without one.
      high: upper end.
      above: what the effect has to exceed.
      size: the smallest effect that the claim speaks of.
      samples: number of seeds (or methods) in it.
      needed: number of them that would decide with a probability of `POWER` if the effect is the observed one (of
        methods: the claimed one); 0 if decided, `MOST` if not fewer.
      unit: what the samples are.
    """

    verdict: Verdict
    effect: float
    low: float
    high: float
    above: float
    size: float
    samples: int
    needed: int = 0
    unit: str = "seeds"


F = TypeVar("F", bound=Finding)


def verdict(low: float, high: float, above: float, size: float) -> Verdict:
    """The verdict of an interval, see the module.

    Examples:
      >>> verdict(0.1, 0.5, 0.0, 0.3), verdict(0.1, 0.2, 0.0, 0.3), verdict(-0.1, 0.5, 0.0, 0.3)
      ('supported', 'not supported', 'undecided')
    """
    if high < size:
        return "not supported"
    return "supported" if low > above else "undecided"


def exceeds(values: np.ndarray, above: float = 0.0, size: float = 0.0) -> Finding:
    """Whether the mean over seeds exceeds ``above``, by Student's t interval.

    With ``above = size = -m`` this is a test of non-inferiority: supported if a fall by m is excluded. The seeds that
    would decide are those for which the interval, around the mean that was observed, excludes one of the two.

    Args:
      values: ``[S]``, one for each seed; NaN where it has none.
      above: what the mean has to exceed.
      size: the smallest mean that the claim speaks of, at least ``above``.

    Examples:
      >>> exceeds(np.array([0.3, 0.4, 0.5, 0.4]), size=0.2).verdict
      'supported'
    """
    mean, low, high, seeds = map(float, mean_interval(values))
    found = verdict(low, high, above, size)
    needed = 0
    if found == UNDECIDED and seeds >= 2:
        needed = seeds_needed(float(np.nanstd(values, ddof=1)), max(mean - above, size - mean))
    return Finding(found, mean, low, high, above, size, int(seeds), needed)


def seeds_needed(deviation: float, effect: float) -> int:
    """Seeds of which a two-sided t test at 5 % finds an effect with a probability of `POWER`.

    Args:
      deviation: standard deviation over seeds.
      effect: mean to be found, not zero.

    Examples:
      >>> seeds_needed(1.0, 1.0), seeds_needed(1.0, 0.5)
      (10, 34)
    """
    if not deviation > 0:
        return FEWEST
    seeds = np.arange(FEWEST, MOST + 1)
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
    power = stats.nct.sf(critical, seeds - 1, abs(effect) / deviation * np.sqrt(seeds))
    return int(seeds[min(int(np.searchsorted(power, POWER)), len(seeds) - 1)])


def change_point(values: np.ndarray) -> float:
    """Index of the first value after a fall; NaN if there is none.

    Whether there is a fall is decided by Pettitt's test, which knows no scale. Its place is that of the two levels, the
    second one lower, that fit best by least squares. A steady decline has its change point near its middle.

    Args:
      values: ``[T]``, finite.

    References:
      Pettitt, "A non-parametric approach to the change-point problem", Applied Statistics 28, 1979: one-sided.

    Examples:
      >>> change_point(np.array([5.0, 6, 5, 6, 5, 1, 2, 1, 2, 1]))
      5.0
    """
    count = len(values)
    if count < 2:
        return np.nan
    before = np.arange(1, count)
    larger = 2.0 * np.cumsum(stats.rankdata(values))[:-1] - before * (count + 1.0)
    probability = np.exp(-6.0 * max(larger.max(), 0.0) ** 2 / (count**3 + count**2))
    if probability >= CHANGE_LEVEL:
        return np.nan
    # Least squares are least where this is largest: the difference of the two means, times sqrt(n m / (n + m)).
    fall = np.cumsum(values - values.mean())[:-1] / np.sqrt(before * (count - before))
    return float(fall.argmax() + 1)


def leads(measure: np.ndarray, score: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Tasks by which the fall of a measure precedes the fall of the score, in each seed.

    Args:
      measure: ``[S, T]``, falls where the claim says so.
      score: ``[S, T]``, likewise.
      tasks: ``[T]``, numbers of the tasks.

    Returns:
      ``[S]``; positive if the measure falls first. NaN where the score does not fall. A measure that does not fall
      counts as falling one task after the last.
    """
    after = np.append(tasks, tasks[-1] + 1).astype(float)

    def when(values: np.ndarray, never: float) -> np.ndarray:
        points = [change_point(seed) for seed in values]
        return np.array([never if np.isnan(point) else after[int(point)] for point in points])

    return when(score, np.nan) - when(measure, after[-1])


def precedes(measure: np.ndarray, score: np.ndarray, tasks: np.ndarray, size: float = 1.0) -> Finding:
    """Whether a measure falls before the score does; arguments as of `leads`. ``size``: the smallest lead in tasks."""
    return exceeds(leads(measure, score, tasks), size=size)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where one of the two is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return stats.pearsonr(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1), axis=-1).statistic


def correlates_within(x: np.ndarray, y: np.ndarray, size: float) -> Finding:
    """Whether x and y rise and fall together over the tasks of a network.

    Each seed has the mean over methods of Spearman's correlation over tasks.

    Args:
      x: ``[method, S, T]``, finite.
      y: likewise.
      size: the smallest correlation that the claim speaks of.
    """
    found = rank_correlation(x, y)
    there = np.isfinite(found)
    return exceeds(np.where(there, found, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan), size=size)


def correlates_pooled(x: np.ndarray, y: np.ndarray, size: float) -> Finding:
    """Spearman's correlation over all methods and tasks of a seed; arguments as of `correlates_within`.

    It mixes differences between methods with trends over tasks, so that it must not be read alone.
    """
    return exceeds(rank_correlation(*(np.moveaxis(v, 1, 0).reshape(v.shape[1], -1) for v in (x, y))), size=size)


def correlates_across(x: np.ndarray, y: np.ndarray, size: float) -> Finding:
    """Whether methods with a higher x have a higher y: Spearman's correlation of their means, by Fisher's interval.

    The methods are the sample: more seeds of the same methods do not make it larger. Arguments as of
    `correlates_within`.
    """
    means = [stats.rankdata(values.mean((1, 2))) for values in (x, y)]
    count = len(means[0])
    if count < 4 or not np.ptp(means, axis=1).all():
        return Finding("undecided", np.nan, np.nan, np.nan, 0.0, size, count, _methods_needed(size), "methods")
    made = stats.pearsonr(*means)
    low, high = made.confidence_interval(CONFIDENCE)
    found = verdict(low, high, 0.0, size)
    needed = _methods_needed(size) if found == UNDECIDED else 0
    return Finding(found, float(made.statistic), float(low), float(high), 0.0, size, count, needed, "methods")


def _methods_needed(correlation: float) -> int:
    """Pairs of which Fisher's interval of a correlation excludes zero with a probability of `POWER`."""
    quantiles = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    return int(np.ceil(3 + (quantiles / np.arctanh(correlation)) ** 2))


def classifies(predicted: np.ndarray, success: np.ndarray, size: float) -> Finding:
    """Whether a prediction tells the tasks in which a network succeeds: the area under the ROC curve of each seed.

    Args:
      predicted: ``[method, S, T]``, higher where success is expected.
      success: bool, likewise.
      size: the smallest area that the claim speaks of, above one half.
    """
    # Pairs are of one seed, across its methods and tasks.
    rows = (np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) for values in (predicted, success))
    return exceeds(auc(*rows), above=0.5, size=size)


def calibrated(probability: np.ndarray, success: np.ndarray, size: float) -> Finding:
    """Whether predicted probabilities are nearer to what happens than the share of successes: Brier's skill of a seed.

    Args:
      probability: ``[method, S, T]``, from 0 to 1.
      success: bool, likewise.
      size: the smallest skill that the claim speaks of; 1 is perfect.
    """
    wins = success.astype(float)
    error = ((probability - wins) ** 2).mean((0, 2))
    guess = wins.mean((0, 2)) * (1 - wins.mean((0, 2)))
    skill = np.divide(guess - error, guess, out=np.full(guess.shape, np.nan), where=guess > 0)
    return exceeds(skill, size=size)


def all_of(findings: Sequence[F]) -> F:
    """The finding that decides whether all are supported: the first not supported, else the first undecided or first.

    Examples:
      >>> all_of([exceeds(np.ones(4)), exceeds(np.array([-1.0, 1.0, 2.0]))]).verdict
      'undecided'
    """
    order = (NOT_SUPPORTED, UNDECIDED, SUPPORTED)
    return min(findings, key=lambda finding: order.index(finding.verdict))
