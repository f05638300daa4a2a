"""Where the wall time of a run went: training, probes, compilation, host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from plastax.types import Record

MOST_TIMED = 16
"""The most sets of probes that are timed. More appear only if values stop being finite."""


class Times(NamedTuple):
    """Seconds of wall time of one method; they add up to all of it.

    Attributes:
      train: training in compiled calls.
      probe: probes and evaluations, see `ProbeCosts`.
      compile: waiting for compilation, or for the compilation cache.
      host: the rest, in which the device was idle: states read and written, sinks started and ended, the last record.
        Work of the host while the device computes counts as the device's.
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
    """Names of the probes that measured something at a segment's start (mark 0) or end (1)."""
    found = {name.partition("/")[0]: False for name in record.probe}
    for name, value in record.probe.items():
        probe = name.partition("/")[0]
        found[probe] = found[probe] or bool(np.isfinite(np.asarray(value)[:, mark]).any())
    return frozenset(name for name, there in found.items() if there)


class ProbeCosts:
    """The time of measurements inside compiled segments, which cannot be timed from outside.

    For every set of probes that are due together, one more call of the compiled program measures without training (see
    `Program.segment`) and is timed. Its time stands for all measurements of that set.
    """

    def __init__(self) -> None:
        self.timing = 0.0
        """Seconds that the additional calls took."""
        self._seconds: dict[frozenset[str], float] = {}

    def of(self, record: Record, look: Callable[[], None] | None) -> float:
        """Seconds that a segment's measurements took.

        Args:
          record: the segment's record.
          look: measures twice what was due in the segment's task, and waits for it. None: a set that was not timed
            before counts as 0.
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
