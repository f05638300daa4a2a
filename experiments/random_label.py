"""Random labels: a network memorises the same images under new labels, task after task, until it no longer can.

    make run EXP=random_label
    make run EXP=random_label ARGS="--data mnist --preset kumar --methods backprop l2 l2_init reset"

Leaves its run in <runs-dir>/random_label/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments import _supervised as supervised
from plastax import settings
from plastax.streams import RandomLabel
from plastax.training import Training


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Random labels: can a network still memorise, after having memorised before?"""

    methods: settings.Methods = ("backprop", "effective_rank", "l2", "l2_er", "layernorm_l2", "reset")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights", "hessian")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    seeds: int = 6
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    tasks: int = 40
    """Tasks in the stream."""
    stream: RandomLabel = field(default_factory=lambda: RandomLabel(examples=400))
    """The images."""
    training: Training = field(
        # A fresh network memorises all labels in half of these steps.
        default_factory=lambda: Training("adam", learning_rate=2e-3, batch_size=40, epochs=60, updates=10)
    )
    """Optimiser, batches, epochs."""


# What each preset changes in the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "model_settings.hidden": (32, 32),
              "probes": ("features", "weights"), "stream.examples": 100, "training.epochs": 10,
              "training.batch_size": 20},
    # So much of the Hessian that the probes lengthen a task by less than 15 % (`bench.probes`).
    # er_lr: what arXiv 2509.22335 takes for L2-ER on permuted MNIST. The others, where the methods' own defaults do
    # little here: chosen from a few values on seeds 100 and 101, 8 to 10 tasks.
    "default": {"model_settings.hidden": (100, 100), "l2_er.er_lr": 1e-2, "effective_rank.er_lr": 1e-2,
                "shrink_and_perturb.shrink": 1e-2, "shrink_and_perturb.perturb": 3e-2, "muon.learning_rate": 3e-3,
                "dash.floor": 0.9, "weight_decay.decay": 1e-4,
                "hessian.order": 16, "hessian.examples": 64, "hessian.every": 8},
    # Kumar et al. (arXiv 2308.11958): 50 tasks of 400 epochs over 1,200 images, batches of 16, Adam.
    "kumar": {
        "data": "mnist", "seeds": 3, "tasks": 50, "model_settings.hidden": (100, 100), "stream.examples": 1200,
        "training.batch_size": 16, "training.epochs": 400, "training.updates": 20, "training.learning_rate": 1e-3,
    },
}  # fmt: skip


if __name__ == "__main__":
    settings.main(lambda: supervised.main(Config, PRESETS, "random_label"))
