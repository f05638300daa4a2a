"""Means and intervals over seeds against hand computation and simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from plastax.report.compare import STATISTICS
from plastax.report.statistics import jackknife, mean_interval, over_seeds, paired_difference, resample, reweigh


def test_coverage() -> None:
    # 4000 studies at once: normal seeds are covered as often as the interval says, at the numbers that people have.
    for seeds in (3, 4, 8, 16):
        rng = np.random.default_rng(seeds)
        values = rng.normal(3.0, 2.0, (4000, seeds, 2)) + rng.normal(0.0, 5.0, (4000, seeds, 1))
        plain = mean_interval(values.mean(axis=-1).T)
        assert np.mean((plain.low <= 3.0) & (plain.high >= 3.0)) == pytest.approx(0.95, abs=0.012)
        narrow = mean_interval(values.mean(axis=-1).T, confidence=0.5)
        assert np.mean((narrow.low <= 3.0) & (narrow.high >= 3.0)) == pytest.approx(0.5, abs=0.03)
        _, low, high = jackknife(lambda a, b: sampled(a) - sampled(b), values, values[:, ::-1], paired=False)
        assert np.mean((low <= 0.0) & (high >= 0.0)) > 0.94
    # The interquartile mean of eight seeds, with its own standard error.
    _, low, high = jackknife(STATISTICS["iqm"], np.random.default_rng(0).normal(3.0, 2.0, (4000, 8, 2)))
    assert 0.91 < np.mean((low <= 3.0) & (high >= 3.0)) < 0.97


def test_t_intervals_are_scipys() -> None:
    a, b = np.random.default_rng(4).exponential(size=(2, 9, 3))
    ends = mean_interval(a)
    theirs = scipy.stats.ttest_1samp(a, 0.0).confidence_interval()
    np.testing.assert_allclose([ends.low, ends.high], theirs, rtol=1e-12)
    one, two = a.mean(axis=-1), b.mean(axis=-1)
    assert jackknife(sampled, a)[1:] == pytest.approx(tuple(scipy.stats.ttest_1samp(one, 0.0).confidence_interval()))

    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return sampled(a) - sampled(b)

    paired = scipy.stats.ttest_rel(one, two).confidence_interval()
    assert jackknife(difference, a, b)[1:] == pytest.approx(tuple(paired))
    welch = scipy.stats.ttest_ind(one, two[:5], equal_var=False).confidence_interval()
    assert jackknife(difference, a, b[:5], paired=False)[1:] == pytest.approx(tuple(welch))


def test_missing_seeds_are_left_out() -> None:
    nan = np.nan
    values = np.array([[1.0, 1.0, nan, nan], [2.0, nan, nan, 5.0], [6.0, 3.0, nan, nan], [7.0, 5.0, nan, nan]])
    interval = mean_interval(values)
    np.testing.assert_allclose(interval.mean, [4.0, 3.0, nan, 5.0])
    np.testing.assert_array_equal(interval.seeds, [4, 3, 0, 1])
    np.testing.assert_array_equal(np.isfinite(interval.low), [True, True, False, False])
    np.testing.assert_array_equal(np.isfinite(interval.high), [True, True, False, False])
    # Columns do not disturb one another, whichever seeds the others lack.
    alone = mean_interval(values[[0, 2, 3], 1])
    assert (interval.low[1], interval.high[1]) == pytest.approx((float(alone.low), float(alone.high)))


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_have_no_interval(seeds: int) -> None:
    values = np.arange(2.0 * seeds).reshape(seeds, 2)
    interval = mean_interval(values)
    np.testing.assert_array_equal(interval.mean, values.mean(0))
    assert np.isnan([interval.low, interval.high]).all()
    for paired in (True, False):
        value, *ends = resample(lambda a, b: (a - b).mean(axis=(-2, -1)), values, values - 1, paired=paired)
        assert value == 1.0
        assert np.isnan(ends).all()
        assert np.isnan(jackknife(lambda a, b: (a - b).mean(axis=(-2, -1)), values, values, paired=paired)[1:]).all()
    assert np.isnan(reweigh(lambda weights: weights.sum(axis=-1), seeds)[1:]).all()


def sampled(values: np.ndarray) -> np.ndarray:
    """Means of all seeds and tasks, ``[..., S, T]``."""
    return values.mean(axis=(-2, -1))


def test_bootstrap_intervals_are_scipys() -> None:
    # Of 12 seeds hardly any resample has the mean itself; where one has, rounding decides what SciPy counts.
    a, b = np.random.default_rng(4).exponential(size=(2, 12))
    options = {"n_resamples": 1000, "vectorized": True}
    theirs = scipy.stats.bootstrap((a,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    expected = pytest.approx((a.mean(), *theirs))
    assert resample(sampled, a[:, None], resamples=1000) == expected
    assert reweigh(lambda w: w @ a / w.sum(axis=-1), 12, resamples=1000) == expected
    # Of two samples that are resampled apart, the first one is drawn first.
    options["rng"] = np.random.default_rng(0)
    both = (a, b[:9])
    apart = scipy.stats.bootstrap(both, lambda a, b, axis: a.mean(axis) - b.mean(axis), **options).confidence_interval
    mine = resample(lambda a, b: sampled(a) - sampled(b), *(x[:, None] for x in both), paired=False, resamples=1000)
    assert mine[1:] == pytest.approx(tuple(apart))


def test_sums_keep_their_digits() -> None:
    interval = mean_interval(1e9 + np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert interval.high - interval.low == pytest.approx(2 * 2.776445 * np.sqrt(5.0 / 5), rel=1e-6)


def test_equal_seeds_have_an_interval_of_width_zero_and_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (np.full((5, 3), 0.1), np.zeros((3, 2))):
            interval = mean_interval(values)
            np.testing.assert_array_equal([interval.low, interval.high], [interval.mean, interval.mean])
        assert jackknife(sampled, np.full((5, 3), 0.1)) == pytest.approx((0.1, 0.1, 0.1), rel=1e-12)
        assert resample(sampled, np.full((5, 3), 0.1)) == pytest.approx((0.1, 0.1, 0.1), rel=1e-15)


def test_the_same_numbers_every_time() -> None:
    values = np.random.default_rng(3).normal(size=(6, 4))
    np.testing.assert_array_equal(mean_interval(values), mean_interval(values))


def test_labels_are_kept() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    data = xr.DataArray(values, dims=("arm", "seed", "task"), coords={"arm": ["a", "b"], "seed": [5, 6, 7]})
    interval = over_seeds(data)
    assert interval["mean"].dims == ("arm", "task")
    np.testing.assert_array_equal(interval["mean"].sel({"arm": "b"}), values[1].mean(0))
    assert "seed" not in interval.coords


def test_paired_difference_is_over_common_seeds_and_removes_what_seeds_share() -> None:
    shared = np.array([0.0, 100.0, -50.0, 30.0, 8.0])
    own = np.array([1.0, 1.2, 0.8, 1.1, np.nan])
    a = xr.DataArray(shared + own, dims="seed", coords={"seed": np.arange(5)})
    b = xr.DataArray(shared[::-1], dims="seed", coords={"seed": np.arange(5)[::-1]})
    difference = paired_difference(a, b)
    assert float(difference["mean"]) == pytest.approx(1.025)
    assert int(difference["seeds"]) == 4
    ends = scipy.stats.ttest_1samp(own[:4], 0.0).confidence_interval()
    assert [float(difference["low"]), float(difference["high"])] == pytest.approx(list(ends))
    fewer = paired_difference(a, b.sel(seed=[1, 2]))
    assert float(fewer["mean"]) == pytest.approx(1.0)
