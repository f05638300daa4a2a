"""The loss of proximal policy optimisation, and the settings of the agent.

References:
  Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import optax

from plastax import ranges
from plastax.curvature.kronecker import Kind
from plastax.curvature.losses import actor_critic
from plastax.errors import ConfigError
from plastax.program import learner
from plastax.program.learner import Network
from plastax.rl import normalize
from plastax.rl import policy as policies
from plastax.types import Array, Model


@dataclass(frozen=True)
class PPO:
    """Settings of the agent and of its optimiser (Adam).

    Defaults without a remark are CleanRL's and purejaxrl's for classic control.
    """

    traced: ClassVar[tuple[str, ...]] = ("learning_rate",)

    num_envs: int = 4
    """Environments a seed, stepped in parallel."""
    num_steps: int = 128
    """Steps of each environment in a rollout (one update)."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps in a pass; must divide num_envs * num_steps."""
    learning_rate: float = 2.5e-4
    """Adam's step size; constant (an annealed rate looks like loss of plasticity)."""
    b1: float = 0.9
    """Adam's decay of the gradient mean."""
    b2: float = 0.999
    """Adam's decay of the squared gradient; with (0.9, 0.999) agents lose plasticity (Dohare et al. 2024)."""
    eps: float = 1e-8
    """Adam's epsilon; CleanRL uses 1e-5, which hides part of the loss of plasticity."""
    max_grad_norm: float = 0.0
    """Largest global norm of a gradient; 0: no clipping (as in the plasticity literature; CleanRL clips at 0.5)."""
    gamma: float = 0.99
    """Discount of future rewards per step."""
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
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning (returns are reported unscaled)."""
    normalize_observations: normalize.Normalization = "none"
    """Running statistics: none | global (all tasks) | ema (1 % an update) | reset (global, restarted at a switch). They
    undo an observation offset, and reset tells the agent of the switch. Both change the question, hence none. Entries
    that are constant until a switch (MinAtar's channels, one-hot states) jump to observation_clip at it."""
    observation_clip: float = normalize.CLIP
    """Normalised observations are clipped to +- this, as elsewhere. 0: not clipped; an entry that moves for the first
    time then becomes up to 1e4, which destroys the network in one update."""
    kronecker_every: int = 16
    """Gradient steps between updates of the running Kronecker factors, from training's own backward pass; 0: off."""
    kronecker_kind: Kind = "empirical"
    """Whose gradients: empirical (the loss's own, no further cost) | sampled (labels drawn from the network, one more
    backward pass at an update of the factors) | exact (their expectation, one more backward pass an output)."""
    kronecker_decay: float = 0.95
    """Decay of the running Kronecker factors, an update of them (Martens and Grosse 2015, section 5)."""

    def __post_init__(self) -> None:
        ranges.check(self, "ppo", "num_envs", "num_steps", "epochs", "minibatches", least=1)
        if self.steps_per_update % self.minibatches:
            raise ConfigError(
                f"ppo.minibatches: {self.minibatches} does not divide the rollout's {self.steps_per_update} steps "
                f"(num_envs {self.num_envs} x num_steps {self.num_steps})"
            )
        ranges.check(self, "ppo", "learning_rate", "eps", "reward_scale", above=0)
        ranges.check(self, "ppo", "b1", "b2", "gamma", "gae_lambda", "kronecker_decay", least=0, most=1)
        clips, weights = ("max_grad_norm", "clip", "value_clip", "observation_clip"), ("value_weight", "entropy_weight")
        ranges.check(self, "ppo", *clips, *weights, "kronecker_every", least=0)
        ranges.check_choices(self, "ppo", normalize_observations=normalize.Normalization, kronecker_kind=Kind)

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.num_envs * self.num_steps

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, after an optional clipping of the gradient's global norm."""
        adam = optax.adam(self.learning_rate, self.b1, self.b2, self.eps)
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam) if self.max_grad_norm else adam


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
