"""The benchmark of growth: its slopes are those of powers, and it measures what it says."""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np
import pytest

from experiments.bench import _reading, _records, growth


def test_the_slope_is_the_power_and_its_interval_holds_it() -> None:
    sizes = np.array([1e2, 1e3, 1e4, 1e5, 1e6])
    assert growth.slope(sizes, 3.0 * sizes**1.5) == pytest.approx((1.5, 1.5, 1.5))
    found = growth.slope(sizes, sizes**0.5 * np.array([1.1, 0.95, 1.0, 1.05, 0.9]))
    assert found.low < 0.5 < found.high
    assert found.low < found.value < found.high
    assert np.isnan(growth.slope(sizes[:2], sizes[:2])[1:]).all()


@pytest.mark.parametrize("parameters", [1_000, 100_000, 10_000_000])
def test_networks_have_about_as_many_parameters_as_asked(parameters: int) -> None:
    hidden = growth.width(parameters)
    widths = (growth.INPUTS, hidden, hidden, growth.CLASSES)
    assert sum((a + 1) * b for a, b in itertools.pairwise(widths)) == pytest.approx(parameters, rel=0.05)


def test_bars_are_about_the_largest_run_alone() -> None:
    series = [growth.Series(name, "", (growth.Point(1, 1, 1e9), growth.Point(2, 1e9, 1e9))) for name in growth.LIMITS]
    assert growth.bars(series, (34, 20, 199)) == []
    assert [bar.ok for bar in growth.bars(series, (34, 20, 200))] == [False, True] * 3


def test_a_toy_size_is_measured(tmp_path: pathlib.Path) -> None:
    done = growth.main(growth.Config(parts=("step",), quick=True, out=tmp_path / "numbers.json"))
    assert [(one.what, one.against, len(one.points)) for one in done] == [("step", "parameters", 3)]
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert min(row["seconds"]) > 0
    # Factors and parameters grow with the parameters.
    assert list(row["bytes"]) == sorted(set(row["bytes"]))


@pytest.mark.slow
def test_everything_is_measured_at_a_toy_size() -> None:
    done = growth.main(growth.Config(quick=True))
    assert [one.what for one in done] == [*growth.OF, *_reading.READINGS]
    assert all(point.seconds > 0 and point.bytes > 0 for one in done for point in one.points)


@pytest.mark.slow
def test_records_are_those_of_a_run_that_ended(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    written = _records.write(run, 2, 3, 2, "smoke")
    assert written == sum(path.stat().st_size for path in run.glob("records/*/*.npz"))
    taken = _reading.read("load", run, tmp_path / "page.html")
    assert set(taken) == {"wall_s", "cpu_s", "peak_bytes", "page_bytes"}
