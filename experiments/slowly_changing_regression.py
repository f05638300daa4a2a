"""Slowly-changing regression: a small network tracks a larger one whose inputs change now and then.

    make run EXP=slowly_changing_regression
    make run EXP=slowly_changing_regression ARGS="--preset linear"

Leaves its run in <runs-dir>/slowly_changing_regression/<run id>: records, checkpoints, report, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.program.training import Training
from plastax.streams import SlowlyChangingRegression
from plastax.study import supervised


@dataclass(frozen=True)
class Config(supervised.Config):
    """Slowly-changing regression: squared error before each step, on one example at a time."""

    stream: SlowlyChangingRegression = SlowlyChangingRegression()
    """The bits and their target."""


DEFAULTS: dict[str, Any] = {
    "methods": ("backprop", "l2", "l2_init"),
    "probes": ("features", "weights"),
    "seeds": 16,
    "tasks": 40,
    "training": Training("sgd", learning_rate=1e-2, batch_size=1),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "l2"), "seeds": 2, "tasks": 3, "stream.period": 500,
              "model_settings.hidden": (5,)},
    "default": {"model_settings.hidden": (5,)},
    # The linear learner has no plasticity to lose: a network without plasticity does worse.
    "linear": {"methods": ("backprop",), "probes": ("weights",), "model_settings.hidden": ()},
    # Dohare et al. (Nature 632, 2024): 100 runs of a million examples; step sizes 1e-2, 3e-3 and 1e-3 there.
    "dohare": {"methods": ("backprop",), "seeds": 100, "tasks": 100, "model_settings.hidden": (5,)},
}  # fmt: skip

EXPERIMENT = supervised.experiment("slowly_changing_regression", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
