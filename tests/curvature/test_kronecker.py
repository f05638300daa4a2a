"""Kronecker factors against sums over examples, places and outputs in float64, and dense Kronecker products."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import curvature
from plastax.curvature import kronecker as kronecker_function
from plastax.curvature import losses, running
from plastax.curvature.kronecker import (
    Eigenvalues,
    Factors,
    cotangents,
    effective_rank,
    eigenvalues,
    factors,
    fisher_factors,
    kronecker,
    rank,
    total_effective_rank,
)
from plastax.layers import LayerInputs, Tapped, Window
from plastax.types import Loss

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES, CLASSES = 5, 3
PLACES = (3, 2)
WINDOW = Window((3, 2), (2, 1), ((1, 1), (0, 1)), (1, 2))
LAYERS = {"conv": (2 * 6, 3), "token": (3 + 1, 4), "output": (4 + 1, CLASSES)}
KINDS, SHARINGS = ("empirical", "sampled", "exact"), ("expand", "reduce")
CASES = tuple(itertools.product(KINDS, SHARINGS))
KEY = jax.random.key(7)


def apply(params: dict, taps: dict, data: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, dict[str, LayerInputs]]:
    """A convolution without bias, a dense layer at each of its places, and one after their mean."""
    x = data[0]
    taps = {name: taps.get(name, 0.0) for name in LAYERS}
    z = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], WINDOW.strides, WINDOW.padding, rhs_dilation=WINDOW.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) + taps["conv"]  # fmt: skip
    h = jnp.tanh(z)
    u = h @ params["token"]["kernel"] + params["token"]["bias"][None, None, None] + taps["token"]
    m = jnp.mean(jax.nn.silu(u), axis=(1, 2))
    out = m @ params["output"]["kernel"] + params["output"]["bias"][None] + taps["output"]
    inputs = {"conv": LayerInputs(x, False, WINDOW), "token": LayerInputs(h), "output": LayerInputs(m)}
    return out * params["scale"], inputs


def zeros(data: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
    shape = {"conv": (*PLACES, 3), "token": (*PLACES, 4), "output": (CLASSES,)}
    return {name: jnp.zeros((data[0].shape[0], *s)) for name, s in shape.items()}


NETWORK = Tapped(zeros, apply)


class Problem(NamedTuple):
    params: dict
    data: tuple[jax.Array, jax.Array]
    got: dict[tuple[str, str], dict[str, Factors]]
    gradients: dict[str, dict[str, np.ndarray]]
    """Kind -> layer -> ``[B, K, T, d_out]``: gradients whose squares, over B and K, add up to the kind's matrix."""
    rows: dict[str, np.ndarray]
    """Layer -> ``[B, T, d_a]``, its inputs at every place."""


def patches(x: np.ndarray) -> np.ndarray:
    """What the kernel meets at every place, by loops over everything."""
    (up, down), (left, right) = WINDOW.padding
    x = np.pad(x, ((0, 0), (up, down), (left, right), (0, 0)))
    out = np.zeros((len(x), *PLACES, *WINDOW.size, x.shape[-1]))
    for i, j, p, q in np.ndindex(*PLACES, *WINDOW.size):
        out[:, i, j, p, q] = x[:, i * WINDOW.strides[0] + p * WINDOW.dilation[0], j + q * WINDOW.dilation[1]]
    return out.reshape(len(x), PLACES[0] * PLACES[1], -1)


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    params = {
        "conv": {"kernel": 0.5 * normal(*WINDOW.size, 2, 3)},
        "token": {"kernel": normal(3, 4), "bias": normal(4)},
        "output": {"kernel": normal(4, CLASSES), "bias": normal(CLASSES)},
        "scale": jnp.float32(1.5),
    }
    data = normal(EXAMPLES, 5, 3, 2), jnp.asarray(rng.integers(0, CLASSES, EXAMPLES))

    @jit
    def measure(params: dict, data: tuple[jax.Array, jax.Array]) -> Any:
        got = {
            (kind, sharing): kronecker(NETWORK, params, data, "cross_entropy", kind=kind, key=KEY, sharing=sharing)
            for kind, sharing in CASES
        }
        outputs, inputs = apply(params, {}, data)
        jacobian = jax.jacrev(lambda taps: apply(params, taps, data)[0])(zeros(data))
        drawn = losses.LOSSES["cross_entropy"].sample(outputs, data, KEY)
        return got, outputs, jacobian, drawn, inputs

    with pytest.warns(UserWarning, match=r"kronecker: 'scale' \(1\.5% of the parameters\) in no factor"):
        got, outputs, jacobian, drawn, inputs = measure(params, data)
    p = np.exp(np.float64(outputs))
    p /= p.sum(axis=1, keepdims=True)
    unit = np.eye(CLASSES)
    pulled = {
        "empirical": (p - unit[data[1]])[:, None] / np.sqrt(EXAMPLES),
        "sampled": np.float64(drawn)[:, None],
        "exact": np.stack([np.linalg.cholesky(np.diag(q) - np.outer(q, q) + 1e-14 * unit).T for q in p])
        / np.sqrt(EXAMPLES),
    }
    rows, gradients = {}, {kind: {} for kind in KINDS}
    for name, (_, width) in LAYERS.items():
        own = np.stack([np.float64(jacobian[name])[i, :, i] for i in range(EXAMPLES)])
        own = own.reshape(EXAMPLES, CLASSES, -1, width)
        for kind in KINDS:
            gradients[kind][name] = np.einsum("bkc,bcto->bkto", pulled[kind], own)
        x = np.float64(inputs[name].values)
        x = patches(x) if name == "conv" else x.reshape(EXAMPLES, -1, x.shape[-1])
        rows[name] = x if name == "conv" else np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=-1)
    return Problem(params, data, got, gradients, rows)


