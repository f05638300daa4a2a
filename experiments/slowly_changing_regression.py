"""Slowly-changing regression: a small network tracks a larger one whose inputs change now and then.

    make run EXP=slowly_changing_regression
    make run EXP=slowly_changing_regression ARGS="--preset linear"

Leaves its run in <runs-dir>/slowly_changing_regression/<run id>: records, checkpoints, report, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments import _supervised as supervised
from plastax import settings
from plastax.streams import SlowlyChangingRegression
from plastax.training import Training


@dataclass(frozen=True)
class Config(supervised.Config):
    """Slowly-changing regression: squared error before each step, on one example at a time."""

    methods: settings.Methods = ("backprop", "l2", "l2_init")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    seeds: int = 16
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    tasks: int = 40
    """Changes of the slow bits, of stream.period examples each."""
    stream: SlowlyChangingRegression = field(default_factory=SlowlyChangingRegression)
    """The bits and their target."""
    training: Training = field(default_factory=lambda: Training("sgd", learning_rate=1e-2, batch_size=1))
    """Optimiser, batches, epochs."""


# What each preset changes in the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"methods": ("backprop", "l2"), "seeds": 2, "tasks": 3, "stream.period": 500,
              "model_settings.hidden": (5,)},
    "default": {"model_settings.hidden": (5,)},
    # The linear learner, which has no plasticity to lose: what a network that has lost its own falls behind.
    "linear": {"methods": ("backprop",), "probes": ("weights",), "model_settings.hidden": ()},
    # Dohare et al. (Nature 632, 2024): 100 runs of a million examples; step sizes 1e-2, 3e-3 and 1e-3 there.
    "dohare": {"methods": ("backprop",), "seeds": 100, "tasks": 100, "model_settings.hidden": (5,)},
}  # fmt: skip


if __name__ == "__main__":
    settings.main(lambda: supervised.main(Config, PRESETS, "slowly_changing_regression"))
