"""How far the budget of a task can get: linearised training on random targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import curvature, ranges
from plastax.errors import ConfigError
from plastax.probes.base import ProbeConfig, flat_counted, flat_outputs, order_within, thinned
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


@dataclass(frozen=True)
class TrainabilityProbe(ProbeConfig):
    """What a task's budget of gradient steps could fit of random targets, if the network stayed linear."""

    name: ClassVar[str] = "trainability"

    learning_rate: float = 0.0
    """Step size of gradient descent; 0: the experiment's own. Adam's is none: then only compare networks."""
    steps: int = 0
    """Gradient steps; 0: those of a task of the experiment."""
    tau: float = 0.5
    """Share of the targets' variance that may remain."""
    order: int = 64
    """Lanczos steps, unless the Gram matrix is cheaper."""
    probes: int = 2
    """Probe vectors, likewise."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "order", "probes", "examples", least=1)
        ranges.check(self, self.name, "learning_rate", "steps", least=0)
        ranges.check(self, self.name, "tau", above=0, most=1)

    def within(self, learning_rate: float, steps: int) -> TrainabilityProbe:
        """With an experiment's own budget in place of zeros."""
        return replace(self, learning_rate=self.learning_rate or learning_rate, steps=self.steps or steps)

    def build(self, model: Model) -> Probe:
        """The probe; see `plastax.curvature.trainability` for what each number does and does not imply.

        All outputs of all examples are regressed on their present values plus independent noise of mean zero and
        variance one, by the mean squared error: the stream's loss does not enter, so numbers compare across streams.
        Its values are the fields of `plastax.curvature.Trainability`, scalars: ``eps_star``; ``rank``, ``unstable``,
        ``reachable``, ``loss`` (1 before training) and ``floor`` with standard errors ``<name>_se``; ``required`` and
        ``trainable``.

        Raises:
          ConfigError: if the budget is still zero.
        """
        del model
        for name in ("learning_rate", "steps"):
            if not getattr(self, name):
                raise ConfigError(f"trainability.{name}: 0 is only allowed in an experiment; give a number above 0")

        def outputs(seen: ProbeInput, params: Params, batch: Tree) -> Array:
            return flat_outputs(seen.outputs_fn(params, batch))

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            shape = jax.eval_shape(lambda: outputs(seen, seen.params, seen.batch))
            # Only the size of the residual matters: one in every entry that counts.
            residual, entries = jnp.ones(shape.shape, shape.dtype), None
            if (counted := seen.counted_fn(seen.batch)) is not None:
                residual *= flat_counted(counted, shape.shape[1])
                entries = jnp.sum(residual)
            # Outputs of padding are zero. The factor makes a mean over all entries one over those that count.
            scale = 1.0 if entries is None else jnp.sqrt(residual.size / entries)
            spectrum = curvature.ggn_spectrum(
                lambda params, data: scale * outputs(seen, params, data[0]),
                seen.params,
                (seen.batch, residual),
                "mse",
                seen.key,
                order_within(self.order, seen),
                self.probes,
            )
            found = curvature.trainability(
                spectrum, residual, self.learning_rate, self.steps, self.tau, entries
            )._asdict()
            values: dict[str, Array] = {}
            for name, value in found.items():
                if isinstance(value, curvature.Estimate):
                    values |= {name: value.value, f"{name}_se": value.standard_error}
                else:
                    values[name] = value
            return values

        return Probe(self.name, measure, {}, {}, every=self.every)