@pytest.mark.parametrize(("kind", "sharing"), CASES)
def test_factors_equal_sums_over_examples(problem: Problem, kind: str, sharing: str) -> None:
    got = problem.got[kind, sharing]
    assert set(got) == set(LAYERS)
    for name, size in LAYERS.items():
        assert (got[name].a.shape[0], got[name].g.shape[0]) == size
        a, g = np.zeros((size[0],) * 2), np.zeros((size[1],) * 2)
        x, slope = problem.rows[name], problem.gradients[kind][name]
        for i, k in np.ndindex(slope.shape[:2]):
            if sharing == "expand":
                g += sum(np.outer(v, v) for v in slope[i, k])
            else:
                g += np.outer(slope[i, k].sum(0), slope[i, k].sum(0))
        for i in range(EXAMPLES):
            if sharing == "expand":
                a += sum(np.outer(v, v) for v in x[i]) / (EXAMPLES * len(x[i]))
            else:
                a += np.outer(x[i].mean(0), x[i].mean(0)) / EXAMPLES
        np.testing.assert_allclose(got[name].a, a, atol=1e-5 * np.abs(a).max())
        np.testing.assert_allclose(got[name].g, g, atol=1e-5 * np.abs(g).max())


def test_the_training_steps_own_backward_pass_is_enough(problem: Problem) -> None:
    """The gradient of the mean loss gives the empirical factors, and `fisher_factors` through its `vjp` the others."""
    loss = losses.get("cross_entropy")

    @jit
    def step(params: dict, data: tuple) -> Any:
        outputs, pull, inputs = jax.vjp(lambda p, t: apply(p, t, data), params, zeros(data), has_aux=True)
        _, tap_grads = pull(jax.grad(loss.value)(outputs, data))
        return factors(inputs, tap_grads), {
            kind: fisher_factors(inputs, lambda c: pull(c)[1], cotangents(loss, kind, outputs, data, KEY))
            for kind in ("sampled", "exact")
        }

    empirical, others = step(problem.params, problem.data)
    for kind, got in ({"empirical": empirical} | others).items():
        for name, pair in problem.got[kind, "expand"].items():
            np.testing.assert_allclose(got[name].a, pair.a, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got[name].g, pair.g, rtol=1e-5, atol=1e-6)


def test_counts_match_the_dense_product(problem: Problem) -> None:
    pairs = problem.got["exact", "expand"]
    everything = []
    for pair in pairs.values():
        values = eigenvalues(pair)
        dense = np.linalg.eigvalsh(np.kron(np.float64(pair.a), np.float64(pair.g)))
        everything.append(dense)
        np.testing.assert_allclose(np.sort(np.outer(*values).ravel()), dense, atol=1e-5 * dense[-1])
        eps = np.asarray([1e-3, 1e-2, 0.1, 1.0, 1e3], np.float32)
        expected = [(dense > e).sum() for e in eps]
        np.testing.assert_array_equal(rank(pair, eps), expected)
        np.testing.assert_array_equal(rank(values, eps), expected)
        assert rank(pair, 0.1).shape == ()
        p = np.maximum(dense, 1e-30) / dense.sum()
        ranks = effective_rank(values)
        np.testing.assert_allclose(ranks.a * ranks.g, np.exp(-(p * np.log(p)).sum()), rtol=1e-3)
    p = np.maximum(np.concatenate(everything), 1e-30)
    p /= p.sum()
    np.testing.assert_allclose(total_effective_rank(pairs), np.exp(-(p * np.log(p)).sum()), rtol=1e-3)


