"""Churn: how far one gradient step moves the outputs on examples that it was not taken on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import ranges, tree
from plastax.probes.base import ProbeConfig, choices, flat_outputs, thinned
from plastax.probes.gradient import off_diagonal_mean, parted
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


@dataclass(frozen=True)
class ChurnProbe(ProbeConfig):
    """Churn: how far a gradient step moves the outputs on other examples than its own."""

    name: ClassVar[str] = "churn"

    learning_rate: float = 0.01
    """Step size of gradient descent; a small step's churn is proportional to it."""
    minibatches: int = 8
    """Parts of the batch: a step is taken on each, from the same parameters."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "learning_rate", above=0)
        ranges.check(self, self.name, "minibatches", "examples", least=2)

    def build(self, model: Model) -> Probe:
        """The probe, all of whose values are scalars.

        ``off``: the root mean square, over steps and the examples of all other minibatches, of the Euclidean change of
        all outputs; ``on``: the same over the step's own minibatch; ``ratio``: off over on, 0 if nothing moves.
        ``switched``, for classifiers and policies of discrete actions: the share of other examples whose likeliest
        class or action changes. The step is plain gradient descent, whatever optimiser trains: to first order the
        change is ``learning_rate * K g``, with the neural tangent kernel K between the examples.

        References:
          After Tang et al., "Mitigating plasticity loss in continual reinforcement learning by reducing churn", ICML
          2025, arXiv 2506.00592. Schaul et al., "The phenomenon of policy churn", NeurIPS 2022 (``switched``).
        """
        del model

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            parts = parted(seen.batch, min(self.minibatches, jax.tree.leaves(seen.batch)[0].shape[0]))
            number = jax.tree.leaves(parts)[0].shape[0]
            whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)

            def outputs(params: Params) -> tuple[Array, Array | None]:
                found = seen.outputs_fn(params, whole)
                # A masked logit may be infinite, and the difference of two is NaN.
                return tree.wide(flat_outputs(seen.output_loss.finite(found))), choices(found, whole)

            (before, chosen), counted = outputs(seen.params), seen.counted_fn(whole)

            def per_part(x: Array, where: Array | None = None) -> Array:
                return jnp.mean(
                    x.reshape(number, -1), axis=1, where=None if where is None else where.reshape(number, -1)
                )

            def step(part: Tree) -> dict[str, Array]:
                grads = jax.grad(seen.loss_fn)(seen.params, part)
                after, then = outputs(jax.tree.map(lambda w, g: w - self.learning_rate * g, seen.params, grads))
                found = {"moved": per_part(jnp.sum(jnp.square(after - before), axis=1))}
                if then is not None and chosen is not None:
                    found["switched"] = per_part(jnp.not_equal(then, chosen).astype(jnp.float32), counted)
                return found

            found = jax.lax.map(step, parts)
            on = jnp.sqrt(jnp.mean(jnp.diagonal(found["moved"])))
            off = jnp.sqrt(off_diagonal_mean(found["moved"]))
            values = {"off": off, "on": on, "ratio": off / jnp.where(on == 0, 1.0, on)}
            return values | {name: off_diagonal_mean(x) for name, x in found.items() if name == "switched"}

        return Probe(self.name, measure, {}, {}, every=self.every)
