"""Spectral regularisation: holds the largest singular value of every kernel near one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Matrices, Settings, add_scaled, matrices_of, transformation, vmapped
from plastax.roles import STRUCTURE, RolesOf, from_matrices, matrices, of_model, stack_of
from plastax.types import Array, Method, Model, Params, Tree

Variant = Literal["warm", "lop_jax"]


@dataclass(frozen=True)
class SpectralNorm(Settings):
    """Spectral regularisation: keeps the largest singular value of every kernel near a target, biases near zero."""

    off: ClassVar = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the penalty (paper: 1e-2 to 1e-4)."""
    target: float = 1.0
    """Target of the largest singular value to the power of the exponent (lop_jax: 2)."""
    exponent: int = 2
    """Power k that the singular value and the biases' norm are raised to (paper: 2)."""
    iterations: int = 1
    """Power iterations for a kernel at each step (lop_jax: 10, from scratch)."""
    variant: Variant = "warm"
    """warm: singular vectors are carried along | lop_jax: as in the code of arXiv 2509.22335, see `spectral_norm`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("exponent", "iterations", least=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(spectral_norm, inner)``."""
        return optax.chain(spectral_norm(**vars(self), roles=of_model(model)), inner)


class SpectralNormState(NamedTuple):
    """Kernel's name -> estimate of its leading right singular vector, a unit vector ``[*stack, units]``."""

    vectors: dict[str, Array]


def _start(params: Params, found: Matrices) -> dict[str, Array]:
    """Unit vectors to start the iterations from, the same for every network."""
    leaves = tree.named_leaves(params)
    starts = {}
    for key, (name, (role, kernel)) in zip(jax.random.split(jax.random.key(0), len(found)), found.items()):
        w = matrices(leaves[name], role, kernel)
        starts[name] = _unit(jax.random.normal(key, (*w.shape[:-2], w.shape[-1]), tree.wide_type(w)))
    return starts


def _unit(v: Array) -> Array:
    size = jnp.sqrt(jnp.sum(jnp.square(v), -1, keepdims=True))
    # A kernel of zeros has no leading vector; its gradient is zero for any vector.
    return v / jnp.where(size > 0, size, 1)


def _iterate(w: Array, v: Array, iterations: int) -> tuple[Array, Array]:
    """Leading (left, right) singular vectors of ``[d, c]`` after that many power iterations."""

    def turn(_: int, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        u = _unit(w @ vectors[1])
        right = u @ w
        # A kernel of zeros leaves the vector as it is, so that iterations can start once it has other entries.
        return u, jnp.where(jnp.any(right != 0), _unit(right), vectors[1])

    return jax.lax.fori_loop(0, iterations, turn, (jnp.zeros_like(w[:, 0]), v))


def spectral_norm(
    strength: float | Array = SpectralNorm.strength,
    target: float | Array = SpectralNorm.target,
    exponent: int = SpectralNorm.exponent,
    iterations: int = SpectralNorm.iterations,
    variant: Variant = SpectralNorm.variant,
    roles: RolesOf = STRUCTURE,
) -> Method:
    """Adds the gradient of a penalty on the scale of every layer to the gradient, before the optimiser.

    The penalty is ``strength * [sum_W (sigma(W)^k - target)^2 + sum_b |b|^k + sum_g |g - 1|^2]``, where ``sigma`` is
    the largest singular value and ``k`` is ``exponent``. The sums are over all kernels W (the output's too;
    convolutions as ``[h * w * c_in, c_out]``), biases b (normalisations' too) and scales g of normalisations. Other
    parameters are left alone.

    warm: the leading singular vectors u, v are carried from step to step and improved by ``iterations`` power
    iterations. The gradient ``2 (sigma^k - target) k sigma^(k-1) u v^T`` takes them as constants. It is exact once they
    have converged, and small steps of the weights keep them close to that.

    lop_jax: the form of arXiv 2509.22335's code. At every step it iterates from one fixed random start and takes the
    gradient through the iterations; biases are always squared. There ``target`` is 2 (``sigma`` goes to ``sqrt(2)``),
    with 10 iterations and ``k`` 2. Its random start vectors are others.

    The settings are those of `SpectralNorm`; ``roles`` says what the parameters are.

    References:
      Lewandowski et al., "Learning continually by spectral regularization", arXiv 2406.06811; the term of the biases as
      in the survey of Klein et al., arXiv 2411.04832 (at k = 2 also that code's).

    Examples:
      >>> from plastax import methods
      >>> tx = methods.spectral_norm(0.1, iterations=20)
      >>> params = {"dense": {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}}
      >>> updates, _ = tx.update({"dense": {"kernel": jnp.zeros((2, 2))}}, tx.init(params), params)
      >>> print(jnp.round(jnp.diag(updates["dense"]["kernel"]), 3))
      [0.  2.4]
    """

    def penalty(w: Array, v: Array) -> Array:
        u, v = _iterate(w, v, iterations)
        return jnp.square((u @ w @ v) ** exponent - target)

    def of_bias(x: Array) -> Array:
        k = 2 if variant == "lop_jax" else exponent
        square = jnp.sum(jnp.square(x))
        return jnp.where(square > 0, k * jnp.where(square > 0, square, 1) ** (k / 2 - 1), 0) * x

    def of_kernel(w: Array, v: Array) -> tuple[Array, Array]:
        """The gradient, and the leading vector."""
        if variant == "lop_jax":
            return jax.grad(penalty)(w, v), v
        u, v = _iterate(w, v, iterations)
        sigma = u @ w @ v
        factor = 2 * (sigma**exponent - target) * exponent * sigma ** (exponent - 1)
        return factor * u[:, None] * v[None, :], v

    def init(params: Params) -> SpectralNormState:
        found = matrices_of(params, roles, "spectral_norm")
        return SpectralNormState(_start(params, found) if variant == "warm" else {})

    def update(updates: Tree, state: SpectralNormState, params: Params, **_: object) -> tuple[Tree, SpectralNormState]:
        vectors = dict(state.vectors)
        found, known = matrices_of(params, roles, "spectral_norm"), roles.of(params)
        start = vectors or _start(params, found)

        def slope(name: str, x: Array) -> Array:
            if name in found:
                role, kernel = found[name]
                w = tree.wide(matrices(x, role, kernel))
                slope, v = vmapped(of_kernel, w.ndim - 2)(w, start[name])
                if name in vectors:
                    vectors[name] = v
                return from_matrices(slope, role, kernel)
            if known[name].kind == "scale":
                return 2 * (x - 1)
            if known[name].kind in ("bias", "offset"):
                # At k = 2 the gradient of an entry does not depend on the others.
                stacked = 0 if exponent == 2 else stack_of(name, known[name], "spectral_norm")
                return vmapped(of_bias, stacked)(tree.wide(x))
            return jnp.zeros_like(x)

        return add_scaled(updates, strength, tree.map_named(slope, params)), SpectralNormState(vectors)

    return transformation("spectral_norm", init, update, strength=strength, target=target)
