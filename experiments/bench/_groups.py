"""What the curvature benchmark times: groups of sides that compute the same, plastax's first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import _references as references
from experiments.bench._measure import Roofline, Side, compiled
from experiments.bench._problem import (
    Batch,
    Params,
    Problem,
    flat,
    initial,
    loss,
    mean_and_error,
    no_taps,
    nodes,
    start_vector,
    tapped_loss,
    vector_product,
)
from plastax import curvature
from plastax.curvature import running
from plastax.curvature.kronecker import Factors, factors
from plastax.curvature.lanczos import tridiagonalise
from plastax.types import Array, Key

INTERVAL = 10
"""Training steps between Kronecker factors."""
LOOPED = 20
"""Most products in a loop that is timed for one of them."""
SMALL = 100_000
"""Most parameters of networks whose Lanczos runs are timed for many seeds."""


def lanczos_bounds(problem: Problem, roof: Roofline) -> tuple[float, float]:
    """Least seconds of a Lanczos run's products, and with one sweep a step, which reads the filled rows twice."""
    products = roof.seconds(problem.order * problem.product_flops(linearised=True))
    return products, products + roof.seconds(0.0, 2 * 4 * problem.dim * problem.order**2 / 2)


def product(problem: Problem, roof: Roofline) -> list[Side]:
    """One Hessian product, alone and inside a loop of many."""
    count = min(problem.order, LOOPED)

    def ours(params: Params, batch: Batch, vector: Params) -> Params:
        return curvature.hessian(loss, params, data=batch).mv(vector)

    def looped(params: Params, batch: Batch, start: Array) -> Array:
        return references.products_alone(vector_product(params, batch), start, count)

    args = (problem.params, problem.batch)
    alone, inside = (roof.seconds(problem.product_flops(linearised)) for linearised in (False, True))
    return [
        compiled("plastax", ours, *args, problem.vector, read=flat, bound_s=alone),
        compiled("jvp(grad) by hand", references.product_by_hand, *args, problem.vector, read=flat, bound_s=alone),
        compiled("plastax, inside a loop", looped, *args, start_vector(problem), units=count, bound_s=inside),
    ]


def lanczos(problem: Problem, roof: Roofline) -> list[Side]:
    """One probe's Lanczos run, up to the tridiagonal matrix."""
    order = problem.order

    def ours(params: Params, batch: Batch, start: Array) -> Array:
        return tridiagonalise(vector_product(params, batch), start, problem.key, order).matrix()

    def alone(params: Params, batch: Batch, start: Array) -> Array:
        return references.products_alone(vector_product(params, batch), start, order)

    def padded(params: Params, batch: Batch, start: Array) -> Array:
        return references.padded_lanczos(vector_product(params, batch), start, order)

    args = (problem.params, problem.batch, start_vector(problem))
    products, whole = lanczos_bounds(problem, roof)
    return [
        compiled("plastax", ours, *args, read=nodes, bound_s=whole, sweeps="1-2"),
        compiled("its products alone", alone, *args, bound_s=products),
        compiled("padded loop", padded, *args, read=nodes, bound_s=whole, sweeps="2"),
        Side("published pipeline", functools.partial(published(problem), args[2]), nodes, sweeps="1"),
    ]


def published(problem: Problem) -> Callable[[Array], Array]:
    """The published pipeline as a function of the start vector; its product is compiled here."""
    args = (problem.params, problem.batch)
    step = jax.jit(lambda params, batch, v: vector_product(params, batch)(v))
    program = step.lower(*args, start_vector(problem)).compile()
    return lambda start: references.published_lanczos(lambda v: program(*args, v), start, problem.order)


def quadrature(problem: Problem, roof: Roofline) -> list[Side]:
    """Several probes' Lanczos runs, up to nodes and weights."""

    def ours(params: Params, batch: Batch, key: Key) -> tuple[Array, Array]:
        op = curvature.hessian(loss, params, data=batch)
        s = curvature.spectrum(op, key, order=problem.order, probes=problem.probes)
        return s.nodes, s.weights

    def read(out: tuple[Array, Array]) -> np.ndarray:
        return mean_and_error(problem.dim * (out[0] * out[1]).sum(1))

    starts = jax.random.normal(problem.key, (problem.probes, problem.dim))
    one = published(problem)

    def one_by_one() -> list[Array]:
        return [one(start) for start in starts]

    def read_matrices(ts: list[Array]) -> np.ndarray:
        return mean_and_error([problem.dim * t[0, 0] for t in ts])

    bound = problem.probes * lanczos_bounds(problem, roof)[1]
    return [
        compiled("plastax", ours, problem.params, problem.batch, problem.key, read=read, bound_s=bound, sweeps="1-2"),
        Side("published pipeline", one_by_one, read_matrices, sweeps="1"),
    ]


def tapped_gradients(params: Params, taps: list[Array], batch: Batch) -> tuple[Params, dict[str, Factors]]:
    """Gradient and Kronecker factors from one forward and backward pass."""
    (grads, tap_grads), inputs = jax.grad(tapped_loss, argnums=(0, 1), has_aux=True)(params, taps, batch)
    return grads, factors(named(inputs), named(tap_grads))


def named(layers: list[Array]) -> dict[str, Array]:
    """Layer name -> array."""
    return {f"{i}": x for i, x in enumerate(layers)}


def kronecker_factors(problem: Problem, roof: Roofline) -> list[Side]:
    """All layers' Kronecker factors, from their inputs and gradients."""
    taps = no_taps(problem)
    tap_grads, inputs = jax.grad(tapped_loss, argnums=1, has_aux=True)(problem.params, taps, problem.batch)
    extended = [jnp.concatenate([x, jnp.ones((problem.examples, 1))], axis=1) for x in inputs]

    def products(arrays: list[Array]) -> list[Array]:
        return [x.T @ x for x in arrays]

    bound = roof.seconds(problem.factor_flops())
    return [
        compiled("plastax", factors, named(inputs), named(tap_grads), bound_s=bound),
        compiled("their products alone", products, [*extended, *tap_grads], bound_s=bound),
    ]


