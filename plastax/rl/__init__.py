"""Continual reinforcement learning: streams of tasks, and the agent that learns on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plastax.rl.classic import Chain, Physics
from plastax.rl.minatar import MinAtar
from plastax.rl.permuted import Permuted

STREAMS: Mapping[str, Chain | Physics | Permuted | MinAtar] = MappingProxyType(
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
    }
)
"""Stream name -> its config, at its defaults; `dataclasses.replace` changes a setting, ``build()`` makes the stream."""

DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "cartpole_chain": "CartPole with a new constant observation offset every task",
        "acrobot_chain": "Acrobot with a new constant observation offset every task",
        "mountaincar_chain": "MountainCar with a new constant observation offset every task",
        "pendulum_chain": "Pendulum (continuous) with a new constant observation offset every task",
        "cartpole_physics": "CartPole with masses, pole length, gravity and force drawn anew every task",
        "acrobot_physics": "Acrobot with link lengths and masses drawn anew every task",
        "mountaincar_physics": "MountainCar with gravity drawn anew every task",
        "pendulum_physics": "Pendulum (continuous) with gravity, mass and length drawn anew every task",
        "permuted_obs": "any gymnax environment with its observation entries permuted anew every task",
        "minatar_chain": "MinAtar games one after the other, padded observations and one set of 6 actions",
    }
)
"""Stream name -> one line about it."""
