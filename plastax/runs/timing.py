"""Where the wall time of a run went: training, probes, compilation, host."""

from __future__ import annotations

from typing import NamedTuple


class Times(NamedTuple):
    """Seconds of wall time of one method; they add up to all of it.

    Attributes:
      train: training in compiled calls.
      probe: probes and evaluations.
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
