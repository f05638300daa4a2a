"""Ranking accuracy and AUC are scipy's and scikit-learn's, and their intervals are honest."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from plastax.report import ranking

BOTH = {"within": lambda v: v, "across": lambda v: v.swapaxes(1, 2)}


def values(seed: int, *shape: int, digits: int = 9) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(2, *shape)).round(digits))


@pytest.mark.parametrize("digits", [9, 0])
def test_accuracy_is_somers_d(digits):
    x, y = values(0, 3, 25, digits=digits)
    wanted = [(1 + stats.somersd(its, mine).statistic) / 2 for mine, its in zip(x, y)]
    np.testing.assert_allclose(ranking.ranking_accuracy(x, y), wanted, rtol=1e-12)


def test_auc_is_that_of_scikit_learn():
    x, y = values(1, 3, 40, digits=1)
    wanted = [metrics.roc_auc_score(its > 0, mine) for mine, its in zip(x, y)]
    np.testing.assert_allclose(ranking.auc(x, y > 0), wanted, rtol=1e-12)


def test_pairs_are_of_the_last_axis_only():
    x, y = values(2, 1, 3, 4)
    pairs = [(a, i, j) for a in range(3) for i in range(4) for j in range(i)]
    right = np.mean([(x[0, a, i] > x[0, a, j]) == (y[0, a, i] > y[0, a, j]) for a, i, j in pairs])
    np.testing.assert_allclose(ranking.ranking_accuracy(x, y), [right], rtol=1e-12)


def test_missing_and_infinite_values():
    x, y = np.array([[1, np.nan, 3, np.inf]]), np.array([[1.0, 2, np.nan, 9]])
    np.testing.assert_array_equal(ranking.ranking_accuracy(x, y), [1.0])
    assert np.isnan(ranking.ranking_accuracy(x, np.ones((1, 4))))
    assert np.isnan(ranking.auc(x, np.ones((1, 4), bool)))


def test_direction_is_chosen_by_other_seeds():
    one = ranking.held_out(np.array([0.1, 0.2, 0.9, 0.8, 0.7, 0.6]), comparisons=10)
    assert one.direction == -1
    assert one.seeds == 4
    np.testing.assert_allclose(one.value, 0.25)
    interval = stats.t.interval(1 - 0.05 / 10, 3, 0.25, stats.sem([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose([one.adjusted_low, one.adjusted_high], np.clip(interval, 0, 1))
    few = ranking.held_out(np.array([0.9, 0.8, 0.7, np.nan]))
    assert few.value == pytest.approx(0.75)
    assert np.isnan(few.low)
    assert np.isnan(ranking.held_out(np.full(5, np.nan)).value)


def simulated(seed: int, seeds: int = 8, arms: int = 6, tasks: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A useless measurement that wanders over tasks, and gains that fall, of networks as different as real ones."""
    rng = np.random.default_rng(seed)
    trend = rng.normal(size=(1, arms, 1)) * np.linspace(0, 2, tasks)
    difficulty, network = rng.normal(size=(seeds, 1, tasks)), rng.normal(size=(seeds, arms, 1))
    gain = rng.normal(size=(1, arms, 1)) + trend + (difficulty + network) / 2 + rng.normal(size=(seeds, arms, tasks))
    walk, level = np.cumsum(rng.normal(size=gain.shape), -1), rng.normal(size=network.shape)
    return walk + level + rng.normal(size=(seeds, 1, 1)), gain


def covered(studies: int) -> dict[tuple[str, str], float]:
    """The part of studies in which the interval of a useless measurement has 1/2."""
    counts = dict.fromkeys(itertools.product(BOTH, ("accuracy", "auc")), 0)
    for number in range(studies):
        x, y = simulated(number)
        for name, turned in BOTH.items():
            for kind, got in (("accuracy", ranking.ranking_accuracy), ("auc", ranking.auc)):
                found = ranking.held_out(got(turned(x), turned(y > 0 if kind == "auc" else y)))
                counts[name, kind] += found.low <= 0.5 <= found.high
    return {case: count / studies for case, count in counts.items()}


def test_a_useless_measurement_is_rarely_called_useful():
    assert min(covered(40).values()) >= 0.85


@pytest.mark.slow
def test_a_useless_measurement_has_a_half_in_93_percent_of_studies():
    assert min((found := covered(200)).values()) >= 0.93, found


def test_a_useful_measurement_is_found():
    _, y = simulated(0)
    noisy = -(y + np.random.default_rng(0).normal(size=y.shape))
    for turned in BOTH.values():
        found = ranking.held_out(ranking.ranking_accuracy(turned(noisy), turned(y)), comparisons=100)
        assert found.adjusted_low > 0.5
        assert found.direction == -1
