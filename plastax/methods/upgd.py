"""Utility-based perturbed gradient descent: useful weights move little, useless ones get noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Settings, transformation
from plastax.roles import STRUCTURE, Role, RolesOf, axes, of_model, shape_of, stack_of
from plastax.types import Array, Key, Method, Model, Params, Tree

Variant = Literal["global", "local", "released"]


@dataclass(frozen=True)
class UPGD(Settings):
    """UPGD: gates the optimiser's steps by each weight's utility and adds noise to useless weights.

    The paper's settings: SGD, one example a step; step sizes 1e-2 to 1e-5, beta .999 or .9999, sigma .01 to 1, weight
    decay 0 to 0.1. The default noise is that of a step size of 1e-2 with the sigma of 1e-3 of the authors' one-file
    version.
    """

    off: ClassVar = {"noise": 0.0, "decay": 0.0, "protecting": False}

    noise: float = 1e-5
    """Standard deviation of the noise: the paper's step size x sigma."""
    decay: float = 0.0
    """Share of every weight lost in a step: the paper's step size x weight decay."""
    beta: float = 0.999
    """Decay of the running mean of the utilities."""
    variant: Variant = "global"
    """global | local (utilities compared within a unit) | released (global, as the authors' code has it)."""
    protecting: bool = True
    """Gate the step as well as the noise; otherwise only the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", below=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``upgd`` around ``inner``."""
        return upgd(inner, **vars(self), roles=of_model(model))


class UPGDState(NamedTuple):
    """State of the optimiser, running mean of the utilities, and its number of steps."""

    inner: Tree
    utility: Params
    steps: Array


def upgd(
    inner: optax.GradientTransformation,
    noise: float | Array = UPGD.noise,
    decay: float | Array = UPGD.decay,
    beta: float | Array = UPGD.beta,
    *,
    variant: Variant = UPGD.variant,
    protecting: bool = UPGD.protecting,
    roles: RolesOf = STRUCTURE,
) -> Method:
    """Gates the steps of the optimiser ``inner`` by the utility of each weight, and adds noise to useless weights.

    With g the gradient, w the weight, u the step of ``inner`` and n standard normal, for every parameter::

        U <- beta U + (1 - beta) (-g w)          utility: first-order estimate of the loss without the weight
        U' = U / (1 - beta^t)
        s = sigmoid(U' / max U')                 the largest of all parameters; local: see below
        w <- w - decay w + (1 - s) (u + noise n)

    With plain SGD, u = -lr g, this is exactly the paper's UPGD-W, with ``noise`` for its lr * sigma and ``decay`` for
    lr * weight decay (the sign of the noise does not matter). Another optimiser's step is gated in place of the
    gradient's, and its state sees only the gradient. If no utility is positive, the formula has no meaning, and s is
    1/2 everywhere.

    Args:
      inner: the optimiser, or a method around it.
      noise: standard deviation of the noise.
      decay: share of every weight lost in a step, whatever its utility.
      beta: decay of the running mean of the utilities.
      variant: global, as above; local: U' is divided by its Euclidean norm over a unit's incoming weights in one kernel
        (or over a whole bias vector); released: as global, but the largest utility is taken before the bias correction,
        as in the authors' code, which makes s steeper by 1 / (1 - beta^t) early on.
      protecting: False: the paper's non-protecting form, w <- w - decay w + u + (1 - s) noise n.
      roles: for local: which axes of a kernel are a unit's.

    References:
      Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning", ICLR 2024,
      arXiv 2404.00781, algorithm 1. In the authors' code the local form normalises the last axis, which for
      convolutions is a row of the kernel; here it is all that a unit reads. Their one-file version takes steps of twice
      the step size.

    Examples:
      >>> from plastax import methods
      >>> tx, params = methods.upgd(optax.sgd(1.0), noise=0.0), {"w": jnp.array([1.0, 1.0])}
      >>> grads = {"w": jnp.array([-1.0, 1.0])}  # only the first weight is useful
      >>> updates, _ = tx.update(grads, tx.init(params), params, key=jax.random.key(0))
      >>> print([round(float(u), 2) for u in updates["w"]])
      [0.27, -0.73]
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> UPGDState:
        zeros = tree.wide(jax.tree.map(jnp.zeros_like, params))
        jax.eval_shape(lambda: gates(zeros, jnp.ones(())))
        return UPGDState(inner.init(params), zeros, jnp.zeros((), jnp.int32))

    def together(name: str, role: Role) -> tuple[int, ...]:
        """The axes along which the utilities of one unit lie; all axes of a vector."""
        size = len(role.shape)
        if role.kind == "kernel":
            return shape_of(role, axes(name, role, "upgd"))[1]
        if role.kind in ("bias", "scale", "offset"):
            return tuple(range(stack_of(name, role, "upgd"), size))
        return tuple(range(size - 1)) if size > 1 else tuple(range(size))

    def gates(utility: Params, correction: Array) -> Params:
        """1 - s."""
        if variant == "local":
            found = roles.of(utility)

            def scaled(name: str, u: Array) -> Array:
                axes = together(name, found[name])
                return u / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(u), axes, keepdims=True)), 1e-12)

            # The bias correction is the same factor for all, so it does not change the direction.
            scaled_utility = tree.map_named(scaled, utility)
        else:
            top = jax.tree.reduce(jnp.maximum, jax.tree.map(jnp.max, utility))
            top = top if variant == "released" else top / correction
            scale = jnp.where(top > 0, 1 / (correction * jnp.where(top > 0, top, 1.0)), 0.0)
            scaled_utility = jax.tree.map(lambda u: u * scale, utility)
        return jax.tree.map(lambda u: jax.nn.sigmoid(-u), scaled_utility)

    def update(updates: Tree, state: UPGDState, params: Params, *, key: Key, **extra: Any) -> tuple[Tree, UPGDState]:
        utility = jax.tree.map(lambda u, g, w: beta * u - (1 - beta) * g * w, state.utility, updates, params)
        count = optax.safe_increment(state.steps)
        gate = gates(utility, 1 - beta**count)
        steps, inner_state = inner.update(updates, state.inner, params, key=key, **extra)
        # A key of its own, because the optimiser may be a method that draws too.
        drawn = tree.normal_like(jax.random.fold_in(key, 1), params)

        def moved(u: Array, w: Array, n: Array, open_: Array) -> Array:
            shaken = open_ * (u + noise * n) if protecting else u + open_ * noise * n
            return shaken - decay * w

        return jax.tree.map(moved, steps, params, drawn, gate), UPGDState(inner_state, utility, count)

    return transformation("upgd", init, update, noise=noise, decay=decay, beta=beta)
