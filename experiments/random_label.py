"""Random labels: a network memorises the same images under new labels, task after task, until it no longer can.

    make run EXP=random_label
    make run EXP=random_label ARGS="--data mnist --preset kumar --methods backprop l2 l2_init reset"
    make run EXP=random_label ARGS="--model vit --tasks 12"

Leaves its run in <runs-dir>/random_label/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.models import ViT
from plastax.program.training import Training
from plastax.streams import RandomLabel
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.ImageConfig):
    """Random labels: can a network still memorise, after having memorised before?"""

    stream: RandomLabel = RandomLabel(examples=400)
    """The images."""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "effective_rank", "l2", "l2_er", "layernorm_l2", "reset"),
    "probes": ("features", "weights", "hessian"),
    "seeds": 6,
    "tasks": 40,
    # A fresh network memorises all labels in half of these steps.
    "training": Training("adam", learning_rate=2e-3, batch_size=40, epochs=60, updates=10),
}

# Around the natural threshold, 1 / (learning rate x gradient steps of a task): 0.8. They are used relative to the
# largest eigenvalue, too, where 1 would count nothing.
EPS: dict[str, Any] = dict.fromkeys(("hessian.eps", "ggn.eps", "kronecker.eps"), (0.03, 0.1, 0.3, 0.9))

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "model_settings.hidden": (32, 32),
              "model_settings": ViT(width=8, depth=1, heads=2),
              "probes": ("features", "weights"), "stream.examples": 100, "training.epochs": 10,
              "training.batch_size": 20},
    # er_lr: what arXiv 2509.22335 takes for L2-ER on permuted MNIST. The others, where the methods' own defaults do
    # little here: chosen from a few values on seeds 100 and 101, 8 to 10 tasks.
    "default": {"model_settings.hidden": (100, 100), "model_settings": ViT(width=32, depth=2),
                "l2_er.er_lr": 1e-2, "effective_rank.er_lr": 1e-2,
                "shrink_and_perturb.shrink": 1e-2, "shrink_and_perturb.perturb": 3e-2, "muon.learning_rate": 3e-3,
                "dash.floor": 0.9, "weight_decay.decay": 1e-4,
                # Enough of the Hessian for ranks whose standard errors are small at these thresholds.
                "hessian.order": 192, "hessian.probes": 1, "hessian.examples": 32, "hessian.every": 8, **EPS},
    # Kumar et al. (arXiv 2308.11958): 50 tasks of 400 epochs over 1,200 images, batches of 16, Adam.
    "kumar": {
        "data": "mnist", "seeds": 3, "tasks": 50, "model_settings.hidden": (100, 100), "stream.examples": 1200,
        "training.batch_size": 16, "training.epochs": 400, "training.updates": 20, "training.learning_rate": 1e-3,
    },
}  # fmt: skip

EXPERIMENT = supervised.experiment("random_label", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
