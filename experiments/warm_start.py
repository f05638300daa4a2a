"""Warm start: a part of the data first, then all of it. Does the network generalise as well as one that starts anew?

    make run EXP=warm_start
    make run EXP=warm_start ARGS="--data fashion_mnist --stream.examples 2000 --model cnn"

Compare the final test accuracy of the second task to that of `reset`, which starts with all images. Leaves its run in
<runs-dir>/warm_start/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments import _supervised as supervised
from plastax import settings
from plastax.streams import WarmStart
from plastax.training import Training


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Warm start: held-out accuracy after all data, having begun with a part of it."""

    methods: settings.Methods = ("backprop", "shrink_and_perturb", "reset")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    seeds: int = 10
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    tasks: int = 2
    """Tasks in the stream: a part of the data, all of it, and all of it again in further ones."""
    stream: WarmStart = field(default_factory=lambda: WarmStart(examples=400))
    """The images."""
    training: Training = field(
        default_factory=lambda: Training("adam", learning_rate=1e-3, batch_size=20, epochs=100, updates=10)
    )
    """Optimiser, batches, epochs."""


# What each preset changes in the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "stream.examples": 100, "training.epochs": 10,
              "model_settings.hidden": (32,)},
    "default": {"model_settings.hidden": (100, 100)},
}  # fmt: skip


if __name__ == "__main__":
    settings.main(lambda: supervised.main(Config, PRESETS, "warm_start"))
