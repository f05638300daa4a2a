"""Continual ImageNet: two classes of small images to be told apart, then two others, and so on.

    make run EXP=continual_imagenet
    make run EXP=continual_imagenet ARGS="--preset paper --data-path ~/imagenet32 --methods backprop l2 reset"

The default draws synthetic images, so that it runs anywhere; the presets `paper` and `dohare` need ImageNet-32. Leaves
its run in <runs-dir>/continual_imagenet/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.models import CNN
from plastax.program.training import Training
from plastax.streams import ContinualImageNet
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Continual ImageNet: held-out accuracy on a new pair of classes every task."""

    stream: ContinualImageNet = ContinualImageNet()
    """The images."""


_IMAGENET: dict[str, Any] = {"data": "imagenet32", "methods": ("backprop", "l2", "reset"), "tasks": 2000,
                             "training.batch_size": 100, "training.evaluation_examples": 1200}  # fmt: skip

# What arXiv 2509.22335 gives its methods; its effective rank is that of the last epoch, once an epoch; its continual
# backprop replaces the units of highest utility, and ours the lowest.
_METHODS: dict[str, Any] = {
    "l2.l2": 1e-3, "effective_rank.er_lr": 1e-5, "effective_rank.period": 12, "effective_rank.window": 12,
    "l2_er.l2": 1e-3, "l2_er.er_lr": 1e-4, "l2_er.period": 12, "l2_er.window": 12, "layernorm_l2.l2": 1e-5,
    "spectral_norm.target": 2.0, "spectral_norm.strength": 1e-2, "continual_backprop.replacement_rate": 1e-5,
    "continual_backprop.utility": "adaptable_contribution",
}  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "data": "synthetic",
    "synthetic": supervised.Synthetic(40, 100, 50),
    "model": "cnn",
    "methods": ("backprop", "reset"),
    "probes": ("features", "weights"),
    "seeds": 2,
    "tasks": 20,
    "training": Training("sgd", learning_rate=1e-2, momentum=0.9, batch_size=20, epochs=5, evaluation_examples=200),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"tasks": 3, "synthetic.classes": 4, "synthetic.train_per_class": 20,
              "synthetic.test_per_class": 10, "training.batch_size": 20, "training.epochs": 2,
              "model_settings": CNN((4, 4, 4), hidden=(8, 8))},
    # Few and small convolutions, so that it ends within minutes on two CPU cores.
    "default": {"model_settings": CNN((8, 8, 8), (3, 3, 3), (32, 32))},
    # arXiv 2509.22335: 20 epochs of 12 steps, the head kept. Its code reads pixels as the files have them, up to 255;
    # here they end at 1, so its step sizes (one a method, 1e-2 to 1e-4) do not carry over: all have the default.
    # Its effective rank is that of the two dense layers; here of all hidden layers.
    "paper": {**_IMAGENET, **_METHODS, "methods": ("backprop", "l2", "effective_rank", "l2_er", "reset"), "seeds": 20,
              "training.epochs": 20},
    # Dohare et al. (Nature 632, 2024): 250 epochs, a new output layer every task (zeros there), no padding.
    "dohare": {**_IMAGENET, "seeds": 30, "training.epochs": 250, "training.updates": 25, "training.head": "reset",
               "model_settings": CNN(padding="VALID")},
}  # fmt: skip

EXPERIMENT = supervised.experiment("continual_imagenet", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
