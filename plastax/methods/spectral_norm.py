"""Spectral regularisation: the largest singular value of every kernel is held near one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods.base import Settings, add_scaled, at_least_one, is_kernel
from plastax.types import Array, Method, Model, Params, Tree

Variant = Literal["warm", "lop_jax"]


class SpectralNormState(NamedTuple):
    """Kernel's name -> estimate of its leading right singular vector, a unit vector ``[c_out]``."""

    vectors: dict[str, Array]


def _start(params: Params) -> dict[str, Array]:
    """Unit vectors to iterate from, the same for every network."""
    kernels = {name: w for name, w in tree.named_leaves(params).items() if is_kernel(name)}
    keys = jax.random.split(jax.random.key(0), max(1, len(kernels)))
    draws = {name: jax.random.normal(k, w.shape[-1:], w.dtype) for k, (name, w) in zip(keys, kernels.items())}
    return {name: _unit(v) for name, v in draws.items()}


def _unit(v: Array) -> Array:
    size = jnp.sqrt(jnp.sum(jnp.square(v)))
    # A kernel of zeros has no leading vector; its gradient is zero whatever stands here.
    return v / jnp.where(size > 0, size, 1)


def _iterate(w: Array, v: Array, iterations: int) -> tuple[Array, Array]:
    """Leading (left, right) singular vectors of ``[d, c]`` after so many power iterations."""

    def turn(_: int, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        u = _unit(w @ vectors[1])
        return u, _unit(u @ w)

    return jax.lax.fori_loop(0, iterations, turn, (jnp.zeros_like(w[:, 0]), v))


def spectral_norm(
    strength: float | Array = 1e-3,
    target: float | Array = 1.0,
    exponent: int = 2,
    iterations: int = 1,
    variant: Variant = "warm",
) -> Method:
    """Adds the gradient of a penalty on the scale of every layer to the gradient, before the optimiser.

    ``strength * [sum_W (sigma(W)^k - target)^2 + sum_b |b|^k + sum_g |g - 1|^2]`` with ``sigma`` the largest singular
    value, over all kernels (the output's too; of convolutions as ``[h * w * c_in, c_out]``), biases (normalisations'
    too) and scales of normalisations; other parameters are left alone. ``k`` is ``exponent``.

    warm: the leading singular vectors u, v are carried from step to step and moved on by ``iterations`` power
    iterations, and the gradient ``2 (sigma^k - target) k sigma^(k-1) u v^T`` takes them as they are; right where they
    have converged, which small steps of the weights keep them close to.

    lop_jax: as the code of arXiv 2509.22335 has it: iterations from one fixed random start at every step, through which
    the gradient is taken, and biases always squared. There ``target`` is 2 (``sigma`` goes to ``sqrt(2)``), with
    10 iterations and ``k`` 2. Its start vectors are other random ones.

    References:
      Lewandowski et al., "Learning continually by spectral regularization", arXiv 2406.06811; the term of the biases as
      in the survey of Klein et al., arXiv 2411.04832 (at k = 2 also that code's).
    """

    def penalty(w: Array, v: Array) -> Array:
        u, v = _iterate(w, v, iterations)
        return jnp.square((u @ w @ v) ** exponent - target)

    def init(params: Params) -> SpectralNormState:
        return SpectralNormState(_start(params) if variant == "warm" else {})

    def update(updates: Tree, state: SpectralNormState, params: Params, **_: object) -> tuple[Tree, SpectralNormState]:
        vectors = dict(state.vectors)
        start = vectors or _start(params)

        def slope(name: str, x: Array) -> Array:
            if is_kernel(name):
                w = x.reshape(-1, x.shape[-1])
                if variant == "lop_jax":
                    return jax.grad(penalty)(w, start[name]).reshape(x.shape)
                u, v = _iterate(w, start[name], iterations)
                sigma, vectors[name] = u @ w @ v, v
                factor = 2 * (sigma**exponent - target) * exponent * sigma ** (exponent - 1)
                return (factor * u[:, None] * v[None, :]).reshape(x.shape)
            if name.endswith("scale"):
                return 2 * (x - 1)
            if name.endswith("bias"):
                k = 2 if variant == "lop_jax" else exponent
                square = jnp.sum(jnp.square(x))
                return jnp.where(square > 0, k * jnp.where(square > 0, square, 1) ** (k / 2 - 1), 0) * x
            return jnp.zeros_like(x)

        return add_scaled(updates, strength, tree.map_named(slope, params)), SpectralNormState(vectors)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class SpectralNorm(Settings):
    """Spectral regularisation: keeps the largest singular value of every kernel near a target, biases near zero."""

    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the penalty (paper: 1e-2 to 1e-4)."""
    target: float = 1.0
    """Of the largest singular value to the power of the exponent (lop_jax: 2)."""
    exponent: int = 2
    """Power k that the singular value and the biases' norm are raised to (paper: 2)."""
    iterations: int = 1
    """Power iterations a kernel and step (lop_jax: 10, from scratch)."""
    variant: Variant = "warm"
    """warm: singular vectors are carried along | lop_jax: as the code of arXiv 2509.22335, see `spectral_norm`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "exponent", "iterations")
        if self.variant not in get_args(Variant):
            raise ConfigError.unknown("SpectralNorm.variant", self.variant, get_args(Variant))

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(spectral_norm, inner)``."""
        penalty = spectral_norm(self.strength, self.target, self.exponent, self.iterations, self.variant)
        return optax.chain(penalty, inner)
