"""TRAC: learns how far a network may go from its start, without a parameter to tune."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import dawsn

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods.base import Settings, transformation
from plastax.types import Array, Method, Model, Params, Tree

BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


def erfi(x: Array) -> Array:
    """The imaginary error function ``2 / sqrt(pi) int_0^x exp(t^2) dt``, by Dawson's integral.

    In float32 the relative error (against SciPy in float64) is at most 4e-6 up to x = 9.2, where the function is 3e35.
    Beyond 9.4 it overflows to infinity.
    """
    return 2 / math.sqrt(math.pi) * jnp.exp(jnp.square(x)) * dawsn(x)


@dataclass(frozen=True)
class Trac(Settings):
    """TRAC: scales the distance from the initial network by a parameter-free tuner around the optimiser."""

    off: ClassVar = None

    start: float = 1e-8
    """Scale from which growth starts."""
    eps: float = 1e-8
    """Keeps two divisions finite."""
    betas: tuple[float, ...] = BETAS
    """Discounts, one tuner for each."""
    clip: bool = True
    """Keep the scale at zero or more, as the authors' PyTorch code does and their JAX code does not; `trac` says what
    this does with small batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("betas", below=1)
        if not self.betas:
            raise ConfigError(f"{type(self).__name__}.betas: () is not allowed; give one discount or more")

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``trac`` around ``inner``."""
        return trac(inner, **vars(self))


class TracState(NamedTuple):
    """State of the optimiser; the reference; ``v`` and ``sigma`` of every discount ``[K]``; the sum of their scales."""

    inner: Tree
    reference: Params
    variance: Array
    sigma: Array
    scale: Array

    @property
    def recorded(self) -> dict[str, Array]:
        """``trac/scale``, S. With ``clip`` and S at or below zero, the network is its initial one."""
        return {"trac/scale": self.scale}


def trac(
    inner: optax.GradientTransformation,
    start: float | Array = Trac.start,
    eps: float | Array = Trac.eps,
    betas: tuple[float, ...] = Trac.betas,
    *,
    clip: bool = Trac.clip,
) -> Method:
    """Scales the distance that the optimiser ``inner`` has gone from the initial parameters, ``ref``.

    Let x be the parameters, g the gradient, u the step of ``inner``, S the last sum of scales. For every discount
    beta::

        d = (x - ref) / (S + eps)              where inner alone would be, from ref
        h = <g, d>
        v <- beta^2 v + h^2
        sigma <- beta sigma - h                positive if moving away pays
        s = start erfi(sigma / (sqrt(2 v) + eps)) / erfi(1 / sqrt(2))
        S <- sum of s over the discounts
        x <- ref + max(S, 0) (d + u)           without ``clip``: ref + S (d + u)

    sigma starts at 1e-8. The network hardly moves in the first dozens of steps: S grows exponentially from ``start``.
    With ``clip``, S <= 0 puts x at ref. There d, and so h, is zero, and S stays at or below zero forever: one gradient
    that points back at the second step is enough. With batches of one this is the fate of most seeds, whose network
    then equals the initial one to the last bit (34 of 40 on a linear task; with batches of 16, 1 of 40; without
    ``clip``, none). The programs record S as ``trac/scale``. If the step size falls within a task (`MethodArgs.rate`),
    u is the shorter step, and x still takes the value above.

    d is computed from the parameters, as in the authors' code, so it includes what other methods do to them. In float32
    a weight stays exactly at its reference until S d exceeds its rounding. The argument of erfi is cut off at 9, before
    it overflows (it does if h stays the same for 160 steps).

    The settings are those of `Trac`.

    References:
      Muppidi, Zhang and Yang, "Fast TRAC: a parameter-free optimizer for lifelong reinforcement learning", NeurIPS
      2024, arXiv 2405.16642, algorithms 1 and 2. Their JAX code does not clip S and starts each of its scales at
      ``start`` (which changes nothing, because d is zero then); the PyTorch code clips.

    Examples:
      >>> from plastax import methods
      >>> tx, params = methods.trac(optax.sgd(0.1), start=0.1), {"w": jnp.zeros(1)}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update({"w": -jnp.ones(1)}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(0 < params["w"][0] < 0.3, 0 < state.scale)
      True True
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> TracState:
        reference = jax.tree.map(jnp.copy, params)
        discounts = jnp.asarray(betas)
        return TracState(
            inner.init(params), reference, jnp.zeros_like(discounts), jnp.full_like(discounts, 1e-8), jnp.zeros(())
        )

    def update(updates: Tree, state: TracState, params: Params, **extra: Any) -> tuple[Tree, TracState]:
        steps, inner_state = inner.update(updates, state.inner, params, **extra)
        discounts, rate = jnp.asarray(betas), extra.get("rate", 1.0)
        way = jax.tree.map(lambda x, ref: (x - ref) / (state.scale + eps), params, state.reference)
        h = tree.dot(updates, way)
        variance = jnp.square(discounts) * state.variance + jnp.square(h)
        sigma = discounts * state.sigma - h
        argument = jnp.minimum(sigma / (jnp.sqrt(2 * variance) + eps), 9.0)
        scale = jnp.sum(start * erfi(argument) / erfi(jnp.asarray(1 / math.sqrt(2))))
        kept = jnp.maximum(scale, 0.0) if clip else scale
        moves = jax.tree.map(
            lambda ref, d, u, x: (ref + kept * (d + rate * u) - x) / rate, state.reference, way, steps, params
        )
        return moves, TracState(inner_state, state.reference, variance, sigma, scale)

    return transformation("trac", init, update, start=start, eps=eps)