def factors_and_passes(problem: Problem, roof: Roofline) -> list[Side]:
    """The same with the forward and backward pass that they come from."""
    del roof

    def ours(params: Params, taps: list[Array], batch: Batch) -> dict[str, Factors]:
        return tapped_gradients(params, taps, batch)[1]

    return [compiled("plastax", ours, problem.params, no_taps(problem), problem.batch, read=flat)]


def training_step(problem: Problem, roof: Roofline) -> list[Side]:
    """A step of gradient descent, without factors and with running ones at an interval."""
    del roof
    params, batch, taps = problem.params, problem.batch, no_taps(problem)
    like = jax.eval_shape(tapped_gradients, params, taps, batch)[1]

    def descend(params: Params, grads: Params) -> Params:
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    def plain(params: Params, batch: Batch) -> Params:
        return jax.lax.fori_loop(0, INTERVAL, lambda _, p: descend(p, jax.grad(loss)(p, batch)), params)

    def with_factors(params: Params, taps: list[Array], batch: Batch) -> tuple[Params, running.Running]:
        def step(k: Array, carry: tuple[Params, running.Running]) -> tuple[Params, running.Running]:
            params, average = carry
            gradient = jax.grad(tapped_loss, argnums=(0, 1), has_aux=True)
            (grads, tap_grads), inputs = gradient(params, taps, batch)
            average = jax.lax.cond(
                k % INTERVAL == 0,
                lambda a: running.update(a, factors(named(inputs), named(tap_grads)), 0.95),
                lambda a: a,
                average,
            )
            return descend(params, grads), average

        return jax.lax.fori_loop(0, INTERVAL, step, (params, running.start(like)))

    return [
        compiled("without factors", plain, params, batch, units=INTERVAL, read=flat),
        compiled(
            "with factors", with_factors, params, taps, batch, units=INTERVAL, read=lambda out: flat(out[0])
        ),
    ]  # fmt: skip


def products_of_probes(problem: Problem, roof: Roofline) -> list[Side]:
    """Products with as many vectors as there are probes, in a loop and batched."""
    bound = problem.probes * roof.seconds(problem.product_flops(linearised=True))
    vectors = jax.random.normal(problem.key, (problem.probes, problem.dim))

    def looped(params: Params, batch: Batch, vectors: Array) -> Array:
        return jax.lax.map(vector_product(params, batch), vectors)

    def batched(params: Params, batch: Batch, vectors: Array) -> Array:
        return jax.vmap(vector_product(params, batch))(vectors)

    args = (problem.params, problem.batch, vectors)
    return _ways(looped, batched, *args, bound_s=bound)


def products_of_seeds(problem: Problem, roof: Roofline) -> list[Side]:
    """A product for each of as many networks as there are probes, in a loop and batched."""
    bound = problem.probes * roof.seconds(problem.product_flops(linearised=False))
    return _over_seeds(problem, lambda params, batch, v: vector_product(params, batch)(v), bound)


def lanczos_of_seeds(problem: Problem, roof: Roofline) -> list[Side]:
    """A Lanczos run for each of as many networks as there are probes, in a loop and batched; small networks only."""
    if problem.dim > SMALL:
        return []

    def run(params: Params, batch: Batch, start: Array) -> Array:
        return tridiagonalise(vector_product(params, batch), start, problem.key, problem.order).diagonal

    sides = _over_seeds(problem, run, problem.probes * lanczos_bounds(problem, roof)[1])

    def spectra(networks: Params, batch: Batch) -> Array:
        def one(params: Params) -> Array:
            op = curvature.hessian(loss, params, data=batch)
            return curvature.spectrum(op, problem.key, order=problem.order, probes=1).nodes

        return jax.vmap(one)(networks)

    return [*sides, compiled("vmap of curvature.spectrum", spectra, _networks(problem), problem.batch)]


def _over_seeds(problem: Problem, fn: Callable[[Params, Batch, Array], Array], bound: float) -> list[Side]:
    vectors = jax.random.normal(problem.key, (problem.probes, problem.dim))

    def looped(networks: Params, batch: Batch, vectors: Array) -> Array:
        return jax.lax.map(lambda x: fn(x[0], batch, x[1]), (networks, vectors))

    def batched(networks: Params, batch: Batch, vectors: Array) -> Array:
        return jax.vmap(lambda params, v: fn(params, batch, v))(networks, vectors)

    args = (_networks(problem), problem.batch, vectors)
    return _ways(looped, batched, *args, bound_s=bound)


def _networks(problem: Problem) -> Params:
    keys = jax.random.split(problem.key, problem.probes)
    return jax.vmap(lambda key: initial(key, problem.widths))(keys)


def _ways(looped: Any, batched: Any, *args: Any, bound_s: float) -> list[Side]:
    return [
        compiled("lax.map", looped, *args, read=flat, bound_s=bound_s),
        compiled("vmap", batched, *args, read=flat, bound_s=bound_s),
    ]


Group = Callable[[Problem, Roofline], list[Side]]
ITEMS: dict[str, tuple[Group, ...]] = {
    "hvp": (product,),
    "lanczos": (lanczos,),
    "slq": (quadrature,),
    "kronecker": (kronecker_factors, factors_and_passes, training_step),
    "batching": (products_of_probes, products_of_seeds, lanczos_of_seeds),
}
"""Item of the command line -> its groups."""
