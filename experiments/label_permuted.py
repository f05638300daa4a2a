"""Permuted labels: the same images under new names every task; accuracy before each step.

    make run EXP=label_permuted
    make run EXP=label_permuted ARGS="--data fashion_mnist --preset upgd --tasks 50"

Leaves its run in <runs-dir>/label_permuted/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.program.training import Training
from plastax.streams import LabelPermuted
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Permuted labels: online accuracy while classes swap their labels every task."""

    stream: LabelPermuted = LabelPermuted(examples=1000)
    """The images."""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "l2", "reset"),
    "probes": ("features", "weights"),
    "seeds": 4,
    "tasks": 60,
    "training": Training("adam", learning_rate=1e-3, batch_size=10, epochs=2),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "stream.examples": 200,
              "model_settings.hidden": (32,)},
    "default": {"model_settings.hidden": (100, 100)},
    # Elsayed and Mahmood (ICLR 2024): a million examples one by one, new labels every 2,500. Their data sets (47
    # letters and digits, CIFAR-10, mini-ImageNet) are not among ours, and ten classes lose no plasticity there.
    "upgd": {"data": "mnist", "seeds": 10, "tasks": 400, "stream.examples": 2500, "training.optimizer": "sgd",
             "training.learning_rate": 1e-2, "training.batch_size": 1, "training.epochs": 1,
             "model_settings.hidden": (300, 150)},
}  # fmt: skip

EXPERIMENT = supervised.experiment("label_permuted", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
