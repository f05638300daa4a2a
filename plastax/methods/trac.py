"""TRAC: how far from its start a network may go is learned, without a parameter to tune."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    In float32 the relative error is 4e-6 at most up to x = 9.2, where the function is 3e35 (against SciPy in float64);
    beyond 9.4 it overflows to infinity.
    """
    return 2 / math.sqrt(math.pi) * jnp.exp(jnp.square(x)) * dawsn(x)


class TracState(NamedTuple):
    """State of the optimiser; the reference; ``v`` and ``sigma`` of every discount ``[K]``; the sum of their scales."""

    inner: Tree
    reference: Params
    variance: Array
    sigma: Array
    scale: Array

    @property
    def recorded(self) -> dict[str, Array]:
        """``trac/scale``, S. At or below zero with ``clip``: the network is its initial one."""
        return {"trac/scale": self.scale}


def trac(
    inner: optax.GradientTransformation,
    start: float | Array = 1e-8,
    eps: float | Array = 1e-8,
    betas: tuple[float, ...] = BETAS,
    *,
    clip: bool = True,
) -> Method:
    """Scales the way that the optimiser ``inner`` has gone from the initial parameters, ``ref``.

    With x the parameters, g the gradient, u the step of ``inner``, S the last sum of scales, for every discount beta::

        d = (x - ref) / (S + eps)              where inner alone would be, from ref
        h = <g, d>
        v <- beta^2 v + h^2
        sigma <- beta sigma - h                positive where it pays to go on
        s = start erfi(sigma / (sqrt(2 v) + eps)) / erfi(1 / sqrt(2))
        S <- sum of s over the discounts
        x <- ref + max(S, 0) (d + u)           without ``clip``: ref + S (d + u)

    sigma starts at 1e-8. The network hardly moves in the first dozens of steps: S grows exponentially from ``start``.
    With ``clip``, S <= 0 puts x at ref, where d and so h are zero, and S stays so for ever: one gradient that points
    back at the second step is enough. In batches of one that is the end of most seeds, whose network then is the
    initial one to the last bit (34 of 40 on a linear task; of batches of 16, 1 of 40; without ``clip``, none). The
    programs record S as ``trac/scale``, which then stays at or below zero. Where the step size falls within a task
    (`MethodArgs.rate`), u is the shorter step, and x arrives whole.

    d is read off the parameters, as in the authors' code, so what other methods do to them counts; in float32 a weight
    stays exactly at its reference until S d exceeds its rounding.

    References:
      Muppidi, Zhang and Yang, "Fast TRAC: a parameter-free optimizer for lifelong reinforcement learning", NeurIPS
      2024, arXiv 2405.16642, algorithms 1 and 2. Their JAX code does not clip S and starts its scales at ``start``
      each (which touches nothing, as d is zero then); the PyTorch code clips. Beyond 9 the argument of erfi is
      cut off here, before it overflows (where h was the same for 160 steps).
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


@dataclass(frozen=True)
class Trac(Settings):
    """TRAC: scales the distance from the initial network by a parameter-free tuner around the optimiser; see `trac`."""

    off: ClassVar[Mapping[str, Any] | None] = None

    start: float = 1e-8
    """Scale that growth starts from."""
    eps: float = 1e-8
    """Keeps two divisions finite."""
    betas: tuple[float, ...] = BETAS
    """Discounts, one tuner each."""
    clip: bool = True
    """Keep the scale at zero or more (the authors' PyTorch code); else not (their JAX code): see `trac` for batches of
    few examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas or not all(0 <= beta < 1 for beta in self.betas):
            message = f"{type(self).__name__}.betas: {self.betas} is not allowed; give numbers from 0 to below 1"
            raise ConfigError(message)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``trac`` around ``inner``."""
        return trac(inner, self.start, self.eps, self.betas, clip=self.clip)
