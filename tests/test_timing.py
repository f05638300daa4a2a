"""Where the time went: times that add up."""

from __future__ import annotations

from plastax.runs.timing import Times


def test_times_add_up() -> None:
    assert str(Times(6.0, 1.5, 2.0, 0.5)) == (
        "training 6.0 s (60%), probes and evaluation 1.5 s (15%), compilation 2.0 s (20%), host 0.5 s (5%)"
    )
