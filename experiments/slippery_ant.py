"""Continual control: PPO on Brax's ant, whose friction with the floor changes with every task.

    pip install 'plastax-lab[brax]'
    make run EXP=slippery_ant
    make run EXP=slippery_ant ARGS="--stream slippery_halfcheetah"
    make run EXP=slippery_ant ARGS="--preset paper"       # 10M steps a seed, one environment
    make run EXP=slippery_ant ARGS="--preset vectorised"  # for an accelerator

Observations are normalised where `--ppo.normalize-observations` says so. Actions are clipped to [-1, 1] on their way to
the robot.
An ant is healthy while its torso is between 0.2 and 1 m above the floor, see `--stream.terminate-when-unhealthy`. The
physics takes about 20 s of a processor to compile for each method, and as long for what is measured.

Leaves its run in <runs-dir>/slippery_ant/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.rl.ppo import PPO
from plastax.study import reinforcement


@dataclass(frozen=True)
class Config(reinforcement.Config):
    """Continual control in Brax: PPO on an ant with new friction every task, spectra at every switch."""

    stream: str = "slippery_ant"
    """What changes from task to task (`plastax list streams`), or your own stream or environment, module:object."""


DEFAULTS: dict[str, Any] = {
    "stream": "slippery_ant",
    "probes": ("features", "weights", "hessian"),
    "model_settings.activation": "relu",
}

# What arXiv 2509.22335 gives its agent and its methods: one environment, minibatches of 16, effective rank once an
# epoch of all 2,048 samples. Its Adam has betas of 0.99 for all methods but backprop (there 0.9 and 0.999: --ppo.b1 .9
# --ppo.b2 .999), and its value loss has no factor 1/2. A phase is 2M steps, here a whole number of updates.
_PAPER: dict[str, Any] = {
    "seeds": 5, "tasks": 5, "steps_per_task": 976 * 2048, "segments_per_task": 16,
    "stream_settings.schedule": "published", "model_settings.hidden": (256,), "model_settings.head_layers": 1,
    "ppo": PPO(num_envs=1, num_steps=2048, epochs=10, minibatches=128, learning_rate=1e-4, b1=0.99, b2=0.99,
               value_clip=0.2, value_weight=2.0),
    "l2.l2": 1e-3, "effective_rank.er_lr": 1e-7, "effective_rank.period": 128, "effective_rank.window": 128,
    "l2_er.l2": 1e-3, "l2_er.er_lr": 1e-6, "l2_er.period": 128, "l2_er.window": 128,
    "continual_backprop.replacement_rate": 1e-7, "continual_backprop.maturity": 10_000,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "methods": ("l2_er",), "seeds": 1, "tasks": 2, "steps_per_task": 2_048,
        "probes": ("features", "hessian"), "hessian.order": 8, "hessian.probes": 1, "hessian.examples": 32,
        "ppo": PPO(num_envs=8, num_steps=64),
    },
    # The natural threshold, 1 / (learning rate x gradient steps of a task), is 0.3. Eigenvalues reach from -100 to 140:
    # it takes an order of 192 to resolve it.
    "default": {
        "seeds": 4, "tasks": 6, "steps_per_task": 122_880, "hessian.order": 192, "hessian.probes": 1,
        "hessian.examples": 32, "hessian.eps": (0.1, 0.3, 1.0),
        "ppo": PPO(num_envs=16, num_steps=128, epochs=4, minibatches=16, learning_rate=1e-3, reward_scale=0.1),
    },
    # Many environments a seed, for an accelerator.
    "vectorised": {
        "seeds": 16, "tasks": 10, "steps_per_task": 2_048 * 1_000, "segments_per_task": 8,
        "model_settings.hidden": (256, 256), "hessian.order": 192, "hessian.probes": 1,
        "ppo": PPO(num_envs=512, num_steps=20, epochs=4, minibatches=16, learning_rate=3e-4, reward_scale=0.1),
    },
    "paper": _PAPER,
    # Dohare et al. (Nature 632, 2024): two hidden layers, minibatches of 128, 20M steps.
    "dohare": {**_PAPER, "tasks": 10, "stream_settings.schedule": "random", "model_settings.hidden": (256, 256),
               "ppo": PPO(num_envs=1, num_steps=2048, epochs=10, minibatches=16, learning_rate=1e-4, b1=0.99, b2=0.99,
                          value_clip=0.2, value_weight=2.0),
               "effective_rank.period": 16, "effective_rank.window": 16, "l2_er.period": 16, "l2_er.window": 16},
}  # fmt: skip

EXPERIMENT = reinforcement.experiment("slippery_ant", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
