"""Predictions of linearised training against gradient descent itself, in double precision; ranks of dead networks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature

pytestmark = pytest.mark.usefixtures("x64")
SIZES = (3, 6, 5, 2)


def outputs(params: list[Any], x: jax.Array) -> jax.Array:
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b[None, :])
    return x @ params[-1][0] + params[-1][1][None, :]


def network(seed: int = 0) -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    params = [(jnp.asarray(rng.standard_normal((a, b))), jnp.zeros(b)) for a, b in itertools.pairwise(SIZES)]
    return params, jnp.asarray(rng.standard_normal((8, 3))), jnp.asarray(rng.standard_normal((8, 2)))


def descend(jacobian: jax.Array, residual: jax.Array, lr: float, steps: int) -> jax.Array:
    """Mean squared error after ``steps`` of gradient descent on a linear least squares problem, by autodiff."""

    def loss(theta: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(residual + jacobian @ theta))

    step = jax.grad(loss)
    return loss(jax.lax.fori_loop(0, steps, lambda _, t: t - lr * step(t), jnp.zeros(jacobian.shape[1])))


def forward(params: Any, batch: Any) -> jax.Array:
    return outputs(params, batch[0])


@jax.jit
def gram_and_jacobian(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda f: outputs(unravel(f), x))(flat).reshape(y.size, -1)
    return curvature.gram_matrix(forward, params, (x, y), "mse"), jacobian


linear_loss = jax.jit(curvature.linear_loss)


@jax.jit
def judge(
    values: jax.Array, residual: jax.Array, lr: float, steps: float, tau: float
) -> tuple[curvature.Trainability, jax.Array]:
    """Of a complete spectrum: with it, the loss that is left of the mean residual by hand."""
    t = curvature.trainability(curvature.from_eigenvalues(values, 40), residual, lr, steps, tau)
    kept = jnp.sum((1.0 - lr * values) ** (2.0 * steps)) + residual.size - values.size
    return t, jnp.mean(jnp.square(residual)) * kept / residual.size


def test_linear_loss_is_gradient_descents() -> None:
    params, x, y = network()
    gram, jacobian = gram_and_jacobian(params, x, y)
    residual = outputs(params, x) - y
    lr = 1.2 / float(np.linalg.eigvalsh(gram)[-1])
    expected = [jax.jit(descend)(jacobian, residual.reshape(-1), lr, steps) for steps in (0, 1, 40)]
    np.testing.assert_allclose(linear_loss(gram, residual, lr, jnp.array([0, 1, 40])), expected, rtol=1e-9)
    np.testing.assert_allclose(linear_loss(gram, residual, lr, 40), expected[-1], rtol=1e-9)
    # Twice too far a step doubles the distance along the first mode, every time.
    assert linear_loss(gram, residual, 2.5 * lr, jnp.array([0, 1, 40]))[-1] > 1e3


def test_a_networks_own_descent_follows_while_it_is_linear() -> None:
    params, x, y = network()
    # Targets next to the outputs, so that the network has nowhere to go.
    y = outputs(params, x) + 1e-5 * y
    gram, _ = gram_and_jacobian(params, x, y)
    lr, steps = 1.0 / float(np.linalg.eigvalsh(gram)[-1]), 30
    gradient = jax.grad(lambda p: jnp.mean(jnp.square(outputs(p, x) - y)))

    @jax.jit
    def train(params: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, p: jax.tree.map(lambda a, g: a - lr * g, p, gradient(p)), params)

    end = outputs(train(params), x) - y
    before = outputs(params, x) - y
    predicted = linear_loss(gram, before, lr, steps)
    np.testing.assert_allclose(jnp.mean(jnp.square(end)), predicted, rtol=1e-3)
    assert predicted < 0.9 * jnp.mean(jnp.square(before))


def test_expected_loss_is_the_mean_over_isotropic_residuals() -> None:
    rng = np.random.default_rng(0)
    jacobian = jnp.asarray(rng.standard_normal((16, 7)) * np.logspace(0, -2, 7)[None])
    values = np.linalg.eigvalsh(2.0 / 16 * jacobian @ jacobian.T)
    lr, steps = 0.9 / values[-1], 200
    # A whole orthonormal basis of residuals is isotropic exactly.
    basis = jnp.asarray(np.linalg.qr(rng.standard_normal((16, 16)))[0])
    losses = jax.jit(jax.vmap(lambda r: descend(jacobian, r, lr, steps)))(basis)
    t, by_hand = judge(jnp.asarray(values), basis[0], lr, steps, 0.01)
    np.testing.assert_allclose(t.loss.value, jnp.mean(losses), rtol=1e-9)
    np.testing.assert_allclose(t.loss.value, by_hand, rtol=1e-9)
    np.testing.assert_allclose(t.eps_star, 1.0 / (lr * steps))
    rank = np.sum(values > 1.0 / (lr * steps))
    assert 0 < rank < 7
    np.testing.assert_array_equal(t.rank.value, rank)
    np.testing.assert_allclose(t.reachable.value, rank / 16)
    assert t.unstable.value == 0
    assert 0 < t.floor.value <= t.loss.value
    assert t.loss.standard_error == t.rank.standard_error == 0


def test_indicator_is_a_necessary_condition() -> None:
    """Where the rank falls short, the expected loss stays above tau; at the boundary the required rank is the rank."""
    values, residual, lr, steps = jnp.logspace(0.0, -6.0, 16), jnp.ones(16), 0.5, 1000.0
    verdicts = []
    for tau in np.linspace(0.01, 1.0, 25):
        t, _ = judge(values, residual, lr, steps, tau)
        verdicts.append(float(t.trainable))
        assert t.trainable == 1 or t.loss.value > tau
    assert verdicts == sorted(verdicts)
    assert set(verdicts) == {0.0, 1.0}
    t, _ = judge(values, residual, lr, steps, float(t.floor.value))
    np.testing.assert_allclose(t.required, t.rank.value)


def test_beyond_the_stability_limit_there_is_no_loss() -> None:
    values = jnp.zeros(16).at[:3].set(jnp.array([5.0, 3.0, 0.5]))
    t, by_hand = judge(values, jnp.ones(16), 0.5, 10.0, 0.5)
    assert t.unstable.value == 1
    assert by_hand > 100.0
    assert np.isposinf(t.loss.value)


def test_nan_stays_nan() -> None:
    t, _ = judge(jnp.ones(16).at[3].set(jnp.nan), jnp.ones(16), 1.0, 50.0, 0.1)
    for leaf in (t.rank, t.unstable, t.loss, t.floor, t.trainable):
        assert np.isnan(jax.tree.leaves(leaf)).all()
    t, _ = judge(jnp.ones(16), jnp.ones(16).at[3].set(jnp.nan), 1.0, 50.0, 0.1)
    assert np.isnan([t.loss.value, t.required, t.trainable]).all()


@pytest.mark.slow
def test_estimated_spectra_have_errors() -> None:
    values = jnp.geomspace(1.0, 1e-4, 150)
    op = curvature.from_matrix(jnp.diag(values))
    residual = jnp.ones(150)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def measure(keys: jax.Array) -> curvature.Trainability:
        spectra = jax.vmap(lambda key: curvature.spectrum(op, key, 24, 4))(keys)
        return jax.vmap(lambda s: curvature.trainability(s, residual, 1.0, 50, 0.1))(spectra)

    found = measure(jax.random.split(jax.random.key(0), 20))
    rank = np.sum(values > 1.0 / 50)
    exact = {
        "rank": rank,
        "reachable": rank / 150,
        "loss": np.mean((1.0 - values) ** 100),
        "floor": (1.0 - 1.0 / 50) ** 100 * (1.0 - rank / 150),
    }
    for name, true in exact.items():
        value, error = getattr(found, name)
        assert (error > 0).all()
        assert (abs(value - true) <= 2.0 * error).mean() >= 0.8
        # Not so wide that they say nothing.
        assert np.mean(error) < 3.0 * np.std(value)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def dense_hessian(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    flat, unravel = ravel_pytree(params)

    def loss(f: jax.Array) -> jax.Array:
        *hidden, (w, b) = unravel(f)
        h = x
        for v, c in hidden:
            # Smooth where alive, and without any slope far below zero.
            h = h @ v + c[None, :]
            h = jnp.where(h > -50.0, jnp.tanh(h), 0.0)
        return jnp.mean(jnp.square(h @ w + b[None, :] - y))

    return jax.hessian(loss)(flat)


@pytest.mark.parametrize("dead", [(0, 0), (2, 0), (0, 3), (3, 2), (5, 1), (2, 4)])
def test_dead_units_bound_the_rank(dead: tuple[int, int]) -> None:
    widths = (4, 5, 4, 3)
    rng = np.random.default_rng(1)
    params = [
        (jnp.asarray(rng.standard_normal((a, b))), jnp.where(jnp.arange(b) < k, -100.0, 0.3 * rng.standard_normal(b)))
        for (a, b), k in zip(itertools.pairwise(widths), (*dead, 0))
    ]
    x, y = jnp.asarray(rng.standard_normal((60, 4))), jnp.asarray(rng.standard_normal((60, 3)))
    flat, _ = ravel_pytree(params)
    hessian = np.asarray(dense_hessian(params, x, y))
    rank = np.linalg.matrix_rank(hessian, tol=1e-12 * np.abs(hessian).max())
    bound = int(curvature.dead_unit_rank_bound(widths, dead))
    assert rank <= bound
    removed = sum(k * (a + 1 + c) for k, a, c in zip(dead, widths, widths[2:])) - dead[0] * dead[1]
    if dead[0] < widths[1] and dead[1] < widths[2]:
        assert rank == bound == flat.size - removed
    else:
        # With a whole layer gone, what comes before it is lost as well, and what comes after sees no data.
        assert bound <= flat.size - removed
        assert bound < flat.size - removed or dead[1] < widths[2]


def test_bad_arguments() -> None:
    s = curvature.from_eigenvalues(jnp.ones(3), 3)
    with pytest.raises(ValueError, match="residual"):
        curvature.trainability(s, jnp.ones(0), 0.1, 10, 0.1)
    with pytest.raises(ValueError, match="lr"):
        curvature.trainability(s, jnp.ones(3), 0.0, 10, 0.1)
    with pytest.raises(ValueError, match="steps"):
        curvature.trainability(s, jnp.ones(3), 0.1, -1, 0.1)
    with pytest.raises(ValueError, match="gram"):
        curvature.linear_loss(jnp.eye(4), jnp.ones(3), 0.1, 1)
    with pytest.raises(ValueError, match="hidden"):
        curvature.dead_unit_rank_bound((3, 4, 2), (1, 1))
