"""Robustness: what is left of a network's accuracy, or of its policy, when its inputs are disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax import ranges, tree
from plastax.errors import ConfigError
from plastax.probes.base import ProbeConfig, choices, thinned
from plastax.types import Array, Model, Probe, ProbeInput

DISTURBED = ("noise", "adversarial")


@dataclass(frozen=True)
class RobustnessProbe(ProbeConfig):
    """Loss, accuracy and changed choices under input noise and a one-step adversarial perturbation (FGSM)."""

    name: ClassVar[str] = "robustness"

    noise: float = 0.3
    """Standard deviation of the Gaussian noise, in units of the inputs' (over all entries of the batch)."""
    epsilon: float = 0.1
    """Size of the adversarial perturbation of every entry, in the same units."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "noise", "epsilon", above=0)
        ranges.check(self, self.name, "examples", least=2)

    def build(self, model: Model) -> Probe:
        """The probe, all of whose values are scalars, named ``clean_``, ``noise_`` and ``adversarial_``.

        ``loss``: the program's; for policies of discrete actions the cross-entropy with the action that is likeliest
        without disturbance. ``accuracy``, for classifiers. ``changed``, for classifiers and policies, not ``clean_``:
        the share of examples whose likeliest class or action is another one than without disturbance.

        With s the inputs' standard deviation, noise adds ``noise * s`` times a standard normal draw, and the adversary
        adds ``epsilon * s * sign(d loss / d x)``. Inputs are not clipped. They are the first entry of the batch:
        observations as the network gets them.

        Raises:
          ConfigError: for a batch without such an entry or with tokens there, or a policy of continuous actions.

        References:
          Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, section 4. Huang
          et al., "Adversarial attacks on neural network policies", arXiv 1702.02284, section 3 (the loss of policies).
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            batch = seen.batch
            if not hasattr(batch, "_replace"):
                raise ConfigError(f"robustness: a batch of type {type(batch).__name__} has no first entry with inputs")
            if not jnp.issubdtype(batch[0].dtype, jnp.floating):
                raise ConfigError("robustness: inputs are tokens, which cannot be disturbed a little; leave it out")
            x = tree.wide(batch[0])
            chosen = choices(seen.outputs_fn(seen.params, batch), batch)
            policy = not hasattr(batch, "y")
            if policy and chosen is None:
                raise ConfigError("robustness: a policy of continuous actions has no likeliest action; leave it out")

            def disturbed(x: Array) -> tuple[Array, dict[str, Array]]:
                there = batch._replace(**{batch._fields[0]: x})
                outputs = seen.outputs_fn(seen.params, there)
                if policy:
                    loss = optax.softmax_cross_entropy_with_integer_labels(outputs["policy"], chosen).mean()
                else:
                    loss = seen.output_loss.value(outputs, there)
                values, now = {"loss": loss}, choices(outputs, there)
                if now is not None:
                    values["changed"] = jnp.mean(now != chosen, dtype=jnp.float32)
                    if not policy:
                        values["accuracy"] = jnp.mean(now == batch.y, dtype=jnp.float32)
                return loss, values

            (_, clean), slope = jax.value_and_grad(disturbed, has_aux=True)(x)
            noise = self.noise * jax.random.normal(seen.key, x.shape, x.dtype)
            shifts = jnp.std(x) * jnp.stack([noise, self.epsilon * jnp.sign(slope)])
            found = jax.lax.map(lambda shift: disturbed(x + shift)[1], shifts)
            clean.pop("changed", None)
            return {f"clean_{name}": value for name, value in clean.items()} | {
                f"{kind}_{name}": value[i] for i, kind in enumerate(DISTURBED) for name, value in found.items()
            }

        return Probe(self.name, measure, {}, {}, every=self.every)
