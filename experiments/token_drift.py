"""Token drift: a GPT learns one source of sequences after another, at the same budget each.

    make run EXP=token_drift
    make run EXP=token_drift ARGS="--sweep data.severity=0.1,0.5,1"
    make run EXP=token_drift ARGS="--data recall"
    make run EXP=token_drift ARGS="--data text --data-path book.txt"

Leaves its run in <runs-dir>/token_drift/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.program.training import Training
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.TokenConfig):
    """Token drift: how far above the entropy of its source is the loss, task after task?"""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "l2_er", "reset"),
    "probes": ("features", "weights", "hessian"),
    "seeds": 4,
    # 256 steps a task: a fresh network comes to within 0.12 nats of the entropy.
    "training": Training("adam", learning_rate=3e-3, batch_size=16, epochs=8, updates=8),
}

# Around the natural threshold, 1 / (learning rate x gradient steps of a task): 1.3.
EPS: dict[str, Any] = dict.fromkeys(("hessian.eps", "ggn.eps", "kronecker.eps"), (0.3, 1.0, 3.0, 10.0))

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "reset"), "seeds": 2, "tasks": 3, "model_settings.width": 8,
              "model_settings.depth": 1, "model_settings.heads": 2, "probes": ("features", "weights"),
              "data_settings.length": 8, "data_settings.examples": 32, "training.epochs": 2, "training.updates": 2},
    "default": {"model_settings.width": 32, "model_settings.depth": 2, "hessian.order": 32, "hessian.probes": 1,
                "hessian.examples": 16, "hessian.every": 4, **EPS},
    # Four layers, 117,048 parameters: spectra of the blocks of each kind, and Kronecker factors, at every task.
    "blocks": {"methods": ("backprop",), "seeds": 8, "probes": ("hessian", "kronecker"), "hessian.blocks": "kinds",
               "hessian.order": 12, "hessian.probes": 2, "hessian.examples": 4, "training.epochs": 2,
               "training.updates": 2, "training.probe_examples": 16, **EPS},
}  # fmt: skip

EXPERIMENT = supervised.experiment("token_drift", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
