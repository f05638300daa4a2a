"""Continual reinforcement learning on gymnax: PPO or DQN, many seeds at once, with spectra at every task switch.

    make run EXP=rl_gymnax
    make run EXP=rl_gymnax ARGS="--seeds 16 --method l2_er --method.er-lr 1e-4"
    make run EXP=rl_gymnax ARGS="--agent dqn --dqn.replay-ratio 1"

Leaves its run in <runs-dir>/rl_gymnax/<run id>: records, checkpoints, report, a W&B run, a summary table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plastax.rl.dqn import DQN
from plastax.rl.ppo import PPO
from plastax.study import reinforcement


@dataclass(frozen=True)
class Config(reinforcement.Config):
    """Continual reinforcement learning on gymnax: PPO or DQN on a stream of tasks, spectra at every switch."""


DEFAULTS: dict[str, Any] = {
    "ppo": PPO(learning_rate=2e-3, epochs=8, reward_scale=0.05),
    "dqn": DQN(reward_scale=0.05),
    # Once an update, 8 epochs of 4 minibatches. 16, 32 and 64 gave about the same returns, on 8 unreported seeds.
    "l2_er.period": 32, "effective_rank.period": 32,
}  # fmt: skip

# Around the natural threshold, 1 / (learning rate x gradient steps of a task): 0.2. They are used relative to the
# largest eigenvalue, too, where 1 would count nothing.
EPS: dict[str, Any] = dict.fromkeys(("hessian.eps", "ggn.eps", "kronecker.eps"), (0.03, 0.1, 0.3, 0.9))

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "methods": ("l2_er", "reset"), "seeds": 2, "tasks": 3, "steps_per_task": 5_120,
        "probes": ("features", "weights", "hessian", "kronecker"), "hessian.order": 8, "hessian.probes": 1,
    },
    # Enough of the Hessian for ranks whose standard errors are small at these thresholds.
    "default": {"hessian.order": 192, "hessian.probes": 1, "hessian.examples": 32, **EPS},
    "accelerator": {"seeds": 64, "tasks": 40, "steps_per_task": 163_840, "segments_per_task": 4, "hessian.order": 256,
                    "hessian.probes": 1, "hessian.examples": 32, **EPS, "ggn.order": 64, "ggn.probes": 4},
    # The networks and schedule of C-CHAIN's Gym Control (arXiv 2506.00592): 10 tasks of 160k steps, 3 x 256 leaky ReLU,
    # Adam 1e-3, 5 epochs, minibatches of 32; 800 steps a rollout there, 8 environments x 100 steps here.
    "paper": {
        "seeds": 10, "tasks": 10, "steps_per_task": 160_000, "model_settings.hidden": (256, 256, 256),
        "model_settings.activation": "leaky_relu", "ppo.num_envs": 8, "ppo.num_steps": 100, "ppo.epochs": 5,
        "ppo.minibatches": 25, "ppo.learning_rate": 1e-3, "ppo.reward_scale": 0.05, "dqn.num_envs": 8,
        "dqn.num_steps": 100,
    },
    # C-CHAIN's chain of MinAtar games (arXiv 2506.00592): double DQN, Adam 3e-4, 10k random steps first, 2M steps a
    # game. Batches of 32, a gradient step for every 4 steps, a target network 1,000 steps old and 100,000 steps of
    # replay are Dopamine's for MinAtar (Obando-Ceron and Castro, arXiv 2011.14826).
    "minatar": {
        "agent": "dqn", "stream": "minatar_chain", "model": "conv", "tasks": 4, "steps_per_task": 2_000_000,
        "segments_per_task": 10, "hessian.order": 192, "hessian.probes": 1, "hessian.examples": 32, **EPS,
        "dqn": DQN(num_envs=8, num_steps=250, train_every=2, batch_size=32, capacity=100_000, learning_rate=3e-4,
                   warmup=10_000, n_step=1, target_every=250, epsilon=0.01, epsilon_steps=250_000),
    },
    # Four gradient steps for every environment step, 16 times DQN's default: the primacy bias (Nikishin et al. 2022).
    # --dqn.replay-ratio 0.25 is the other side of the comparison. With effective-rank steps half as often, the weights
    # of l2_er exploded in four of eight seeds, not in one.
    "replay": {
        "agent": "dqn", "methods": ("backprop", "l2_er", "redo", "layernorm", "reset"),
        "probes": ("features", "weights", "hessian"), "tasks": 15, "steps_per_task": 10_240, "probe_every": 2,
        "hessian.order": 192, "hessian.probes": 1, "hessian.examples": 32, **EPS,
        "l2_er.period": 16, "effective_rank.period": 16,
        "dqn": DQN(replay_ratio=4.0, learning_rate=2e-3, batch_size=32, capacity=10_240, epsilon_steps=2_048,
                   kronecker_every=0, reward_scale=0.05),
    },
}  # fmt: skip

EXPERIMENT = reinforcement.experiment("rl_gymnax", Config, DEFAULTS, PRESETS)

if __name__ == "__main__":
    EXPERIMENT.main()
