"""Error bars against what they claim: two standard errors cover 90 to 99.5 % of independent estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.bench import coverage

RESOLVED = 0.01
"""Thresholds from this share of the largest eigenvalue on lie beyond the nodes next to zero: there the probes' error
dominates, and coverage is that of a normal distribution. Below, the standard error is a bound."""


def pooled(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["within_2"] for row in rows]))


def check(rows: list[dict[str, Any]], least: float) -> None:
    """Every cell by itself, and the estimated counts of one network together."""
    ranks = [row for row in rows if row["what"].startswith("rank")]
    for row in rows:
        assert row["within_2"] >= least, row
    # Exact is exact, in every repetition.
    certain = [row for row in ranks if row["counted"] == 1]
    assert certain
    for row in certain:
        assert row["within_2"] == 1, row
        np.testing.assert_allclose([row["mean"], row["sd"]], [row["exact"], 0.0], atol=1e-3)
    estimated = [row for row in ranks if row["counted"] == 0 and float(row["what"].split()[1]) >= RESOLVED]
    assert estimated
    # With few eigenvalues they are wider than a normal distribution's 95 %: their own variance is estimated.
    assert 0.90 <= pooled(estimated) <= 0.995, pooled(estimated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "overtrained", "dead"])
def test_error_bars_whatever_the_order_and_the_probes(name: str) -> None:
    config = coverage.Config(probes=(1, 2, 4), repetitions=250)
    rows = coverage.measure(config, name)
    for order in config.orders:
        # Binomial noise of 250 repetitions is 1.4 %.
        check([row for row in rows if row["order"] == order], least=0.86)
