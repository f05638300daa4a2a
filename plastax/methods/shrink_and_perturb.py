"""Shrink and perturb: the five methods with this name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import (
    Periodic,
    add_scaled,
    at_boundary,
    due,
    fresh_params,
    never,
    require_draws,
    require_whole,
    transformation,
    without_norms,
)
from plastax.methods.l2 import l2
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Key, Method, Model, Params, Tree

Variant = Literal["periodic", "l2i", "gaussian", "upgd", "ash_adams"]


@dataclass(frozen=True)
class ShrinkAndPerturb(Periodic):
    """Shrink and Perturb: shrinks the weights and adds a little of a fresh initialisation, again and again.

    Publications mean different methods by it; ``variant`` names them (w: after the optimiser's step; xi: a fresh draw
    of the initialiser; n: standard normal):

    - ``periodic``: every `period` steps ``w <- (1 - shrink) w + perturb * xi``.
    - ``l2i``: the same at every step, as in Kumar et al. (arXiv 2308.11958) and their code.
    - ``gaussian``: at every step ``w <- w + perturb * n``, and the shrink is coupled L2 of strength ``shrink``, as in
      Dohare et al. (Nature 632, 2024) and in the code of arXiv 2509.22335, whose scale is 1e-5. Normalisation layers
      are left alone.
    - ``upgd``: at every step ``w <- w - shrink * w_before + perturb * n`` for all parameters: the baseline of Elsayed
      and Mahmood (arXiv 2404.00781), whose numbers times the step size are ``shrink`` and ``perturb`` here.
    - ``ash_adams``: ``w <- (1 - shrink) w + perturb * xi`` at task switches only (arXiv 1910.08475, section 4). The
      survey arXiv 2411.04832 writes it with ``perturb = shrink``. The defaults are for the other forms, too small here.

    Plasticine's pull towards one frozen initial network is L2 Init under another name.
    """

    off: ClassVar = {"shrink": 0.0, "perturb": 0.0}

    shrink: float = 1e-4
    """Share of every weight lost each time (Kumar et al., at every step: 1e-2 to 1e-5); gaussian: strength of L2."""
    perturb: float = 1e-4
    """Share of a freshly initialised network added each time; gaussian, upgd: standard deviation of the noise."""
    variant: Variant = "periodic"
    """periodic | l2i | gaussian | upgd (at every step) | ash_adams (at task switches)."""

    @property
    def needs_boundary(self) -> bool:  # type: ignore[override]
        """Whether it is the variant that acts at task switches."""
        return self.variant == "ash_adams"

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """The variant around ``inner``."""
        if self.variant not in ("gaussian", "upgd"):
            require_draws(model and model.init)
        if self.variant == "ash_adams":
            return shrink_and_perturb_at_boundary(inner, self.shrink, self.perturb)
        if self.variant == "gaussian":
            return optax.chain(
                l2(self.shrink, of_model(model)), inner, gaussian_noise(self.perturb, roles=of_model(model))
            )
        if self.variant == "upgd":
            return optax.chain(inner, shrink_weights(self.shrink), gaussian_noise(self.perturb, norms=True))
        period = 1 if self.variant == "l2i" else self.period
        return optax.chain(inner, shrink_and_perturb(self.shrink, self.perturb, period))


class ShrinkAndPerturbState(NamedTuple):
    """The clock of the last call that was applied."""

    last: Array


def shrink_and_perturb(
    shrink: float | Array = ShrinkAndPerturb.shrink,
    perturb: float | Array = ShrinkAndPerturb.perturb,
    period: int = ShrinkAndPerturb.period,
) -> Method:
    """Every ``period`` steps ``w <- (1 - shrink) w + perturb * xi``, where ``xi`` is a fresh draw of the initialiser.

    This is the continual form of Kumar et al. (arXiv 2308.11958, appendix): the noise has each layer's own scale and is
    drawn every time. There it acts at every step, which is ``period=1`` (an orthogonal draw at every step costs more
    than the step). Chain it after the optimiser.

    References:
      Ash and Adams, "On warm-starting neural network training", arXiv 1910.08475, section 4 (at a task switch).

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(1.0), methods.shrink_and_perturb(0.5, 0.1))
      >>> params = {"w": jnp.array([2.0])}
      >>> args = {"key": jax.random.key(0), "clock": 0, "init_fn": lambda key: {"w": jnp.ones(1)}}
      >>> updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params, **args)
      >>> print(optax.apply_updates(params, updates)["w"])
      [1.1]
    """

    def update(
        updates: Tree,
        state: ShrinkAndPerturbState,
        params: Params,
        *,
        key: Key,
        clock: Array,
        init_fn: Callable[[Key], Params],
        rate: float | Array = 1.0,
        every_step: bool = False,
        **_: object,
    ) -> tuple[Tree, ShrinkAndPerturbState]:
        def move(updates: Tree) -> Tree:
            fresh = fresh_params(init_fn, key, require_whole(params, "shrink_and_perturb"))

            def one(u: Array, w: Array, xi: Array) -> Array:
                return u - shrink * (w + rate * u) / rate + perturb * xi / rate

            return tree.cast(jax.tree.map(one, updates, params, fresh), updates)

        now = due(period, clock, state.last, every_step)
        return jax.lax.cond(now, move, lambda u: u, updates), ShrinkAndPerturbState(jnp.asarray(clock, jnp.int32))

    def init(params: Params) -> ShrinkAndPerturbState:
        return ShrinkAndPerturbState(never())

    return transformation("shrink_and_perturb", init, update, shrink=shrink, perturb=perturb)


def gaussian_noise(scale: float | Array, *, norms: bool = False, roles: RolesOf = STRUCTURE) -> Method:
    """Adds ``scale * N(0, 1)`` to every weight and bias at every step; chain it after the optimiser.

    Args:
      scale: standard deviation.
      norms: whether the scales and biases of normalisation layers get noise too.
      roles: which layers are normalisations.
    """

    def update(
        updates: Tree, state: optax.EmptyState, params: Params, *, key: Key, **_: object
    ) -> tuple[Tree, optax.EmptyState]:
        noise = tree.normal_like(key, params)
        noise = noise if norms else without_norms(noise, params, roles, "gaussian_noise")
        return add_scaled(updates, scale, noise), state

    return transformation("gaussian_noise", lambda _: optax.EmptyState(), update)


def shrink_weights(share: float | Array) -> Method:
    """``update - share * w`` for every parameter; chain it after the optimiser."""

    def update(updates: Tree, state: optax.EmptyState, params: Params, **_: object) -> tuple[Tree, optax.EmptyState]:
        return add_scaled(updates, -share, params), state

    return transformation("shrink_weights", lambda _: optax.EmptyState(), update)


def shrink_and_perturb_at_boundary(
    inner: optax.GradientTransformation, shrink: float | Array, perturb: float | Array
) -> Method:
    """At a task switch ``w <- (1 - shrink) w + perturb * xi``, where ``xi`` is a fresh draw of the initialiser.

    The optimiser's state stays, as in Ash and Adams, whose experiments restart the optimiser in every round anyway.
    """

    def act(
        params: Params, state: Tree, *, key: Key, init_fn: Callable[[Key], Params], **_: Any
    ) -> tuple[Params, Tree]:
        fresh = fresh_params(init_fn, key, require_whole(params, "shrink_and_perturb"))
        return jax.tree.map(lambda w, xi: (1 - shrink) * w + perturb * xi, params, fresh), state

    return at_boundary(inner, act)
