"""Products with Hessians of functions that lack a kind of derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature import products as ways
from plastax.errors import ConfigError
from tests.curvature import attention

FAST = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(0)


@jax.custom_vjp
def softmax_gradient(y: jax.Array, g: jax.Array) -> jax.Array:
    return y * (g - jnp.sum(y * g, axis=-1, keepdims=True))


def softmax_gradient_pullback(residuals: tuple[jax.Array, jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, g = residuals
    inner = jnp.sum(y * g, axis=-1, keepdims=True)
    return c * (g - inner) - g * jnp.sum(c * y, axis=-1, keepdims=True), softmax_gradient(y, c)


softmax_gradient.defvjp(lambda y, g: (softmax_gradient(y, g), (y, g)), softmax_gradient_pullback)


@jax.custom_vjp
def nested_softmax(x: jax.Array) -> jax.Array:
    """A softmax whose backward pass has a reverse derivative of its own, and no forward one."""
    return jax.nn.softmax(x)


nested_softmax.defvjp(lambda x: (jax.nn.softmax(x),) * 2, lambda y, g: (softmax_gradient(y, g),))


@jax.custom_vjp
def fused_softmax(x: jax.Array) -> jax.Array:
    """A softmax whose backward pass has no derivative, as those of fused attention."""
    return jax.nn.softmax(x)


def on_host(y: np.ndarray, g: np.ndarray) -> np.ndarray:
    y, g = np.asarray(y), np.asarray(g)
    return y * (g - np.sum(y * g, axis=-1, keepdims=True))


fused_softmax.defvjp(
    lambda x: (jax.nn.softmax(x),) * 2,
    lambda y, g: (jax.pure_callback(on_host, g, y, g, vmap_method="broadcast_all"),),
)
SOFTMAX = {"forward": jax.nn.softmax, "reverse": nested_softmax, "finite": fused_softmax}


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return attention.dense_hessian()


@pytest.fixture(scope="module")
def vectors(exact: np.ndarray) -> np.ndarray:
    """A random vector, and eigenvectors of the largest and of a middle eigenvalue."""
    _, eigenvectors = np.linalg.eigh(exact)
    return np.float32([np.random.default_rng(1).standard_normal(len(exact)), *eigenvectors[:, [-1, -40]].T])


@pytest.mark.parametrize("way", SOFTMAX)
def test_auto_takes_the_first_way_that_there_is(way: str, exact: np.ndarray, vectors: np.ndarray) -> None:
    params, batch = attention.make()
    ravel = ravel_pytree(params)[1]
    taken = []

    def products(params: Any, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        op = curvature.hessian(lambda p, b: attention.loss(p, b, SOFTMAX[way]), params, batch)
        taken.append(op.product)
        return ravel_pytree(op.mv(ravel(v)))[0], jnp.zeros(()) if op.error is None else op.error(ravel(v))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compiled = jax.jit(products, compiler_options=FAST).lower(params, vectors[0]).compile()
    assert taken == [way]
    assert [str(w.message)[:14] for w in said] == ["product='auto'"] * (way == "finite")
    for v in vectors:
        image, stated = compiled(params, v)
        expected = exact @ np.float64(v)
        error, size = np.linalg.norm(image - expected), np.linalg.norm(expected)
        if way == "finite":
            assert error < stated < 0.05 * size
        else:
            assert stated == 0
            assert error < 1e-5 * size


def cubes(fn: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """A loss of examples, whose Hessian is diagonal, through a function of its parameters."""
    return lambda w, batch: jnp.mean(jnp.sum((fn(w)[None] * batch[:, None]) ** 2, axis=-1))


@pytest.mark.parametrize("way", ["reverse", "finite"])
def test_chunks_take_the_same_way(way: str) -> None:
    w, batch = jnp.array([0.3, -0.2, 0.9]), jnp.arange(1.0, 6.0)
    loss = cubes(SOFTMAX[way])

    @jax.jit
    def products(w: jax.Array) -> tuple[Any, ...]:
        exact = curvature.hessian(cubes(jax.nn.softmax), w, batch)
        ops = [curvature.hessian(loss, w, batch, chunk_size, way) for chunk_size in (None, 2)]
        assert [op.product for op in ops] == [way, way]
        return exact.mv(w), [op.mv(w) for op in ops], [op.error(w) if op.error else 1e-5 for op in ops]

    exact, images, stated = products(w)
    for image, error in zip(images, stated, strict=True):
        assert np.linalg.norm(image - exact) < error < 1e-2 * np.linalg.norm(exact)


@jax.custom_vjp
def rounded(x: jax.Array) -> jax.Array:
    """A straight-through estimator."""
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded.fun(x), None), lambda _, g: (g,))


def test_a_straight_through_estimator_has_no_symmetric_hessian() -> None:
    """The gradient that training uses is that of no function, and `asymmetry` shows it."""
    rng = np.random.default_rng(0)
    a, b, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4), 4, (7, 3)))
    params = {"a": a, "b": b}

    def loss(params: Any, quantise: Any) -> jax.Array:
        return jnp.mean(jnp.square(quantise(jnp.tanh(x @ params["a"])) @ params["b"]))

    plain, through = (curvature.hessian(lambda p, q=q: loss(p, q), params) for q in (lambda x: x, rounded))
    assert plain.product == through.product == "forward"
    assert curvature.asymmetry(plain, KEY) < 1e-5
    assert curvature.asymmetry(through, KEY) > 1e-2
    # The derivative of the gradient as it is: the jumps have none.
    np.testing.assert_array_equal(curvature.hessian(lambda w: jnp.sum(rounded(w) ** 2), jnp.ones(2)).mv(jnp.ones(2)), 0)


def test_a_way_that_is_unknown_or_missing_is_refused() -> None:
    loss = lambda w: jnp.sum(fused_softmax(w) ** 2)  # noqa: E731
    with pytest.raises(ConfigError, match=r"product: 'revers' is unknown.*reverse"):
        curvature.hessian(loss, jnp.ones(3), product="revers")  # type: ignore[arg-type]
    for way in ("forward", "reverse"):
        with pytest.raises(
            ConfigError, match=f"product: '{way}' is not allowed for this function.*take auto or finite"
        ):
            curvature.hessian(loss, jnp.ones(3), product=way)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class MLP(nn.Module):
    outputs: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(16)(x.reshape(x.shape[0], -1))))


def small(module: nn.Module) -> tuple[Any, Callable[[Any], jax.Array]]:
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((40, 6, 6, 2)), jnp.float32), jnp.asarray(rng.integers(0, 2, 40))
    loss = lambda p: -jnp.mean(jax.nn.log_softmax(module.apply(p, x))[jnp.arange(40), y])  # noqa: E731
    return module.init(KEY, x), loss


NETWORKS = {
    "attention": lambda: (attention.make()[0], lambda p: attention.loss(p, attention.make()[1])),
    "mlp": lambda: small(MLP()),
    "cnn": lambda: small(CNN()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_ranks_by_differences_are_within_the_interval_of_exact_products(name: str) -> None:
    params, loss = NETWORKS[name]()

    def measured(params: Any, way: Any) -> tuple[curvature.Estimate, curvature.Estimate]:
        s = curvature.spectrum(curvature.hessian(loss, params, product=way), KEY, 32, 2)
        return s.rank(jnp.array([1e-3, 1e-2, 1e-1]), relative=True), s.effective_rank()

    measured = jax.jit(measured, static_argnames="way", compiler_options=FAST)
    for exact, found in zip(measured(params, "forward"), measured(params, "finite"), strict=True):
        assert np.all(np.abs(found.value - exact.value) <= np.maximum(2 * exact.standard_error, 1e-3 * exact.value))


def test_parameters_and_data_in_16_bits_take_products_in_32() -> None:
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small(MLP(2))[0])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((9, 6, 6, 2)), jnp.bfloat16)

    def square(p: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(MLP(2).apply(p, x)))

    @jax.jit
    def images(p: Any, x: jax.Array) -> Any:
        gauss = curvature.ggn(lambda p, b: MLP(2).apply(p, b[0]), p, (x, x[:, 0, 0]), "mse")
        return [op.mv(op.like) for op in (curvature.hessian(square, p, x), gauss)]

    got = images(narrow, x)
    expected = images(jax.tree.map(lambda x: x.astype(jnp.float32), narrow), x.astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_network_that_computes_in_16_bits_rounds_so(compute: str) -> None:
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(jnp.eye(3, dtype=compute) @ w.astype(compute)).astype(jnp.float32))

    op = curvature.hessian(loss, jnp.ones(3))
    assert ways.rounding(op.mv, op.like) == jnp.finfo(compute).eps
