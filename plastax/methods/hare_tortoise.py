"""Hare and tortoise: a fast network that is set back to its own slow average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Periodic, due, never, transformation
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class HareTortoise(Periodic):
    """Hare and Tortoise: once in a while the network is set back to its own slow running mean."""

    period: int = 1000
    """Gradient steps from one return to the tortoise to the next."""
    mu: float = 0.999
    """Decay of the running mean; 1: always back to the initial network."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, hare_tortoise)``."""
        return optax.chain(inner, hare_tortoise(**vars(self)))


class HareTortoiseState(NamedTuple):
    """The slow network's parameters, in single precision at least, and the clock of the last call applied."""

    tortoise: Params
    last: Array


def hare_tortoise(mu: float | Array = HareTortoise.mu, period: int = HareTortoise.period) -> Method:
    """Keeps ``tortoise <- mu tortoise + (1 - mu) hare`` and sets ``hare <- tortoise`` every ``period`` steps.

    The hare is the network that is trained; here it also acts and is evaluated. Chain this after the optimiser, whose
    state stays as it is when the hare is set back. If the step size falls within a task (`MethodArgs.rate`), the hare
    takes the shorter steps, but still returns all the way.

    References:
      Lee et al., "Slow and steady wins the race: maintaining plasticity with hare and tortoise networks", ICML 2024,
      arXiv 2406.02596. There the tortoise is evaluated (in reinforcement learning it is also the target network).

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(1.0), methods.hare_tortoise(mu=0.5, period=1))
      >>> params = {"w": jnp.array([4.0])}
      >>> updates, _ = tx.update({"w": jnp.ones(1)}, tx.init(params), params, clock=0)
      >>> print(optax.apply_updates(params, updates)["w"])  # half of the way from 4 to 3
      [3.5]
    """

    def init(params: Params) -> HareTortoiseState:
        # A copy: the caller may donate the parameters' buffers.
        return HareTortoiseState(tree.wide(jax.tree.map(jnp.copy, params)), never())

    def update(
        updates: Tree,
        state: HareTortoiseState,
        params: Params,
        *,
        clock: Array,
        rate: float | Array = 1.0,
        every_step: bool = False,
        **_: object,
    ) -> tuple[Tree, HareTortoiseState]:
        tortoise = jax.tree.map(
            lambda slow, w, u: mu * slow + (1 - mu) * (w.astype(slow.dtype) + rate * u), state.tortoise, params, updates
        )
        updates = jax.lax.cond(
            due(period, clock, state.last, every_step, ends=True),
            lambda: tree.cast(jax.tree.map(lambda slow, w: (slow - w) / rate, tortoise, params), updates),
            lambda: updates,
        )
        return updates, HareTortoiseState(tortoise, jnp.asarray(clock, jnp.int32))

    return transformation("hare_tortoise", init, update, mu=mu)
