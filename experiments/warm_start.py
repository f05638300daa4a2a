"""Warm start: a part of the data first, then all of it. Does the network generalise as well as a fresh one?

    make run EXP=warm_start
    make run EXP=warm_start ARGS="--data fashion_mnist --stream.examples 2000 --model cnn"

Compare the final test accuracy of the second task to that of `reset`, which starts with all images. Leaves its run in
<runs-dir>/warm_start/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.program.training import Training
from plastax.streams import WarmStart
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Warm start: held-out accuracy after all data, having begun with a part of it."""

    stream: WarmStart = WarmStart(examples=400)
    """The images."""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "shrink_and_perturb", "reset"),
    "probes": ("features", "weights"),
    "seeds": 10,
    "tasks": 2,
    "training": Training("adam", learning_rate=1e-3, batch_size=20, epochs=100, updates=10),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "stream.examples": 100, "training.epochs": 10,
              "model_settings.hidden": (32,)},
    "default": {"model_settings.hidden": (100, 100)},
}  # fmt: skip

EXPERIMENT = supervised.experiment("warm_start", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
