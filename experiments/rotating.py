"""Rotating images: a gradual shift from task to task, as fast as asked.

    make run EXP=rotating
    make run EXP=rotating ARGS="--data fashion_mnist --stream.severity 45"

Leaves its run in <runs-dir>/rotating/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments import _supervised as supervised
from plastax import settings
from plastax.streams import Rotating
from plastax.training import Training


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Rotating images: online accuracy while all images turn by some degrees a task."""

    methods: settings.Methods = ("backprop", "l2", "reset")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    seeds: int = 4
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    tasks: int = 36
    """Tasks in the stream."""
    stream: Rotating = field(default_factory=lambda: Rotating(examples=1000))
    """The images."""
    training: Training = field(default_factory=lambda: Training("adam", learning_rate=1e-3, batch_size=10, epochs=2))
    """Optimiser, batches, epochs."""


# What each preset changes in the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "stream.examples": 200,
              "model_settings.hidden": (32,)},
    "default": {"model_settings.hidden": (100, 100)},
    # A right angle at a time: the same four tasks again and again, far apart.
    "abrupt": {"stream.severity": 90.0, "model_settings.hidden": (100, 100)},
}  # fmt: skip


if __name__ == "__main__":
    settings.main(lambda: supervised.main(Config, PRESETS, "rotating"))
