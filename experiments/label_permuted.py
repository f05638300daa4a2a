"""Permuted labels: the same images under new names every task; accuracy before each step.

    make run EXP=label_permuted
    make run EXP=label_permuted ARGS="--data fashion_mnist --preset upgd --tasks 50"

Leaves its run in <runs-dir>/label_permuted/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments import _supervised as supervised
from plastax import settings
from plastax.streams import LabelPermuted
from plastax.training import Training


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Permuted labels: online accuracy while classes swap their labels every task."""

    methods: settings.Methods = ("backprop", "l2", "reset")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    seeds: int = 4
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    tasks: int = 60
    """Tasks in the stream."""
    stream: LabelPermuted = field(default_factory=lambda: LabelPermuted(examples=1000))
    """The images."""
    training: Training = field(default_factory=lambda: Training("adam", learning_rate=1e-3, batch_size=10, epochs=2))
    """Optimiser, batches, epochs."""


# What each preset changes in the defaults above.
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


if __name__ == "__main__":
    settings.main(lambda: supervised.main(Config, PRESETS, "label_permuted"))
