"""Means and intervals over seeds against hand computation and simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from plastax.report.compare import iqm
from plastax.report.statistics import bootstrap, jackknife, mean_interval, over_seeds


def test_coverage() -> None:
    # 4000 studies at once: normal seeds are covered as often as the interval says, at the numbers that people have.
    for seeds in (3, 4, 8, 16):
        rng = np.random.default_rng(seeds)
        values = rng.normal(3.0, 2.0, (4000, seeds, 2)) + rng.normal(0.0, 5.0, (4000, seeds, 1))
        plain = mean_interval(values.mean(axis=-1).T)
        assert np.mean((plain.low <= 3.0) & (plain.high >= 3.0)) == pytest.approx(0.95, abs=0.012)
        narrow = mean_interval(values.mean(axis=-1).T, confidence=0.5)
        assert np.mean((narrow.low <= 3.0) & (narrow.high >= 3.0)) == pytest.approx(0.5, abs=0.03)


def test_coverage_of_interquartile_means() -> None:
    """Seeds of two kinds, where the jackknife's standard error is too small: of 8 seeds it covers 83 %."""
    rng = np.random.default_rng(0)
    values = 4.0 * (rng.random((300, 8, 1)) > 1 / 3) + 0.5 * rng.normal(size=(300, 8, 5))
    truth = iqm(4.0 * (rng.random((100_000, 1)) > 1 / 3) + 0.5 * rng.normal(size=(100_000, 5)), np.ones(100_000))

    def covered(interval, **options) -> float:
        ends = np.array([interval(lambda w, one=one: iqm(one, w), 8, **options)[1:] for one in values])
        return np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))

    assert covered(bootstrap, student=True, resamples=299) > covered(jackknife) + 0.05
    assert covered(bootstrap, student=True, resamples=299) > 0.88


def test_t_intervals_are_scipys() -> None:
    a, b = np.random.default_rng(4).exponential(size=(2, 9, 3))
    ends = mean_interval(a)
    theirs = scipy.stats.ttest_1samp(a, 0.0).confidence_interval()
    np.testing.assert_allclose([ends.low, ends.high], theirs, rtol=1e-12)
    one, two = a.mean(axis=-1), b.mean(axis=-1)
    assert jackknife(weighted(one), 9)[1:] == pytest.approx(scipy.stats.ttest_1samp(one, 0.0).confidence_interval())
    paired = scipy.stats.ttest_rel(one, two).confidence_interval()
    assert jackknife(lambda w: weighted(one)(w) - weighted(two)(w), 9)[1:] == pytest.approx(paired)
    welch = scipy.stats.ttest_ind(one, two[:5], equal_var=False).confidence_interval()
    assert jackknife(lambda v, w: weighted(one)(v) - weighted(two[:5])(w), 9, 5)[1:] == pytest.approx(welch)
    # With the bootstrap's standard error too, up to the number of resamples.
    assert bootstrap(weighted(one), 9, student=True)[1:] == pytest.approx(jackknife(weighted(one), 9)[1:], rel=0.02)


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
    for interval in (jackknife, bootstrap):
        for sizes in ((seeds,), (seeds, 5)):
            value, *ends = interval(lambda *w: w[0].mean(axis=-1), *sizes)
            assert value == 1.0
            assert np.isnan(ends).all()


def weighted(values: np.ndarray):
    """The mean of values ``[S]`` as a statistic of weighted seeds."""
    return lambda weights: weights @ values / weights.sum(axis=-1)


def test_bootstrap_intervals_are_scipys() -> None:
    # Of 12 seeds hardly any resample has the mean itself; where one has, rounding decides what SciPy counts.
    a, b = np.random.default_rng(4).exponential(size=(2, 12))
    options = {"n_resamples": 1000, "vectorized": True}
    theirs = scipy.stats.bootstrap((a,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    assert bootstrap(weighted(a), 12, resamples=1000) == pytest.approx((a.mean(), *theirs))
    # Of two samples that are resampled apart, the first one is drawn first.
    options["rng"] = np.random.default_rng(0)
    both = (a, b[:9])
    apart = scipy.stats.bootstrap(both, lambda a, b, axis: a.mean(axis) - b.mean(axis), **options).confidence_interval
    mine = bootstrap(lambda v, w: weighted(a)(v) - weighted(b[:9])(w), 12, 9, resamples=1000)
    assert mine[1:] == pytest.approx(tuple(apart))


def test_where_all_resamples_lie_on_one_side_the_interval_is_of_percentiles() -> None:
    """The largest value of a sample: no resample exceeds it, so BCa has no bias to correct."""
    value, low, high = bootstrap(lambda w: np.where(w > 0, np.arange(4.0), -1.0).max(axis=-1), 4)
    assert (value, high) == (3.0, 3.0)
    assert 0.0 <= low < 3.0


def test_sums_keep_their_digits() -> None:
    interval = mean_interval(1e9 + np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert interval.high - interval.low == pytest.approx(2 * 2.776445 * np.sqrt(5.0 / 5), rel=1e-6)


def test_equal_seeds_have_an_interval_of_width_zero_and_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (np.full((5, 3), 0.1), np.zeros((3, 2))):
            interval = mean_interval(values)
            np.testing.assert_array_equal([interval.low, interval.high], [interval.mean, interval.mean])
        for interval in (jackknife, bootstrap):
            assert interval(weighted(np.full(5, 0.1)), 5) == pytest.approx((0.1, 0.1, 0.1), rel=1e-12)


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
    difference = over_seeds(a - b)
    assert float(difference["mean"]) == pytest.approx(1.025)
    assert int(difference["seeds"]) == 4
    ends = scipy.stats.ttest_1samp(own[:4], 0.0).confidence_interval()
    assert [float(difference["low"]), float(difference["high"])] == pytest.approx(list(ends))
    fewer = over_seeds(a - b.sel(seed=[1, 2]))
    assert float(fewer["mean"]) == pytest.approx(1.0)
