"""Means and intervals over seeds against hand computation and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr

from plastax.report.statistics import mean_interval, over_seeds, paired_difference


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
    values = np.array([[1.0, 1.0, np.nan, np.nan], [2.0, np.nan, np.nan, 5.0], [6.0, 3.0, np.nan, np.nan]])
    interval = mean_interval(values)
    np.testing.assert_allclose(interval.mean, [3.0, 2.0, np.nan, 5.0])
    np.testing.assert_array_equal(interval.seeds, [3, 2, 0, 1])
    np.testing.assert_array_equal(np.isfinite(interval.low), [True, True, False, False])
    np.testing.assert_array_equal(np.isfinite(interval.high), [True, True, False, False])
    # Columns do not disturb one another, whichever seeds the others lack.
    alone = mean_interval(values[[0, 2], 1])
    assert (interval.low[1], interval.high[1]) == (float(alone.low), float(alone.high))


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(interval.mean, [1.0, 2.0])
    assert np.isnan([interval.low, interval.high]).all()


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
