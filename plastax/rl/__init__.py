"""Continual reinforcement learning: streams of tasks, and the agents that learn on them, `ppo` and `dqn`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plastax.rl.brax import Brax
from plastax.rl.classic import Chain, Physics
from plastax.rl.environment import ENVIRONMENTS, StreamConfig
from plastax.rl.foreign import adapted
from plastax.rl.minatar import MinAtar
from plastax.rl.own import Own
from plastax.rl.permuted import Permuted

STREAMS: Mapping[str, StreamConfig] = MappingProxyType(
    {
        "cartpole_chain": Chain("CartPole-v1"),
        "acrobot_chain": Chain("Acrobot-v1"),
        "mountaincar_chain": Chain("MountainCar-v0"),
        "pendulum_chain": Chain("Pendulum-v1"),
        "cartpole_physics": Physics("CartPole-v1"),
        "acrobot_physics": Physics("Acrobot-v1"),
        "mountaincar_physics": Physics("MountainCar-v0"),
        "pendulum_physics": Physics("Pendulum-v1"),
        "permuted_obs": Permuted("CartPole-v1"),
        "minatar_chain": MinAtar(),
        "slippery_ant": Brax(),
        "slippery_halfcheetah": Brax(env="halfcheetah"),
        "hopper_gravity": Brax(env="hopper", quantity="gravity", low=0.5, high=2.0),
    }
)
"""Stream name -> its config, at its defaults; ``build()`` makes the `plastax.rl.environment.EnvironmentStream`."""

__all__ = ["ENVIRONMENTS", "STREAMS", "Brax", "Chain", "MinAtar", "Own", "Permuted", "Physics", "adapted"]
