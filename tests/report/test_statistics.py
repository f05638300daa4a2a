"""Means and intervals over seeds against hand computation and simulation."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from plastax.report.statistics import mean_interval, over_seeds, paired_difference, resample, reweigh


def test_percentile_interval_by_hand_when_bca_is_degenerate() -> None:
    # All seeds equal: BCa divides zero by zero, and every resample has the same mean.
    interval = mean_interval(np.full((5, 2), 3.0))
    np.testing.assert_array_equal([interval.mean, interval.low, interval.high], np.full((3, 2), 3.0))


def test_interval_by_enumeration() -> None:
    # All 5^5 resamples of symmetric values, for which BCa and percentile intervals are the same.
    values = np.arange(5.0)
    means = np.mean(list(itertools.product(values, repeat=5)), axis=1)
    interval = mean_interval(values)
    assert interval.mean == 2.0
    # Resample means are multiples of 0.2; the ends may fall on either of two.
    assert [interval.low, interval.high] == pytest.approx(list(np.quantile(means, [0.025, 0.975])), abs=0.2001)


def test_interval_is_bca_where_values_are_skewed() -> None:
    interval = mean_interval(np.random.default_rng(1).exponential(size=12))
    assert interval.high - interval.mean > 1.4 * (interval.mean - interval.low)


def test_coverage() -> None:
    # 2000 studies of 20 seeds at once, normal around 3: about 93 % of intervals hold the mean.
    values = np.random.default_rng(0).normal(3.0, 2.0, (20, 2000))
    interval = mean_interval(values, resamples=999)
    inside = np.mean((interval.low <= 3.0) & (interval.high >= 3.0))
    assert 0.90 < inside < 0.96
    narrow = mean_interval(values, confidence=0.5, resamples=999)
    assert 0.45 < np.mean((narrow.low <= 3.0) & (narrow.high >= 3.0)) < 0.55


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
    assert np.isnan(reweigh(lambda weights: weights.sum(axis=-1), seeds)[1:]).all()


def sampled(values: np.ndarray) -> np.ndarray:
    """Means of all seeds and tasks, ``[..., S, T]``."""
    return values.mean(axis=(-2, -1))


def test_intervals_are_scipys() -> None:
    # Of 12 seeds hardly any resample has the mean itself; where one has, rounding decides what SciPy counts.
    values = np.random.default_rng(4).exponential(size=(12, 40))
    ends = mean_interval(values, resamples=1000)
    options = {"n_resamples": 1000, "vectorized": True, "rng": np.random.default_rng(0)}
    theirs = scipy.stats.bootstrap((values,), np.mean, axis=0, batch=100, **options).confidence_interval
    np.testing.assert_allclose([ends.low, ends.high], [theirs.low, theirs.high], rtol=1e-12)
    # The other two ways to the same interval.
    one = values[:, :1]
    expected = pytest.approx((values[:, 0].mean(), ends.low[0], ends.high[0]))
    assert resample(sampled, one, resamples=1000) == expected
    assert reweigh(lambda w: w @ values[:, 0] / w.sum(axis=-1), 12, resamples=1000) == expected
    # Of two samples that are resampled apart, the first one is drawn first.
    a, b = values[:, 0], values[:9, 1]
    options["rng"] = np.random.default_rng(0)
    apart = scipy.stats.bootstrap((a, b), lambda a, b, axis: a.mean(axis) - b.mean(axis), **options).confidence_interval
    mine = resample(lambda a, b: sampled(a) - sampled(b), a[:, None], b[:, None], paired=False, resamples=1000)
    assert mine[1:] == pytest.approx(tuple(apart))


def test_equal_resamples_count_half_whatever_the_order_of_the_sum() -> None:
    # Symmetric values: the interval is symmetric too. Sums in another order differ in their last bits.
    for shift in (0.0, 0.1, 1e6):
        interval = mean_interval(shift + np.array([-0.3, -0.1, 0.0, 0.1, 0.3]) * 7)
        assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low, rel=0.1)


def test_equal_seeds_have_an_interval_of_width_zero_and_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (np.full((5, 3), 0.1), np.zeros((3, 2))):
            interval = mean_interval(values)
            np.testing.assert_array_equal([interval.low, interval.high], [interval.mean, interval.mean])
        assert resample(sampled, np.full((5, 3), 0.1)) == pytest.approx((0.1, 0.1, 0.1), rel=1e-15)


def test_memory_does_not_grow_with_the_cells() -> None:
    values = np.random.default_rng(0).normal(size=(4, 10_000))
    tracemalloc.start()
    interval = mean_interval(values, resamples=999)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All resamples of all cells take 80 MB.
    assert peak < 60e6
    part = mean_interval(values[:, -7:], resamples=999)
    np.testing.assert_allclose([interval.low[-7:], interval.high[-7:]], [part.low, part.high], rtol=1e-12)


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
    assert 0.8 <= float(difference["low"]) < 1.025 < float(difference["high"]) <= 1.2
    fewer = paired_difference(a, b.sel(seed=[1, 2]))
    assert float(fewer["mean"]) == pytest.approx(1.0)
