"""Stochastic Lanczos quadrature: makes a `Spectrum` of an operator."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import jax
import jax.numpy as jnp

from plastax import linalg, sharding, tree
from plastax.curvature import checks, products, spread
from plastax.curvature.lanczos import (
    Reorthogonalise,
    Tridiagonal,
    compiled,
    kept_rows,
    tridiagonalise,
    tridiagonalise_on_host,
)
from plastax.curvature.memory import Place, at_once, check, device_memory, run_bytes
from plastax.curvature.operators import flatten
from plastax.curvature.spectrum import Spectrum
from plastax.types import Array, Key, Operator


def spectrum(
    op: Operator,
    key: Key,
    order: int = 64,
    probes: int = 4,
    *,
    reorthogonalise: Reorthogonalise = "full",
    basis_dtype: Any = None,
    basis: Place = "device",
    batch: int | None = None,
) -> Spectrum:
    """Measures an operator's spectrum with ``order * probes`` products.

    Jittable and vmappable. On CPU probes run in turn, and so do seeds under `vmap`: it is faster there, and takes the
    memory of one basis, ``order * P`` numbers. On accelerators as many run side by side as fit half of the memory.
    `memory` tells beforehand how much that is.

    If the basis does not fit:

    * ``basis_dtype=jnp.bfloat16`` halves it (on CPU less: blocks of it are widened to be used). Nodes err by about
      ``5e-3 / sqrt(P)`` of the largest, which residuals do not include. Eigenvalues are still counted, but where Krylov
      spaces are exhausted (collapsed networks) only those above some percent of the largest; the others are estimated
      by weight.
    * ``basis="host"`` keeps it in the host's memory and costs only time. Not under `jit` or `vmap`.
    * ``reorthogonalise="none"``, or a number of last vectors to orthogonalise against, keeps only these. Ritz values
      then
      come in several copies. Nothing is counted one by one: all estimates are by weight, with the standard errors of
      weights. A residual still says that *an* eigenvalue is that close (Paige: within 2.5 times it), but the second
      value of `Spectrum.extreme` may be a copy of the first.

    If parameters are cut over devices (`jax.sharding.NamedSharding`, automatic mesh axes), every device keeps its own
    entries of all vectors, and the Lanczos run moves single numbers only. What a product moves is up to the network and
    its placement. Probe vectors, and so nodes up to rounding, are those of one device. In `jit` JAX does not say where
    arrays lie: give ``op._replace(like=...)`` shape structs that have a ``sharding`` (`plastax.sharding.shapes`).

    Args:
      op: a symmetric operator over P scalars.
      key: for the probe vectors; probe r of a key is the same for any number of probes.
      order: Lanczos steps K per probe: resolution. Clamped to P, with a warning; at P the spectrum is complete. Static.
      probes: number of probe vectors R: precision of sums over many eigenvalues. Static.
      reorthogonalise: ``"full"``, ``"none"`` or a number of vectors. Static.
      basis_dtype: of the stored basis; by default that of the vectors. Static.
      basis: where it is kept. Static.
      batch: how many probes, and then seeds, run side by side; see above for the default. Static.

    Returns:
      The spectrum, in float32 or the operator's wider type; NaN where the operator gives NaN.

    Raises:
      ValueError: if ``op`` is no operator or ``key`` no PRNG key, if ``order``, ``probes`` or ``batch`` is not
      positive,
        for other values of ``reorthogonalise`` or ``basis``, if anything is traced with ``basis="host"``, or for a
        placement that cannot be used (`plastax.sharding.cuts`).
      MemoryError: if one basis does not fit the device.

    References:
      Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl.
      38, 2017, algorithm 1. Chen, Trogdon and Ubaru, "Analysis of stochastic Lanczos quadrature for spectrum
      approximation", ICML 2021 (how many steps and probes). Chen, Trogdon and Ubaru, "Randomized matrix-free quadrature
      for spectrum and spectral sum approximation", 2022, section 5 (weights survive without reorthogonalisation).
      Paige, "Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem", 1980, equation 3.48.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> diagonal = jnp.zeros(100).at[:3].set(jnp.array([5.0, 3.0, -1.0]))
      >>> op = curvature.hessian(lambda w: jnp.vdot(diagonal, w**2) / 2, jnp.ones(100))
      >>> s = jax.jit(lambda key: curvature.spectrum(op, key, order=16, probes=2))(jax.random.key(0))
      >>> s.nodes.shape, [round(float(x), 3) for x in s.extreme(2).largest]
      ((2, 16), [5.0, 3.0])
    """
    checks.operator(op)
    checks.key(key)
    if order < 1 or probes < 1 or (batch is not None and batch < 1):
        raise ValueError(f"order, probes and batch must be positive, got {order}, {probes} and {batch}")
    if basis not in get_args(Place) or (basis == "host" and (reorthogonalise != "full" or basis_dtype is not None)):
        raise ValueError(f"basis must be 'device' or 'host', and 'host' has no other modes, got {basis!r}")
    check(op.like, order, reorthogonalise, basis_dtype, basis)
    cuts = sharding.cuts(op.like)
    mv, dim, dtype, draw = flatten(op) if cuts is None else spread.flatten(op, cuts)
    if order > dim:
        message = f"order {order} is more than the dimension {dim}; clamped to it, which makes the spectrum complete"
        warnings.warn(message, stacklevel=2)
        order = dim
    if basis == "host":
        mv = compiled(mv, jax.eval_shape(draw, key))
    ghosts = kept_rows(order, reorthogonalise) < order
    # Vectors rounded to a narrower type do not span the space up to rounding.
    complete = order == dim and not ghosts and jnp.dtype(basis_dtype or dtype).itemsize >= dtype.itemsize

    def tridiagonal(key: Key) -> Tridiagonal:
        start_key, restart_key = jax.random.split(key)
        start = draw(start_key)
        if basis == "host":
            return tridiagonalise_on_host(mv, start, restart_key, order, dim=dim, draw=draw)
        return tridiagonalise(
            mv, start, restart_key, order, reorthogonalise=reorthogonalise, basis_dtype=basis_dtype, dim=dim, draw=draw
        )

    def probe(key: Key) -> tuple[Array, ...]:
        t = tridiagonal(key)
        nodes, vectors = linalg.eigh(t.matrix())
        # A complete basis has every eigenvalue once: weights by count beat those of the quadrature.
        weights = jnp.full_like(nodes, 1.0 / dim) if complete else jnp.square(vectors[0])
        # With ghosts, eigenvalues may be missing or found twice: nothing may be counted.
        leftover = jnp.full_like(t.leftover, jnp.inf) if ghosts else t.leftover
        residuals = t.couplings[-1] * jnp.abs(vectors[-1])
        return nodes, weights, residuals, t.breakdowns, leftover

    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(probes))
    if basis == "host":
        found = jax.tree.map(lambda *rows: jnp.stack(rows), *(probe(keys[r]) for r in range(probes)))
    else:
        one = run_bytes(op.like, order, reorthogonalise, basis_dtype)
        room = batch or at_once(one, device_memory())
        found = jax.vmap(linalg.sequential(probe, batch=room))(keys)
    nodes, weights, residuals, breakdowns, leftovers = found
    coarsest = products.rounding(op.mv, op.like)
    unit = jnp.asarray(coarsest, dtype) if coarsest > jnp.finfo(dtype).eps else None
    if op.error is not None:
        vector = tree.normal_like(jax.random.fold_in(key, 2**31 - 1), op.like)
        size = tree.norm(vector) * jnp.max(jnp.abs(nodes))
        unit = (op.error(vector) / jnp.where(size == 0, 1.0, size)).astype(dtype)
    return Spectrum(nodes, weights, residuals, dim, breakdowns, leftovers, jnp.array(complete), unit)
