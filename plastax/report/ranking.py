"""How well one quantity orders another: ranking accuracy and AUC, seed by seed, and their intervals over seeds.

Only values of one seed are compared, so each seed gives a number of its own, and those of different seeds are
independent. Intervals are Student's over seeds: however many tasks a seed has, it counts once. The bootstrap is no
choice here, because it has no values as far out as an interval that is adjusted for many comparisons reaches.

Whether a larger or a smaller value foretells success is chosen on a third of the seeds; the others report. So a useless
quantity has an expected accuracy of 1/2, whatever was chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plastax.report.statistics import CONFIDENCE, mean_interval

SEEDS = 4
"""The fewest seeds of `held_out`: one chooses the direction, three report."""


def ranking_accuracy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The part of pairs that ``x`` orders as ``y`` does, for each seed.

    Equal values of ``x`` count half; pairs with equal ``y`` are left out, and so are NaN. This is ``(1 + D) / 2`` with
    Somers' D of ``x`` given ``y``; without equal values, ``(1 + tau) / 2`` with Kendall's tau.

    Args:
      x: ``[S, ..., n]``, a row for each seed. Pairs are taken along the last axis: of ``[seed, arm, task]`` they are
        tasks of one arm, of ``[seed, task, arm]`` arms in one task. All pairs of a seed count alike.
      y: in the same shape.

    Returns:
      ``[S]`` in [0, 1]; NaN for a seed without a pair.

    References:
      Somers, "A new asymmetric measure of association for ordinal variables", American Sociological Review 27, 1962.

    Examples:
      >>> ranking_accuracy(np.array([[1.0, 2.0, 2.0]]), np.array([[5.0, 7.0, 9.0]]))  # two in order, one tie
      array([0.83333333])
    """
    x, y = (np.asarray(values, np.float64) for values in (x, y))
    # NaN is neither larger nor smaller, so a pair with one counts as equal, and is left out.
    y = np.where(np.isnan(x), np.nan, y)
    found = np.full(len(x), np.nan)
    for seed, (mine, its) in enumerate(zip(x, y)):  # one at a time, for memory
        wanted = _order(its)
        if count := np.count_nonzero(wanted):
            found[seed] = 0.5 + np.sum(_order(mine) * wanted, dtype=np.int64) / (2 * count)
    return found


def _order(values: np.ndarray) -> np.ndarray:
    """``[..., n, n]``: 1 where the first is larger than the second, -1 where it is smaller, else 0."""
    a, b = values[..., :, None], values[..., None, :]
    return (a > b).astype(np.int8) - (a < b).astype(np.int8)


def auc(x: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of ``x`` as a score for ``success``, for each seed.

    It is `ranking_accuracy` of the pairs of which one succeeds and the other fails.

    Args:
      x: ``[S, ..., n]``, see `ranking_accuracy`.
      success: 1 or True, 0 or False, or NaN, in the same shape.

    Returns:
      ``[S]`` in [0, 1]; NaN for a seed in which no pair has both outcomes.

    Examples:
      >>> auc(np.array([[0.1, 0.4, 0.3, 0.8]]), np.array([[0, 0, 1, 1]]))
      array([0.75])
    """
    return ranking_accuracy(x, np.asarray(success, np.float64))


class HeldOut(NamedTuple):
    """A mean over held-out seeds of a ranking accuracy or AUC.

    Attributes:
      value: in the direction that the other seeds chose; 1/2 is useless. NaN if it cannot be told.
      low: lower end of its 95 % t interval.
      high: upper end.
      adjusted_low: lower end of the interval that allows for all comparisons (Bonferroni).
      adjusted_high: upper end.
      direction: 1 where larger foretells success, -1 where smaller does.
      seeds: that reported.
    """

    value: float
    low: float
    high: float
    adjusted_low: float
    adjusted_high: float
    direction: int
    seeds: int


def choosing(seeds: int) -> int:
    """How many seeds, the first ones, choose the direction: a third, at least one."""
    return max(1, seeds // 3)


def held_out(accuracies: np.ndarray, comparisons: int = 1, confidence: float = CONFIDENCE) -> HeldOut:
    """The mean of seeds that did not choose the direction, and its intervals.

    Args:
      accuracies: ``[S]`` of `ranking_accuracy` or `auc`; NaN is left out.
      comparisons: how many were tried; that many adjusted intervals hold together with the given confidence.
      confidence: of the interval, in (0, 1).

    Returns:
      NaN for ends with fewer than three seeds that report, and for everything where no seed chose.

    Examples:
      >>> found = held_out(np.array([0.2, 0.3, 0.25, 0.2]))
      >>> print(f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}], direction {found.direction}")
      0.75 [0.63, 0.87], direction -1
    """
    accuracies = np.asarray(accuracies, np.float64)
    accuracies = accuracies[~np.isnan(accuracies)]
    first = choosing(len(accuracies))
    chosen, reported = accuracies[:first], accuracies[first:]
    if not len(reported):
        return HeldOut(np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0)
    direction = -1 if np.mean(chosen) < 0.5 else 1
    levels = confidence, 1 - (1 - confidence) / comparisons
    usual, adjusted = (mean_interval(0.5 + direction * (reported - 0.5), level) for level in levels)
    low, high, adjusted_low, adjusted_high = (
        float(np.clip(end, 0.0, 1.0)) for end in (usual.low, usual.high, adjusted.low, adjusted.high)
    )
    return HeldOut(float(usual.mean), low, high, adjusted_low, adjusted_high, direction, len(reported))