jitted_rank = jit(rank)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    a=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 4.0]), min_size=4, max_size=4),
    g=st.lists(st.sampled_from([0.0, 0.5, 2.0, 8.0]), min_size=3, max_size=3),
)
def test_rank_counts_products(a: list[float], g: list[float]) -> None:
    """Powers of two, so that ties with a threshold are exact: they are not above it."""
    eps = np.asarray([0.0, 0.25, 1.0, 2.0, 32.0], np.float32)
    values = Eigenvalues(jnp.sort(jnp.asarray(a)), jnp.sort(jnp.asarray(g)))
    np.testing.assert_array_equal(jitted_rank(values, eps), (np.outer(a, g).ravel()[:, None] > eps).sum(0))


def test_effective_ranks_of_known_factors() -> None:
    pair = Factors(jnp.diag(jnp.array([1.0, 1.0, 0.0])), jnp.zeros((4, 4)))
    ranks = effective_rank(pair)
    np.testing.assert_allclose(ranks.a, 2.0, rtol=1e-6)
    assert ranks.g == 0
    assert total_effective_rank({"zero": pair}) == 0
    ones = Eigenvalues(jnp.ones(2), jnp.ones(3))
    np.testing.assert_allclose(total_effective_rank({"zero": pair, "a": ones, "b": ones}), 12.0, rtol=1e-5)


def test_what_is_not_a_number_does_not_reach_the_eigensolver(problem: Problem) -> None:
    pair = problem.got["exact", "expand"]["output"]
    broken = pair._replace(a=pair.a.at[0, 1].set(jnp.nan))
    values = eigenvalues(broken)
    assert np.isnan(values.a).all()
    np.testing.assert_array_equal(values.g, eigenvalues(pair).g)
    assert np.isnan(total_effective_rank({"output": broken}))
    empty = running.start({"output": pair}).mean()
    assert np.isnan(eigenvalues(empty["output"]).a).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:kronecker. 'scale'")
def test_vmap_over_seeds_equals_single(problem: Problem) -> None:
    def one(params: dict) -> tuple[dict, Any]:
        pairs = kronecker(NETWORK, params, problem.data, "cross_entropy")
        return pairs, {name: eigenvalues(pair) for name, pair in pairs.items()}

    params = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x, -x]), problem.params)
    many, single = jit(jax.vmap(one))(params), jit(one)
    for i in range(3):
        alone = single(jax.tree.map(operator.itemgetter(i), params))
        mine = jax.tree.map(operator.itemgetter(i), many)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, alone)


def test_the_public_name_is_the_function() -> None:
    assert curvature.kronecker is kronecker is kronecker_function


BARE = Loss(lambda outputs, data: jnp.sum(outputs), lambda outputs, data, tangent: tangent)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: factors({"a": jnp.ones((2, 3))}, {"b": jnp.ones((2, 3))}), "layers"),
        (lambda: factors({"a": jnp.ones((2, 3))}, {"a": jnp.ones((4, 3))}), "'a'"),
        (lambda: factors({"a": jnp.ones((2, 5, 3))}, {"a": jnp.ones((2, 4, 3))}), "'a'"),
        (lambda: factors({"a": jnp.ones(3)}, {"a": jnp.ones((3, 3))}), "leading axis"),
        (lambda: factors({"a": jnp.ones((2, 3))}, {"a": jnp.ones((2, 3))}, "both"), "sharing is 'both'"),
        (lambda: cotangents("mse", "true", jnp.ones((2, 3)), None), "kind is 'true'"),
        (lambda: cotangents("mse", "sampled", jnp.ones((2, 3)), None), "need a key"),
        (lambda: cotangents(BARE, "sampled", jnp.ones((2, 3)), None, KEY), "with a sample"),
        (lambda: cotangents(BARE, "exact", jnp.ones((2, 3)), None), "with a root"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
