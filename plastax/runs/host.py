"""What the host does with a segment that the device has computed: records, checkpoint, sinks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plastax import locks
from plastax.errors import RunError
from plastax.program.parallel import Batch
from plastax.records import files, layout, lifecycle
from plastax.records.layout import Segment
from plastax.runs import networks
from plastax.runs.checkpoint import Checkpoints
from plastax.runs.compiled import Ran
from plastax.runs.networks import Keeping
from plastax.runs.plan import Plan
from plastax.tracking import Sink, reduce_segment


@dataclasses.dataclass(frozen=True)
class Ended:
    """A segment that the device has computed.

    Attributes:
      index: its number.
      ran: what it left.
      leaves: the state after it, if it is to be saved.
      trained: the part of the state that `networks` keeps, if it is wanted.
      counts: more scalars for its record.
    """

    index: int
    ran: Ran
    leaves: Mapping[str, np.ndarray] | None
    trained: Mapping[str, np.ndarray]
    counts: Mapping[str, float]


class Host:
    """Writes the records, checkpoint and sinks of segments; see `loop.train` for the arguments."""

    def __init__(
        self, directory: Path, config: Mapping[str, Any], batch: Batch, plan: Plan, sinks: Sequence[Sink],
        checkpoints: Checkpoints | None, first: int, lock: locks.Lock | None, ending: contextlib.ExitStack,
        keeping: Keeping,
    ) -> None:  # fmt: skip
        self.directory, self.config, self.batch, self.plan = directory, config, batch, plan
        self.checkpoints, self.first, self.lock, self.keeping = checkpoints, first, lock, keeping
        self.folders = {arm: layout.records_folder(directory, config, arm) for arm in batch.arms}
        for folder in self.folders.values():
            files.remove_unfinished(folder)
        # A sink for every arm.
        self.watching = [(arm, sink if len(batch.arms) == 1 else sink.fork()) for sink in sinks for arm in batch.arms]
        for arm, sink in self.watching:
            sink.start(config, directory, arm)
            ending.callback(sink.finish)

    def finish(self, ended: Ended) -> None:
        """Writes a segment's records, then its checkpoint, so that a checkpoint always has all records before it."""
        if self.lock and self.lock.lost:
            raise RunError(lifecycle.moved(self.directory))
        plan, arms = self.plan, self.batch.arms
        clock = ended.index * plan.updates_per_segment
        host: dict[str, float] = {
            "clock": clock,
            "length": plan.updates_per_segment,
            "task": (task := clock // plan.updates_per_task),
            # Arms run at once; each gets an equal part.
            "train_seconds": (ended.ran.training + ended.ran.measuring) / len(arms),
            "probe_seconds": ended.ran.measuring / len(arms),
            "env_steps": plan.steps_per_update * plan.updates_per_segment,
            **ended.counts,
        }
        parts = self.batch.split(ended.ran.record)
        newest = self.checkpoints.newest if self.checkpoints else self.first
        for arm, folder in self.folders.items():
            seal = layout.owner(self.config, arm) | {"checkpoint": newest}
            layout.write_segment(folder, ended.index, parts[arm], host, seal)
        # Before the checkpoint: what is after it is never repeated.
        if ended.trained:
            self.keeping.take(self.directory, self.config, task, self.batch.split(networks.of_state(ended.trained)))
        if self.checkpoints and ended.leaves is not None:
            self.checkpoints.save(ended.index + 1, dict(ended.leaves))
        metrics = {
            arm: reduce_segment(Segment(part.train, part.probe, host), self.config, arm) for arm, part in parts.items()
        }
        for arm, sink in self.watching:
            sink.log(metrics[arm], task)
