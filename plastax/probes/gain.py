"""What a network gains on the new task over a fresh one, in its first updates: what `plastax predict` foretells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax import ranges
from plastax.errors import ConfigError
from plastax.probes.base import Need, ProbeConfig, thinned
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


def losses(
    loss_fn: Callable[[Params, Tree], Array],
    params: Params,
    batch: Tree,
    updates: tuple[int, ...],
    optimizer: optax.GradientTransformation,
) -> Array:
    """Losses ``[len(updates)]`` of a copy of ``params`` after each number of updates, all on one batch.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: where training starts; the caller's are not changed.
      batch: that the copy trains on, and whose loss is returned.
      updates: increasing numbers of gradient steps; 0: before the first.
      optimizer: for the copy, from a fresh state.
    """

    def step(carry: tuple[Params, Tree], _: None) -> tuple[tuple[Params, Tree], Array]:
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), loss

    # One more step than needed: the loss comes with the gradient, so the program has one network in it.
    _, found = jax.lax.scan(step, (params, optimizer.init(params)), None, length=updates[-1] + 1)
    return found[jnp.asarray(updates)]


@dataclass(frozen=True)
class GainProbe(ProbeConfig):
    """Loss after 1, 10 and 100 updates on the task's data, of a copy of the network and of a fresh network."""

    name: ClassVar[str] = "gain"
    needs: ClassVar[tuple[Need, ...]] = ("init",)

    updates: tuple[int, ...] = (1, 10, 100)
    """Numbers of gradient steps, increasing."""
    learning_rate: float = 1e-3
    """Step size of Adam, which trains both from a fresh state."""
    examples: int = 256
    """Examples of the probe batch (at most), all in every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "examples", least=1)
        ranges.check(self, self.name, "learning_rate", above=0)
        if not self.updates or self.updates[0] < 1 or list(self.updates) != sorted(set(self.updates)):
            raise ConfigError(f"gain.updates: {self.updates} is not allowed; give increasing numbers from 1 on")

    def build(self, model: Model) -> Probe:
        """The probe; see `losses`.

        Its values are along ``budget``, which is 0 and then `updates`. ``loss``: of the copy; ``fresh_loss``: of the
        fresh network, the same for all methods in a task of a seed; ``gain``: ``fresh_loss - loss``, positive where the
        network is better off than a fresh one. The loss is the one that training minimises, without penalties of the
        method, so the method trains neither copy.
        """
        optimizer, updates = optax.adam(self.learning_rate), (0, *self.updates)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            both = jax.tree.map(lambda *leaves: jnp.stack(leaves), seen.params, model.init(seen.key))
            loss, fresh = jax.vmap(lambda p: losses(seen.loss_fn, p, seen.batch, updates, optimizer))(both)
            return {"loss": loss, "fresh_loss": fresh, "gain": fresh - loss}

        dims = dict.fromkeys(("loss", "fresh_loss", "gain"), ("budget",))
        return Probe(self.name, measure, dims, {"budget": updates}, every=self.every)
