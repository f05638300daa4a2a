"""Sinks show the numbers of a running study: Weights & Biases, TensorBoard and the terminal, by one small protocol.

A sink gets each segment of the record, reduced to one value for each seed (`reduce_segment`). The records are the
result: a sink may fail or hang without consequences (`Guarded`, `Background`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from plastax.tracking import service
from plastax.tracking.base import Histogram, Metric, Sink, reduce_segment
from plastax.tracking.console import ConsoleSink, Lines
from plastax.tracking.events import TensorBoardSink
from plastax.tracking.export import publish, replay
from plastax.tracking.guard import Background, Guarded, within
from plastax.tracking.online import WandbSink, upload_command
from plastax.tracking.options import Mode, Tracker, Wandb, check, usual_mode

if TYPE_CHECKING:
    import rich.console

    from plastax.records.layout import PathLike

__all__ = [
    "Background", "ConsoleSink", "Guarded", "Histogram", "Lines", "Metric", "Mode", "Sink", "TensorBoardSink",
    "Tracker", "Wandb", "WandbSink", "check", "commands", "publish", "publish_safely", "reduce_segment", "replay",
    "sinks", "upload_command", "usual_mode",
]  # fmt: skip


def sinks(mode: Mode, track: Collection[Tracker], console: rich.console.Console | Lines | None = None) -> list[Sink]:
    """The sinks of an experiment: the terminal, and in the background those that ``track`` names.

    Args:
      mode: of W&B.
      track: names of trackers.
      console: see `ConsoleSink`; with `Lines`, several lists show their lines together.
    """
    found: list[Sink] = [Guarded(ConsoleSink(console))]
    if "wandb" in track:
        found.append(Background(WandbSink(mode), give_up=_give_up(mode)))
    if "tensorboard" in track:
        found.append(Background(TensorBoardSink()))
    return found


def commands(track: Collection[str], directory: PathLike) -> list[str]:
    """Lines with the commands that show a run directory elsewhere: in W&B after an upload, and in TensorBoard."""
    upload = upload_command(directory)
    lines = [f"Upload to W&B: {upload}"] if upload else []
    show = f"Show in TensorBoard: tensorboard --logdir {shlex.quote(str(directory))}"
    return [*lines, show] if "tensorboard" in track else lines


def publish_safely(directory: PathLike, mode: Mode, patience: float = 120.0) -> bool:
    """`publish`; a failure, or more than ``patience`` seconds, only leaves a warning in the log."""
    what = "the upload of record and report to W&B"
    return within(patience, what, lambda: publish(directory, mode), _give_up(mode))


def _give_up(mode: Mode) -> Callable[[bool], None]:
    """Online, W&B may be slow without hanging: its service may work until after the end of the process."""
    return lambda hung: service.give_up(hung and mode == "offline")
