"""The loss of proximal policy optimisation, and the settings of the agent.

References:
  Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from plastax import ranges
from plastax.curvature.losses import actor_critic
from plastax.errors import ConfigError
from plastax.program import learner
from plastax.program.learner import Network
from plastax.rl import policy as policies
from plastax.rl.agent import Settings
from plastax.types import Array, Model


@dataclass(frozen=True)
class PPO(Settings):
    """Settings of PPO and of its optimiser (Adam).

    Defaults without a remark are CleanRL's and purejaxrl's for classic control.
    """

    group: ClassVar[str] = "ppo"

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps in a pass; must divide num_envs * num_steps."""
    gae_lambda: float = 0.95
    """Decay of generalised advantage estimation."""
    clip: float = 0.2
    """The policy ratio is clipped to 1 +- this."""
    value_clip: float = 0.0
    """The value may move this far from the old value in an update; 0: not clipped."""
    value_weight: float = 0.5
    """Weight of the value loss, mean 1/2 (V - target)^2."""
    entropy_weight: float = 0.01
    """Weight of the policy's entropy bonus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.group, "epochs", "minibatches", least=1)
        if self.steps_per_update % self.minibatches:
            raise ConfigError(
                f"ppo.minibatches: {self.minibatches} does not divide the rollout's {self.steps_per_update} steps "
                f"(num_envs {self.num_envs} x num_steps {self.num_steps})"
            )
        ranges.check(self, self.group, "gae_lambda", least=0, most=1)
        ranges.check(self, self.group, "clip", "value_clip", "value_weight", "entropy_weight", least=0)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in one update."""
        return self.epochs * self.minibatches


class RolloutBatch(NamedTuple):
    """Transitions, and what the loss needs beside them; leading axis ``B``."""

    observation: Array
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    target: Array


def network(config: PPO, model: Model, policy: policies.Policy) -> Network:
    """The clipped surrogate, the value loss and the entropy bonus (Schulman et al. 2017, eq. 9), mean over the batch.

    Advantages are normalised over the batch. `Network.output_loss` is the same loss as a function of the network's
    outputs, with the curvature that defines its Gauss-Newton matrix; see `plastax.curvature.losses.actor_critic`.
    """

    def from_outputs(outputs: policies.Outputs, batch: RolloutBatch) -> tuple[Array, dict[str, Array]]:
        log_ratio = policy.log_prob(outputs, batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_error = jnp.square(outputs["value"] - batch.target)
        if config.value_clip:
            moved = batch.value + jnp.clip(outputs["value"] - batch.value, -config.value_clip, config.value_clip)
            value_error = jnp.maximum(value_error, jnp.square(moved - batch.target))
        value_loss = 0.5 * value_error.mean()
        entropy = policy.entropy(outputs).mean()
        total = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        # The estimate k3 of Schulman's note "Approximating KL divergence": non-negative, low variance.
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": (ratio - 1 - log_ratio).mean(),
        }
        return total, metrics

    output_loss = actor_critic(policy.head, config.value_weight, lambda outputs, batch: from_outputs(outputs, batch)[0])
    return learner.network(model, output_loss, from_outputs, lambda batch: batch.observation)
