"""Direction-aware shrinking: shrinks the weights that the new data does not ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import roles, tree
from plastax.methods.base import AtBoundary, Settings, around, at_boundary
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class Dash(Settings):
    """DASH: at a task switch shrinks each unit's weights, the more the less the new data asks for them.

    See `dash`.
    """

    needs_boundary: ClassVar = True
    off: ClassVar = {"batches": 0}

    floor: float = 0.3
    """Smallest factor that a weight is multiplied by: the paper's lambda (the authors on CIFAR-10: 0.3)."""
    alpha: float = 0.3
    """Weight of the newest batch in the running mean of the gradients (the authors on CIFAR-10: 0.3)."""
    batches: int = 10
    """Batches of the new data that are looked at and not trained on."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``dash`` around ``inner``."""
        return dash(inner, **vars(self), roles=of_model(model))


class DashState(NamedTuple):
    """State of the optimiser, running mean of the gradients since the switch, and number of batches still to come."""

    inner: Tree
    mean: Params
    left: Array


def factors(params: Params, mean: Params, floor: float | Array, roles_of: RolesOf = STRUCTURE) -> Params:
    """The factor of each weight, in a shape that broadcasts to it: ``max(floor, cos(w, -mean))``, unit by unit.

    These weights are compared as one vector: all that a unit reads (a column of a dense kernel ``[in, out]``); of a
    convolution ``[h, w, in, out]`` those of one input channel to one output channel; a whole bias vector. Normalisation
    layers and parameters of no layer have the factor 1.

    Raises:
      ConfigError: there is no kernel, or a kernel's axes are unclear.
    """
    found = roles_of.of(params)
    kernels = roles.kernels(found, "dash")

    def factor(name: str, w: Array, g: Array) -> Array:
        w, g = tree.wide((w, g))
        role = found[name]
        if name in kernels:
            kernel = roles.axes(name, role, "dash", places=True)
            axes = kernel.places or kernel.inputs
        elif role.kind == "bias":
            axes = tuple(range(roles.stack_of(name, role, "dash"), w.ndim))
        else:
            return jnp.ones((1,) * w.ndim, w.dtype)
        inner = jnp.sum(w * g, axes, keepdims=True)
        norms = jnp.sqrt(jnp.sum(w * w, axes, keepdims=True) * jnp.sum(g * g, axes, keepdims=True))
        return jnp.maximum(floor, -inner / jnp.maximum(norms, 1e-8))

    return tree.map_named(factor, params, mean)


def dash(
    inner: optax.GradientTransformation,
    floor: float | Array = Dash.floor,
    alpha: float | Array = Dash.alpha,
    batches: int = Dash.batches,
    roles: RolesOf = STRUCTURE,
) -> AtBoundary:
    """After a task switch looks at some batches of the new data, then shrinks the weights that point elsewhere.

    A method sees one batch at a time. In the first ``batches`` calls after a switch the network and the optimiser's
    state therefore stand still while ``mean <- (1 - alpha) mean + alpha g``. In the last of these calls the weights are
    multiplied by `factors`; training continues with the next batch. So all gradients are those of the weights before
    the switch, as in the paper, and these batches are not trained on. Between switches it is ``inner``. At the next
    switch the mean starts from zero.

    The authors' code goes once through all data so far. At alpha = 0.3 all batches but the last 10 have a weight of
    0.7^10 = 3 % together, so the default looks at 10. The optimiser's state stays, as there.

    The settings are those of `Dash`; ``roles`` says what the parameters are.

    References:
      Shin et al., "DASH: warm-starting neural network training in stationary settings without loss of plasticity",
      NeurIPS 2024, arXiv 2410.23495, algorithm 1.

    Examples:
      >>> from plastax import methods
      >>> params = {"dense": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
      >>> grads = {"dense": {"kernel": -jnp.array([[1.0, 1.0], [0.0, 0.0]]), "bias": jnp.zeros(2)}}
      >>> tx = methods.dash(optax.sgd(0.1), batches=1)
      >>> _, state = tx.update(grads, tx.init(params), params, key=jax.random.key(0), boundary=True)
      >>> updates, _ = tx.update(grads, state, params, key=jax.random.key(0), boundary=False)
      >>> print(jnp.diag(optax.apply_updates(params, updates)["dense"]["kernel"]))
      [1.  0.3]
    """
    optimiser = optax.with_extra_args_support(inner)

    def init(params: Params) -> DashState:
        zeros = tree.wide(jax.tree.map(jnp.zeros_like, params))
        jax.eval_shape(lambda: factors(params, zeros, floor, roles))
        return DashState(inner.init(params), zeros, jnp.zeros((), jnp.int32))

    def step(updates: Tree, state: DashState, params: Params, **extra: Any) -> tuple[Tree, DashState]:
        looking, last = state.left > 0, state.left == 1
        steps, inner_state = optimiser.update(updates, state.inner, params, boundary=False, **extra)
        # Not a branch: the state is each seed's own.
        mean = jax.tree.map(lambda m, g: jnp.where(looking, (1 - alpha) * m + alpha * g, m), state.mean, updates)
        rate = extra.get("rate", 1.0)
        shrunk = jax.tree.map(lambda w, f: (f - 1) * w / rate, params, factors(params, mean, floor, roles))
        moves = jax.tree.map(lambda s, u: jnp.where(last, s, jnp.where(looking, 0.0, u)), shrunk, steps)
        kept = jax.tree.map(lambda old, new: jnp.where(looking, old, new), state.inner, inner_state)
        return tree.cast(moves, updates), DashState(kept, mean, jnp.maximum(state.left - 1, 0))

    def look(params: Params, state: DashState, **_: Any) -> tuple[Params, DashState]:
        return params, state._replace(
            mean=jax.tree.map(jnp.zeros_like, state.mean), left=jnp.full_like(state.left, batches)
        )

    return at_boundary(around(inner, init, step), look)
