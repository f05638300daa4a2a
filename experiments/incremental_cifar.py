"""Incremental CIFAR-100: five more classes with every task, until all hundred are there.

    make run EXP=incremental_cifar
    make run EXP=incremental_cifar ARGS="--preset paper --methods backprop l2 reset"

The default draws synthetic images for a narrow residual network, so that it runs anywhere; the presets `paper` and
`dohare` need CIFAR-100. Accuracy falls from task to task because there are more classes to tell apart: compare it to
that of `reset`. Leaves its run in <runs-dir>/incremental_cifar/<run id>: records, checkpoints, report, a W&B run, a
summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.models import ResNet18
from plastax.program.training import Training
from plastax.streams import IncrementalCIFAR
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Incremental CIFAR-100: held-out accuracy on all classes so far, five more every task."""

    stream: IncrementalCIFAR = IncrementalCIFAR()
    """The images."""


DEFAULTS: dict[str, Any] = {
    "data": "synthetic",
    "synthetic": supervised.Synthetic(20, 25, 10, 0.5),
    "model": "resnet18",
    "methods": ("backprop", "reset"),
    "probes": ("features", "weights"),
    "seeds": 2,
    "tasks": 20,
    "training": Training("sgd", learning_rate=1e-2, momentum=0.9, batch_size=50, epochs=2, evaluation_examples=200),
}

_CIFAR: dict[str, Any] = {"data": "cifar100", "seeds": 5, "training.batch_size": 100, "training.epochs": 200,
                          "training.updates": 20, "training.evaluation_examples": 1000,
                          "segments_per_task": 4}  # fmt: skip

# What arXiv 2509.22335 gives its methods, all of them at a step size of 1e-2; its effective rank is that of the two
# dense layers (here: of all hidden layers) on the last 5 batches, every 5 steps; its continual backprop replaces
# the units of highest utility, and ours the lowest.
_METHODS: dict[str, Any] = {
    "l2.l2": 1e-4, "effective_rank.er_lr": 1e-4, "effective_rank.period": 5, "effective_rank.window": 5,
    "l2_er.l2": 1e-3, "l2_er.er_lr": 1e-3, "l2_er.period": 5, "l2_er.window": 5, "layernorm_l2.l2": 1e-4,
    "spectral_norm.target": 2.0, "spectral_norm.strength": 1e-2, "continual_backprop.replacement_rate": 1e-6,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"tasks": 3, "synthetic.classes": 6, "synthetic.train_per_class": 10, "synthetic.test_per_class": 5,
              "stream.new_classes": 2, "training.batch_size": 10, "model_settings": ResNet18((4, 8), (1, 1), (8,))},
    # Few and small convolutions, so that it ends within minutes on two CPU cores.
    "default": {"stream.new_classes": 1, "model_settings": ResNet18((4, 8, 16), (1, 1, 1), (16,))},
    # arXiv 2509.22335: constant step size, no augmentation, pixels from 0 to 1. There, images come in one fixed order.
    "paper": {**_CIFAR, **_METHODS, "training.learning_rate": 1e-2},
    # Dohare et al. (Nature 632, 2024) and their code: pixels standardised by channel; flips, crops and rotations;
    # batches of 90; the step size cut by 5 at epochs 60, 120 and 160 of 200; 50 images a class for validation, after
    # every epoch, and the best weights at a task's end. Their weight decay of 5e-4 is the method l2 (normalisation
    # layers excepted). Their code augments held-out images as well; here they stay as they are. See `IncrementalCIFAR`
    # on what an epoch is.
    "dohare": {**_CIFAR, "seeds": 15, "methods": ("l2", "reset"), "l2.l2": 5e-4, "stream.augment": True,
               "stream.rotate": 15.0, "stream.standardise": True, "stream.validation_per_class": 50,
               "training.batch_size": 90, "training.updates": 200, "training.evaluation_examples": 5000,
               "training.restore_best": True, "training.learning_rate": 0.1, "training.drops": (0.3, 0.6, 0.8),
               "training.drop_factor": 5.0, "model_settings": ResNet18(hidden=())},
}  # fmt: skip

EXPERIMENT = supervised.experiment("incremental_cifar", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
