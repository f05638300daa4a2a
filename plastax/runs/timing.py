"""Where the wall time of a run went: training, probes, compilation, or the host alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from plastax.types import Record

MOST_TIMED = 16
"""Sets of probes that are timed; more appear only where values stop being finite."""


class Times(NamedTuple):
    """Seconds of wall time of one method, which add up to all of it.

    Attributes:
      train: in compiled calls, without the probes'.
      probe: probes and evaluations, see `ProbeCosts`.
      compile: compiling, or reading what was compiled before.
      host: the rest, in which the device had nothing to do: reading and writing states, starting and ending sinks, the
        last record. What the host does while the device computes is in none.
    """

    train: float
    probe: float
    compile: float
    host: float

    def __str__(self) -> str:
        total = sum(self)
        parts = zip(("training", "probes and evaluation", "compilation", "host"), self, strict=True)
        return ", ".join(f"{name} {value:.1f} s ({value / total:.0%})" for name, value in parts)


def measured(record: Record, mark: int) -> frozenset[str]:
    """Names of the probes of which there is anything at a segment's start (0) or end (1)."""
    found = {name.partition("/")[0]: False for name in record.probe}
    for name, value in record.probe.items():
        probe = name.partition("/")[0]
        found[probe] = found[probe] or bool(np.isfinite(np.asarray(value)[:, mark]).any())
    return frozenset(name for name, there in found.items() if there)


class ProbeCosts:
    """What measurements cost inside compiled segments, which do not say.

    For every set of probes that are due together, the compiled program is run once more without training (see
    `Program.segment`) and timed; its two measurements stand for all others of that set. One call more for every set is
    what this costs.
    """

    def __init__(self) -> None:
        self.timing = 0.0
        """Seconds that these calls took."""
        self._seconds: dict[frozenset[str], float] = {}

    def of(self, record: Record, look: Callable[[], None] | None) -> float:
        """Seconds that a segment's measurements took.

        Args:
          record: what it recorded.
          look: measures twice what was due in the segment's task, and waits for it; None: there is no time for that,
            and a set that was never timed counts as nothing.
        """
        total = 0.0
        for mark in range(2):
            probes = measured(record, mark)
            if look and probes and probes not in self._seconds and len(self._seconds) < MOST_TIMED:
                started = time.perf_counter()
                look()
                seconds = time.perf_counter() - started
                self.timing += seconds
                self._seconds[probes] = seconds / 2
            total += self._seconds.get(probes, 0.0)
        return total
