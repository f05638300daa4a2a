"""Plain programs that the curvature benchmark compares plastax with, beside other libraries."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.bench._problem import Batch, Params, loss
from plastax.types import Array

Product = Callable[[Array], Array]


def product_by_hand(params: Params, batch: Batch, vector: Params) -> Params:
    """The Hessian product that everybody writes."""
    return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (vector,))[1]


def products_alone(mv: Product, start: Array, count: int) -> Array:
    """As many products as Lanczos takes, each of the last one's unit vector."""

    def step(_: int, v: Array) -> Array:
        v = mv(v)
        return v / jnp.linalg.norm(v)

    return jax.lax.fori_loop(0, count, step, start / jnp.linalg.norm(start))


def padded_lanczos(mv: Product, start: Array, order: int) -> Array:
    """Lanczos with two passes over all rows of a padded basis, without a guard against breakdown: T, ``[K, K]``."""

    def step(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, q, diagonal, couplings = carry
        basis = basis.at[k].set(q)
        v = mv(q)
        first = basis @ v
        v = v - first @ basis
        second = basis @ v
        v = v - second @ basis
        norm = jnp.linalg.norm(v)
        return basis, v / norm, diagonal.at[k].set((first + second)[k]), couplings.at[k].set(norm)

    zeros = jnp.zeros(order)
    initial = (jnp.zeros((order, start.size)), start / jnp.linalg.norm(start), zeros, zeros)
    _, _, diagonal, couplings = jax.lax.fori_loop(0, order, step, initial)
    return tridiagonal(diagonal, couplings[:-1])


def published_lanczos(mv: Product, start: Array, order: int) -> Array:
    """Lanczos as google/spectral-density and the papers on it run it: T, ``[K, K]``.

    Eager, in a Python loop over steps and, inside, over earlier vectors: one sweep of modified Gram-Schmidt. Arrays are
    updated functionally, so every step copies the basis. ``mv`` is compiled.

    References:
      Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian eigenvalue density",
      ICML 2019, algorithm 1.
    """
    t = jnp.zeros((order, order))
    basis = jnp.zeros((order, start.size)).at[0].set(start / jnp.linalg.norm(start))
    coupling = 0.0
    for i in range(order):
        v = basis[i]
        w = mv(v) - coupling * (basis[i - 1] if i else 0.0)
        diagonal = jnp.dot(w, v)
        t = t.at[i, i].set(diagonal)
        w = w - diagonal * v
        for j in range(i):
            w = w - jnp.dot(w, basis[j]) * basis[j]
        coupling = jnp.linalg.norm(w)
        if i + 1 < order:
            t = t.at[i, i + 1].set(coupling).at[i + 1, i].set(coupling)
            basis = basis.at[i + 1].set(w / coupling)
    return jax.block_until_ready(t)


def tridiagonal(diagonal: Array, couplings: Array) -> Array:
    """The symmetric matrix ``[K, K]`` of ``[K]`` and ``[K - 1]``."""
    return jnp.diag(diagonal) + jnp.diag(couplings, 1) + jnp.diag(couplings, -1)
