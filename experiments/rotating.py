"""Rotating images: a gradual shift from task to task, as fast as asked.

    make run EXP=rotating
    make run EXP=rotating ARGS="--data fashion_mnist --stream.severity 45"

Leaves its run in <runs-dir>/rotating/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.program.training import Training
from plastax.streams import Rotating
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Rotating images: online accuracy while all images turn by some degrees a task."""

    stream: Rotating = Rotating(examples=1000)
    """The images."""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "l2", "reset"),
    "probes": ("features", "weights"),
    "seeds": 4,
    "tasks": 36,
    "training": Training("adam", learning_rate=1e-3, batch_size=10, epochs=2),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "stream.examples": 200,
              "model_settings.hidden": (32,)},
    "default": {"model_settings.hidden": (100, 100)},
    # A right angle at a time: the same four tasks again and again, far apart.
    "abrupt": {"stream.severity": 90.0, "model_settings.hidden": (100, 100)},
}  # fmt: skip

EXPERIMENT = supervised.experiment("rotating", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
