"""TensorBoard: event files in the run directory, written by the package ``tensorboard`` alone, without TensorFlow."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plastax.records.files import PathLike
from plastax.records.layout import arm_folder
from plastax.tracking import dashboard
from plastax.tracking.base import Histogram, Metric, rows

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoardSink:
    """TensorBoard: one folder of event files for each arm, ``<run dir>/tensorboard/<arm>``.

    ``tensorboard --logdir runs`` shows them. ``train/<name>`` are curves over the environment steps or examples that
    each network has seen; all else is over tasks. Every number is the mean over the seeds that have a value. It gets
    what a W&B workspace shows, see `dashboard.shown`. A resumed run adds a file to the folder.
    """

    def __init__(self) -> None:
        self._writer: EventFileWriter | None = None
        self._config: Mapping[str, Any] = {}

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Opens the event file of an arm. See `Sink.start`."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._config = config
        self._writer = EventFileWriter(str(pathlib.Path(directory) / "tensorboard" / arm_folder(config, method)))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Writes the curves point by point, then what is shown over tasks. See `Sink.log`."""
        if self._writer is None:
            return
        for row in rows(metrics, self._config):
            self._add(row.values, row.global_step)
        self._add({name: value for name, value in metrics.items() if not name.startswith("train/")}, step)
        self._writer.flush()

    def _add(self, metrics: Mapping[str, Metric], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        assert self._writer is not None
        values = []
        for name, value in metrics.items():
            if not dashboard.shown(name):
                continue
            if isinstance(value, Histogram):
                values.append(Summary.Value(tag=name, histo=_histogram(value)))
            elif np.isfinite(value).any():
                values.append(Summary.Value(tag=name, simple_value=float(np.nanmean(value))))
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def finish(self) -> None:
        """Closes the event file. See `Sink.finish`."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def fork(self) -> TensorBoardSink:
        """See `Sink.fork`."""
        return TensorBoardSink()


def _histogram(value: Histogram) -> HistogramProto:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    counts, edges = value.counts, value.edges
    middles = (edges[1:] + edges[:-1]) / 2
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * middles).sum(),
        sum_squares=(counts * middles**2).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
