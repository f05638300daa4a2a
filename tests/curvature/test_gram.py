"""Gram spectra against dense Gauss-Newton matrices and kernels, and the choice between them and Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature import losses
from plastax.models import ActorCritic
from plastax.types import Loss

EXAMPLES = 7
FAST = {"xla_backend_optimization_level": 0}


class Problem(NamedTuple):
    apply: Callable[[Any, Any], Any]
    loss: Loss | str
    params: Any
    batch: Any
    roots: int


def network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.tanh(batch[0] @ params["w0"] + params["b0"][None, :]) @ params["w1"]


def problem(name: str) -> Problem:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, 3)))
    if name in losses.LOSSES:
        shapes = {"w0": (3, 6), "b0": (6,), "w1": (6, 4)}
        params = {key: jnp.asarray(rng.standard_normal(shape)) for key, shape in shapes.items()}
        classes = jnp.asarray(rng.integers(0, 4, EXAMPLES))
        y = classes if name == "cross_entropy" else jax.nn.one_hot(classes, 4)
        return Problem(network, name, params, (x, y), 3 if name == "cross_entropy" else 4)
    model = ActorCritic((3,), activation="tanh").build((3,), 3, continuous=name == "gaussian")
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.7, s.shape)), jax.eval_shape(model.init, jax.random.key(0))
    )
    return Problem(
        lambda p, b: model.apply(p, b)[0], losses.actor_critic(name), params, x, 7 if name == "gaussian" else 3
    )


def single(values: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else jnp.int32), values)


@pytest.mark.parametrize(
    "name",
    ["cross_entropy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mse", "categorical", "gaussian"))],
)
def test_non_zero_eigenvalues_are_those_of_the_gauss_newton_matrix(name: str) -> None:
    """In single precision to 1e-5 of the largest, of the dense matrix ``J^T C J`` in double precision."""
    with jax.enable_x64(True):
        apply, loss, params, batch, roots = problem(name)
        flat, unravel = ravel_pytree(params)
        outputs, rebuild = ravel_pytree(apply(params, batch))

        def matrices(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
            jacobian = jax.jacobian(lambda f: ravel_pytree(apply(unravel(f), batch))[0])(flat)
            weigh = losses.get(loss).curvature
            inner = jax.vmap(lambda t: ravel_pytree(weigh(rebuild(outputs), batch, rebuild(t)))[0])
            return jacobian, inner(jnp.eye(outputs.size))

        jacobian, inner = map(np.asarray, jax.jit(matrices, compiler_options=FAST)(flat))
        exact = np.linalg.eigvalsh(jacobian.T @ inner @ jacobian)[::-1]
        kernel = np.linalg.eigvalsh(jacobian @ jacobian.T)[::-1]
        narrow = map(np.asarray, jax.tree.leaves(single((params, batch))))
        params, batch = jax.tree.unflatten(jax.tree.structure((params, batch)), list(narrow))

    def spectra(params: Any, batch: Any) -> tuple[curvature.Spectrum, ...]:
        spectrum = curvature.gram_spectrum(apply, params, batch, loss)
        return spectrum, curvature.ntk_spectrum(apply, params, batch)

    found, ntk = jax.jit(spectra, compiler_options=FAST)(params, batch)
    count = min(EXAMPLES * roots, flat.size)
    assert found.complete
    assert found.dim == flat.size
    assert found.nodes.shape == (1, count)
    np.testing.assert_allclose(found.nodes[0, ::-1], exact[:count], atol=1e-5 * exact[0])
    np.testing.assert_allclose(exact[count:], 0.0, atol=1e-12 * exact[0])
    assert ntk.dim == kernel.size
    np.testing.assert_allclose(ntk.nodes[0, ::-1], kernel, atol=1e-5 * kernel[0])


def test_matrix_holds_products_of_the_roots_of_examples() -> None:
    apply, loss, params, batch, roots = problem("cross_entropy")

    def matrices(params: Any, batch: Any) -> tuple[jax.Array, ...]:
        outputs, pull = jax.vjp(lambda p: apply(p, batch), params)
        # [K, B, ...], then alone in the batch: [B, K, B, ...].
        root = losses.LOSSES[loss].root(outputs, batch)
        alone = root[None] * jnp.eye(EXAMPLES)[:, None, :, None]
        rows = jax.vmap(lambda r: ravel_pytree(pull(r)[0])[0])(alone.reshape(-1, *outputs.shape))
        return rows @ rows.T, *(curvature.gram_matrix(apply, params, batch, loss, size) for size in (None, 3))

    expected, *found = jax.jit(matrices, compiler_options=FAST)(params, batch)
    for got in found:
        assert got.shape == (EXAMPLES * roots, EXAMPLES * roots)
        np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_seeds_under_vmap_equal_single_ones_in_one_program(compilations: Callable[[], int]) -> None:
    apply, loss, params, batch, _ = problem("cross_entropy")
    seeds = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x, 0.0 * x]), params)

    def one(params: Any) -> jax.Array:
        return curvature.gram_spectrum(apply, params, batch, loss).nodes

    alone = jax.jit(one, compiler_options=FAST)
    singles = [alone(jax.tree.map(lambda x, i=i: x[i], seeds)) for i in range(3)]
    run = jax.jit(jax.vmap(one), compiler_options=FAST)
    before = compilations()
    many = run(seeds)
    assert compilations() == before + 1
    for nodes, expected in zip(many, singles, strict=True):
        np.testing.assert_allclose(nodes, expected, rtol=1e-5, atol=1e-6)


def test_condition_number_of_what_is_above_rounding() -> None:
    number = jax.jit(lambda values: curvature.from_eigenvalues(values, 5).condition_number())
    cases = [
        ([8.0, 2.0, 0.0], 4.0),
        ([-8.0, 1.0, 1e-7], 8.0),
        ([3.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0], np.nan),
        ([1.0, np.nan, 1.0], np.nan),
    ]
    for values, expected in cases:
        found = number(np.asarray(values, np.float32))
        np.testing.assert_array_equal(found.value, np.float32(expected))
        assert np.isnan(expected) or found.standard_error == 0


def test_the_cheaper_way_is_taken() -> None:
    apply, loss, params, batch, _ = problem("mse")
    key = jax.random.key(0)

    def complete(order: int, method: str = "auto", loss: Loss | str = loss) -> jax.Array:
        return curvature.ggn_spectrum(apply, params, batch, loss, key, order, 1, method).complete

    def run() -> tuple[jax.Array, ...]:
        rootless = losses.LOSSES["mse"]._replace(root=None)
        return complete(20), complete(1), complete(20, "lanczos"), complete(20, loss=rootless), complete(1, "gram")

    assert [bool(x) for x in jax.jit(run, compiler_options=FAST)()] == [True, False, False, False, True]


def test_bad_arguments() -> None:
    apply, loss, params, batch, _ = problem("mse")
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"loss\.root"):
        curvature.gram_spectrum(apply, params, batch, losses.LOSSES["mse"]._replace(root=None))
    with pytest.raises(ValueError, match=r"'exact'.*lanczos"):
        curvature.ggn_spectrum(apply, params, batch, loss, key, method="exact")
    with pytest.raises(ValueError, match="order and probes"):
        curvature.ggn_spectrum(apply, params, batch, loss, key, order=0)
    with pytest.raises(ValueError, match="no parameters"):
        curvature.ggn_spectrum(apply, {}, batch, loss, key)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        curvature.ntk_spectrum(apply, params, batch, chunk_size=0)
    with pytest.raises(ValueError, match="leading axis"):
        curvature.gram_matrix(apply, params, (batch[0], batch[1][:3]), loss)


def test_not_finite_outputs_are_refused_where_they_are_known_and_seen_where_not() -> None:
    apply, _, params, batch, _ = problem("mse")
    broken = params | {"w1": params["w1"].at[0, 0].set(jnp.inf)}
    with pytest.raises(ValueError, match="not finite: outputs"):
        curvature.ntk_spectrum(apply, broken, batch)
    # The tail of one chunk alone is broken: the last example's input.
    s = jax.jit(lambda x: curvature.ntk_spectrum(apply, params, (x,), 3), compiler_options=FAST)(
        batch[0].at[-1, 0].set(jnp.inf)
    )
    assert np.isnan(s.nodes).all()
