"""Where the time went: what probes cost, and times that add up."""

from __future__ import annotations

import numpy as np
import pytest

from plastax.runs import timing
from plastax.runs.timing import ProbeCosts, Times, measured
from plastax.types import Record

NAN = float("nan")


def record(**marks: tuple[float, float]) -> Record:
    """Two seeds; of each probe a value that was measured and one that never is."""
    probe = {f"{name}/value": np.array([values, values]) for name, values in marks.items()}
    probe |= {f"{name}/missing": np.full((2, 2, 3), NAN) for name in marks}
    return Record({}, probe)


def test_a_probe_was_measured_if_any_of_its_values_was() -> None:
    seen = record(evaluation=(1.0, 2.0), hessian=(NAN, 1.0))
    assert measured(seen, 0) == {"evaluation"}
    assert measured(seen, 1) == {"evaluation", "hessian"}


def test_every_set_of_probes_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    costs = ProbeCosts()

    def look_for(seconds: float):
        def look() -> None:
            calls.append(seconds)
            now[0] += seconds

        return look

    assert costs.of(record(evaluation=(1.0, 1.0)), None) == 0.0
    both, one = record(evaluation=(1.0, 1.0), hessian=(1.0, 1.0)), record(evaluation=(1.0, 1.0), hessian=(NAN, NAN))
    # A call measures twice, and so does a segment with both ends of its task.
    assert costs.of(both, look_for(8.0)) == 8.0
    assert costs.of(one, look_for(2.0)) == 2.0
    assert costs.of(both, look_for(99.0)) == 8.0
    assert costs.of(record(evaluation=(1.0, NAN), hessian=(NAN, NAN)), look_for(99.0)) == 1.0
    assert costs.of(record(evaluation=(NAN, NAN), hessian=(NAN, NAN)), look_for(99.0)) == 0.0
    assert (calls, costs.timing) == ([8.0, 2.0], 10.0)


def test_times_add_up() -> None:
    assert str(Times(6.0, 1.5, 2.0, 0.5)) == (
        "training 6.0 s (60%), probes and evaluation 1.5 s (15%), compilation 2.0 s (20%), host 0.5 s (5%)"
    )
