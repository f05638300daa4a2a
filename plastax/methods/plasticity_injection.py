"""Plasticity injection: freezes the head, and trains a new one that is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods.base import AtBoundary, Settings, around, at_boundary
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class PlasticityInjection(Settings):
    """Plasticity injection: freezes the head at a task switch, and trains a fresh one that is added to it.

    It is also a diagnosis: if it helps, plasticity was lost. The heads are in the network from the start, so that
    shapes stay fixed: n injections cost the forward passes of 1 + 2 n heads, even before the first injection.
    """

    needs_boundary: ClassVar = True
    off: ClassVar = None

    injections: int = 1
    """It acts at that many switches, the first ones; then the last head keeps learning."""
    head_layers: int = 2
    """Layers of the head, the output layer included: at least 2, because a linear layer would learn as before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("injections", least=1)

    @property
    def model_options(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The heads."""
        return {"injections": self.injections, "head_layers": self.head_layers}

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``plasticity_injection`` around ``inner``."""
        return plasticity_injection(inner, self.injections)


class InjectionState(NamedTuple):
    """State of the optimiser, and the number of injections so far."""

    inner: Tree
    done: Array


def trained(params: Params, head: tuple[str, ...], done: Array) -> Params:
    """A boolean for each array: whether it is trained after ``done`` injections.

    Shared layers always are. Of the heads only the newest is: the network's own before the first injection, then
    ``injection_<done - 1>/new``.
    """

    def active(name: str, _: Array) -> Array:
        if name.startswith("injection_"):
            which, kind, *_rest = name.split("/")
            return done == int(which.removeprefix("injection_")) + 1 if kind == "new" else jnp.zeros_like(done, bool)
        return done == 0 if tree.layer_of(name) in head else jnp.ones_like(done, bool)

    return tree.map_named(active, params)


def plasticity_injection(
    inner: optax.GradientTransformation, injections: int = PlasticityInjection.injections
) -> AtBoundary:
    """At each of the first ``injections`` task switches freezes the head and trains a fresh one beside it.

    The network is ``h(x) + sum_i (new_i(x) - frozen_i(x))`` (`plastax.models.injection`), where the two heads of a pair
    start equal and fresh. An injection therefore only changes what is trained: from then on h is frozen and ``new_i``
    learns. The output at that moment does not change by a bit, and the number of trained parameters never changes.
    Frozen parameters get neither gradient nor step, whatever the methods inside do; methods around this one can move
    them.

    References:
      Nikishin et al., "Deep reinforcement learning with plasticity injection", NeurIPS 2023, arXiv 2305.15555,
      expression 1. They inject once (and grow the network by further injections in one experiment). Their encoder is
      the convolutional part, and the head is everything after it.

    Examples:
      >>> from plastax import methods, models
      >>> model = models.MLP(hidden=(4, 4), injections=1, head_layers=2).build((3,), 2)
      >>> tx, params = methods.plasticity_injection(optax.sgd(1.0)), model.init(jax.random.key(0))
      >>> args = {"params": params, "key": jax.random.key(1)}
      >>> _, state = tx.update(params, tx.init(params), boundary=True, **args)
      >>> updates, _ = tx.update(params, state, boundary=False, **args)
      >>> print(bool(jnp.any(updates["output"]["kernel"])))  # the old head is frozen
      False
    """
    optimiser = optax.with_extra_args_support(inner)

    def init(params: Params) -> InjectionState:
        if not any(name.startswith("injection_0/new/") for name in tree.named_leaves(params)):
            raise ConfigError("plasticity_injection: the network has no further heads; give a model with injections")
        return InjectionState(inner.init(params), jnp.zeros((), jnp.int32))

    def step(updates: Tree, state: InjectionState, params: Params, **extra: Any) -> tuple[Tree, InjectionState]:
        copies = [name for name in tree.named_leaves(params) if name.startswith("injection_0/new/")]
        head = tuple({tree.layer_of(name.removeprefix("injection_0/new/")) for name in copies})
        active = trained(params, head, state.done)

        def keep(x: Tree) -> Tree:
            return jax.tree.map(lambda leaf, on: jnp.where(on, leaf, 0.0), x, active)

        steps, inner_state = optimiser.update(keep(updates), state.inner, params, boundary=False, **extra)
        return keep(steps), InjectionState(inner_state, state.done)

    def inject(params: Params, state: InjectionState, **_: Any) -> tuple[Params, InjectionState]:
        return params, state._replace(done=jnp.minimum(state.done + 1, injections))

    return at_boundary(around(inner, init, step), inject)
