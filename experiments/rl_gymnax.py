"""Continual reinforcement learning on gymnax: PPO, many seeds at once, with spectra at every task switch.

    make run EXP=rl_gymnax
    make run EXP=rl_gymnax ARGS="--seeds 16 --method l2_er --method.er-lr 1e-4"

Leaves its run in <runs-dir>/rl_gymnax/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # On busy machines OpenBLAS's threads make small SVDs 100x slower.

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments import _study
from plastax import machine, memory, parallel, run, segments, settings, starting
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import MODELS
from plastax.probes import PROBES
from plastax.rl import STREAMS, ppo
from plastax.rl.environment import Stream
from plastax.types import Probe, Program


@dataclass(frozen=True)
class Config(settings.Study):
    """Continual reinforcement learning on gymnax: PPO on a stream of tasks, spectra at every switch."""

    stream: str = "cartpole_chain"
    """What changes from task to task (`python -m plastax list streams`)."""
    model: str = "mlp"
    """Network: mlp, or conv for image observations (minatar_chain)."""
    steps_per_task: int = 40_960
    """Environment steps of one seed in each task; a multiple of ppo.num_envs x ppo.num_steps."""
    segments_per_task: int = 1
    """Calls of the compiled program a task: more show progress and checkpoint more often."""
    ppo: ppo.PPO = field(default_factory=lambda: ppo.PPO(learning_rate=2e-3, epochs=8, reward_scale=0.05))
    """The agent."""


# What each preset changes in the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "methods": ("l2_er", "reset"), "seeds": 2, "tasks": 3, "steps_per_task": 5_120,
        "probes": ("features", "weights", "hessian", "kronecker"), "hessian.order": 8, "hessian.probes": 1,
    },
    "default": {},
    "accelerator": {"seeds": 64, "tasks": 40, "steps_per_task": 163_840, "segments_per_task": 4, "hessian.order": 64,
                    "ggn.order": 64, "hessian.probes": 4, "ggn.probes": 4},
    # The networks and schedule of C-CHAIN's Gym Control (arXiv 2506.00592): 10 tasks of 160k steps, 3 x 256 leaky ReLU,
    # Adam 1e-3, 5 epochs, minibatches of 32; 800 steps a rollout there, 8 environments x 100 steps here.
    "paper": {
        "seeds": 10, "tasks": 10, "steps_per_task": 160_000, "model_settings.hidden": (256, 256, 256),
        "model_settings.activation": "leaky_relu", "ppo.num_envs": 8, "ppo.num_steps": 100, "ppo.epochs": 5,
        "ppo.minibatches": 25, "ppo.learning_rate": 1e-3, "ppo.reward_scale": 0.05,
    },
}  # fmt: skip

GROUPS: dict[str, Mapping[str, Any]] = {"methods": METHODS, "probes": PROBES}


def build(config: Any) -> tuple[list[parallel.Batch], run.Plan]:
    """The programs over all networks, and the plan of segments; raises `ConfigError` before anything compiles."""
    # The probe counts eigenvalues beyond what the step size allows: with it, the step size is a constant.
    static = ("ppo.learning_rate",) if "trainability" in config.probes else ()
    # One stream for all arms that have the same.
    prepare_with = functools.partial(prepare, functools.cache(lambda stream: stream.build()))
    return _study.build(config, GROUPS, prepare_with, static=static)


def prepare(
    stream_of: Callable[[Any], Stream], config: Any, name: str
) -> tuple[run.Plan, _study.Make, Sequence[Probe]]:
    """See `_study.Prepare`. The stream is built by the programs, in the end: gymnax compiles as it makes environments.

    Args:
      stream_of: what builds the stream of its settings.
      config: of the experiment.
      name: of the method.
    """
    spaces = config.stream_settings.spaces()
    if config.steps_per_task < 1 or config.steps_per_task % config.ppo.steps_per_update:
        per_update = config.ppo.steps_per_update
        raise ConfigError(
            f"steps_per_task: {config.steps_per_task} is not a multiple of an update's {per_update} steps"
        )
    updates = config.steps_per_task // config.ppo.steps_per_update
    steps = config.ppo.epochs * config.ppo.minibatches
    plan = _study.cut(config, updates, config.ppo.steps_per_update, steps)
    size, continuous = ppo.action_size(spaces)
    options = _study.method_of(config, name).model_options
    model = settings.with_options(config.model_settings, config.model, name, options).build(
        spaces.observation_shape, size, continuous=continuous
    )
    model = model._replace(batch_like=ppo.batch_like(config.ppo, spaces))
    looks = _study.looks(config, model, config.ppo.learning_rate, updates * steps)
    probes = [look.build(model) for look in looks]
    _study.method_of(config, name).build(config.ppo.optimizer(), model)  # Refused now, if at all.

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method = _study.method_of(own, name)
        return ppo.program(
            own.ppo,
            stream_of(config.stream_settings),
            model,
            method.build(own.ppo.optimizer(), model),
            probes,
            updates_per_task=updates,
            needs_boundary=method.needs_boundary,
            due=segments.task_borders(updates, config.probe_every),
        )

    return plan, make, probes


def main() -> None:
    """Runs the study that the command line asks for."""
    config = settings.parse(Config, PRESETS, {"stream": STREAMS, "model": MODELS}, GROUPS)
    machine.check()
    starting.check_writable(config, "rl_gymnax")
    with memory.explained("rl_gymnax", settings.to_json(config, GROUPS)):
        _study.carry_out("rl_gymnax", config, GROUPS, build)


if __name__ == "__main__":
    settings.main(main)
