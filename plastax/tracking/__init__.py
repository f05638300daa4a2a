"""Sinks show the numbers of a running study: Weights & Biases and the terminal, by one small protocol.

A sink gets each segment of the record, reduced to one value for each seed (`reduce_segment`). The records are the
result: a sink may fail or hang without consequences (`Guarded`, `Background`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from plastax.tracking import service
from plastax.tracking.base import Histogram, Metric, Sink, reduce_segment
from plastax.tracking.console import ConsoleSink
from plastax.tracking.guard import Background, Guarded, within
from plastax.tracking.online import Mode, WandbSink, publish, replay, upload_command

if TYPE_CHECKING:
    import rich.console

    from plastax.records.layout import PathLike

__all__ = [
    "Background", "ConsoleSink", "Guarded", "Histogram", "Metric", "Mode", "Sink", "WandbSink", "publish",
    "publish_safely", "reduce_segment", "replay", "sinks", "upload_command",
]  # fmt: skip


def sinks(mode: Mode, console: rich.console.Console | None = None) -> list[Sink]:
    """The sinks of every experiment: the terminal, and W&B in the background."""
    return [Guarded(ConsoleSink(console)), Background(WandbSink(mode), give_up=_give_up(mode))]


def publish_safely(directory: PathLike, mode: Mode, patience: float = 120.0) -> bool:
    """`publish`; a failure, or more than ``patience`` seconds, only leaves a warning in the log."""
    what = "the upload of record and report to W&B"
    return within(patience, what, lambda: publish(directory, mode), _give_up(mode))


def _give_up(mode: Mode) -> Callable[[bool], None]:
    """Online, W&B may be slow without hanging: its service may work until after the end of the process."""
    return lambda hung: service.give_up(hung and mode == "offline")
