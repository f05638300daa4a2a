"""Where numbers go while a run goes on: Weights & Biases and the terminal, behind one small protocol.

A sink sees what the record sees, reduced to one value a task and seed (`reduce_segment`). Records are the result;
a sink may fail or hang without consequences (`Guarded`, `Background`).
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
    "Background",
    "ConsoleSink",
    "Guarded",
    "Histogram",
    "Metric",
    "Mode",
    "Sink",
    "WandbSink",
    "publish",
    "publish_safely",
    "reduce_segment",
    "replay",
    "sinks",
    "upload_command",
]


def sinks(mode: Mode, console: rich.console.Console | None = None) -> list[Sink]:
    """What every experiment shows itself by: the terminal, and W&B in the background."""
    return [Guarded(ConsoleSink(console)), Background(WandbSink(mode), give_up=_give_up(mode))]


def publish_safely(directory: PathLike, mode: Mode, patience: float = 120.0) -> bool:
    """`publish`, which may fail or take longer than ``patience`` seconds: that is said in the log, and no more."""
    what = "the upload of record and report to W&B"
    return within(patience, what, lambda: publish(directory, mode), _give_up(mode))


def _give_up(mode: Mode) -> Callable[[bool], None]:
    """Online, W&B may be slow and not hang: its service has time until the end of the process, and some more."""
    return lambda hung: service.give_up(hung and mode == "offline")
