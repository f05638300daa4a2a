"""How far the budget of a task can get: linearised training on random targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import curvature
from plastax.errors import ConfigError
from plastax.probes.base import Settings, order_within, thinned
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


@dataclass(frozen=True)
class TrainabilityProbe(Settings):
    """What a task's budget of gradient steps could fit of random targets, if the network stayed linear."""

    name: ClassVar[str] = "trainability"

    learning_rate: float = 0.0
    """Step size of gradient descent; 0: the experiment's own. Adam's is not one: then compare networks, no more."""
    steps: int = 0
    """Gradient steps; 0: those of a task of the experiment."""
    tau: float = 0.5
    """Share of the targets' variance that may be left."""
    order: int = 64
    """Lanczos steps, where the spectrum is not taken by the Gram matrix."""
    probes: int = 2
    """Probe vectors, likewise."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("order", "probes", "examples")
        for name in ("learning_rate", "steps"):
            if not getattr(self, name) >= 0:
                message = f"trainability.{name}: {getattr(self, name)} is not allowed; give 0 or more"
                raise ConfigError(message)
        if not 0 < self.tau <= 1:
            message = f"trainability.tau: {self.tau} is not allowed; give a number above 0, at most 1"
            raise ConfigError(message)

    def within(self, learning_rate: float, steps: int) -> TrainabilityProbe:
        """With an experiment's own budget where none was given."""
        return replace(self, learning_rate=self.learning_rate or learning_rate, steps=self.steps or steps)

    def build(self, model: Model) -> Probe:
        """The probe; see `plastax.curvature.trainability` for what each number does and does not imply.

        All outputs of all examples are regressed on independent targets of mean zero and variance one away from what
        they are now, by the mean squared error: the loss of the stream does not enter, so that numbers compare across
        streams. Its values are the fields of `plastax.curvature.Trainability`, scalars: ``eps_star``; ``rank``,
        ``unstable``, ``reachable``, ``loss`` (1 before training) and ``floor`` with standard errors ``<name>_se``;
        ``required`` and ``trainable``.

        Raises:
          ConfigError: if the budget is still zero.
        """
        del model
        for name in ("learning_rate", "steps"):
            if not getattr(self, name):
                message = (
                    f"trainability.{name}: 0 is not allowed where no experiment fills it in; give a number above 0"
                )
                raise ConfigError(message)

        def outputs(seen: ProbeInput, params: Params, batch: Tree) -> Array:
            leaves = jax.tree.leaves(seen.outputs_fn(params, batch))
            return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            shape = jax.eval_shape(lambda: outputs(seen, seen.params, seen.batch))
            # Targets only matter through the residual's size: one in every entry.
            residual = jnp.ones(shape.shape, shape.dtype)
            spectrum = curvature.ggn_spectrum(
                lambda params, data: outputs(seen, params, data[0]),
                "mse",
                seen.params,
                (seen.batch, residual),
                seen.key,
                order_within(self.order, seen),
                self.probes,
            )
            found = curvature.trainability(spectrum, residual, self.learning_rate, self.steps, self.tau)._asdict()
            values: dict[str, Array] = {}
            for name, value in found.items():
                if isinstance(value, curvature.Estimate):
                    values |= {name: value.value, f"{name}_se": value.standard_error}
                else:
                    values[name] = value
            return values

        return Probe(self.name, measure, {}, {}, every=self.every)
