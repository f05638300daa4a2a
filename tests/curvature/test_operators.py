"""Operators against dense matrices in double precision: values, linearity, symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature, tree
from plastax.curvature.losses import LOSSES
from plastax.types import Operator

EXAMPLES, SIZES = 11, (5, 7, 4)
# Whether the numbers are right does not depend on the compiler's effort, but half of the test's time does.
FAST = {"xla_backend_optimization_level": 0}


def network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    h = jnp.tanh(batch[0] @ params["w0"] + params["b0"][None, :])
    return h @ params["w1"] + params["b1"][None, :]


def make(name: str, dtype: Any = np.float32) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    rng = np.random.default_rng(0)
    params = {
        "w0": rng.standard_normal(SIZES[:2]),
        "b0": rng.standard_normal(SIZES[1]),
        "w1": rng.standard_normal(SIZES[1:]),
        "b1": rng.standard_normal(SIZES[2]),
    }
    x = rng.standard_normal((EXAMPLES, SIZES[0]))
    y = (
        rng.integers(0, SIZES[2], EXAMPLES)
        if name == "cross_entropy"
        else rng.standard_normal((EXAMPLES, SIZES[2])).astype(dtype)
    )
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params), (jnp.asarray(x, dtype), jnp.asarray(y))


def loss_fn(name: str) -> Callable[..., jax.Array]:
    return lambda params, batch: LOSSES[name].value(network(params, batch), batch)


def exact_hessian(name: str) -> np.ndarray:
    with jax.enable_x64(True):
        params, batch = make(name, np.float64)
        flat, unravel = ravel_pytree(params)
        return np.asarray(jax.jit(jax.hessian(lambda f: loss_fn(name)(unravel(f), batch)))(flat))


def exact_ggn(name: str) -> np.ndarray:
    with jax.enable_x64(True):
        params, batch = make(name, np.float64)
        flat, unravel = ravel_pytree(params)
        outputs, shape = network(params, batch).ravel(), (EXAMPLES, SIZES[2])
        jacobian = jax.jit(jax.jacobian(lambda f: network(unravel(f), batch).ravel()))(flat)
        inner = jax.jit(jax.hessian(lambda o: LOSSES[name].value(o.reshape(shape), batch)))(outputs)
        return np.asarray(jacobian).T @ np.asarray(inner) @ np.asarray(jacobian)


def symmetric_matrix() -> jax.Array:
    matrix = np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32)
    return jnp.asarray(matrix + matrix.T)


OPERATORS: dict[str, Callable[[dict, tuple], Operator]] = {
    "hessian": lambda params, batch: curvature.hessian(loss_fn("cross_entropy"), params, data=batch),
    "ggn": lambda params, batch: curvature.ggn(network, params, batch, "cross_entropy"),
    "matrix": lambda params, batch: curvature.from_matrix(symmetric_matrix()),
}


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_hessian_and_ggn_match_dense_double_precision(name: str) -> None:
    params, batch = make(name)
    got = jax.jit(lambda p, b: curvature.dense(curvature.hessian(loss_fn(name), p, data=b)))(params, batch)
    np.testing.assert_allclose(got, exact_hessian(name), atol=1e-6)
    got = jax.jit(lambda p, b: curvature.dense(curvature.ggn(network, p, b, name)))(params, batch)
    np.testing.assert_allclose(got, exact_ggn(name), atol=1e-6)
    assert np.linalg.eigvalsh(got).min() > -1e-6


def test_hessian_of_a_closure_and_loss_given_as_functions() -> None:
    params, batch = make("mse")
    tangent = tree.normal_like(jax.random.key(0), params)

    @jax.jit
    def products(params: dict, batch: tuple) -> tuple:
        closed = curvature.hessian(lambda p: loss_fn("mse")(p, batch), params)
        given = curvature.hessian(loss_fn("mse"), params, data=batch)
        named = curvature.ggn(network, params, batch, "mse")
        built = curvature.ggn(network, params, batch, curvature.Loss(*LOSSES["mse"]))
        return closed.mv(tangent), given.mv(tangent), named.mv(tangent), built.mv(tangent)

    closed, given, named, built = products(params, batch)
    jax.tree.map(np.testing.assert_array_equal, closed, given)
    jax.tree.map(np.testing.assert_array_equal, named, built)


@pytest.mark.parametrize("name", OPERATORS)
def test_linear_and_symmetric(name: str) -> None:
    params, batch = make("cross_entropy")
    like = symmetric_matrix()[0] if name == "matrix" else params
    rng = np.random.default_rng(1)
    u, v = (jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), like) for _ in range(2))
    mixed = jax.tree.map(lambda x, y: 2 * x - 3 * y, u, v)
    run = jax.jit(lambda p, b, tangents: [OPERATORS[name](p, b).mv(t) for t in tangents], compiler_options=FAST)
    image_u, image_v, image = (np.asarray(ravel_pytree(x)[0]) for x in run(params, batch, (u, v, mixed)))
    np.testing.assert_allclose(image, 2 * image_u - 3 * image_v, atol=2e-5)
    np.testing.assert_allclose(ravel_pytree(u)[0] @ image_v, image_u @ ravel_pytree(v)[0], atol=2e-5)


def test_from_matrix_and_dense_are_inverse() -> None:
    a = symmetric_matrix()
    np.testing.assert_allclose(curvature.dense(curvature.from_matrix(a)), a, rtol=1e-6)


def test_narrow_parameters_give_float32_vectors() -> None:
    params, batch = make("mse")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = jax.jit(lambda p: curvature.dense(curvature.hessian(loss_fn("mse"), p, data=batch)))(params)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact_hessian("mse"), atol=0.1)


def layer_norm_network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    h = batch[0] @ params["w0"] + params["b0"][None, :]
    centred = h - h.mean(-1, keepdims=True)
    h = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return jax.nn.relu(h * params["scale"][None, :]) @ params["w1"]


def conv_network(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    h = jax.lax.conv_general_dilated(
        batch[0], params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(h + params["b0"][None, None, None, :]).reshape(h.shape[0], -1) @ params["w1"]


NETWORKS = {
    "layer norm": (layer_norm_network, {"w0": (4, 6), "b0": (6,), "scale": (6,), "w1": (6, 3)}, (4,)),
    "conv": (conv_network, {"kernel": (2, 2, 2, 3), "b0": (3,), "w1": (12, 3)}, (3, 3, 2)),
}


@pytest.mark.parametrize("name", ["layer norm", pytest.param("conv", marks=pytest.mark.slow)])
def test_products_and_extremes_of_networks_match_double_precision(name: str) -> None:
    apply, shapes, inputs = NETWORKS[name]
    rng = np.random.default_rng(0)
    exact_params = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    x, y = rng.standard_normal((EXAMPLES, *inputs)), jnp.asarray(rng.integers(0, 3, EXAMPLES), jnp.int32)
    value = LOSSES["cross_entropy"].value

    def matrices(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        flat, unravel = ravel_pytree(params)
        outputs = apply(params, (x, y))
        jacobian = jax.jacobian(lambda f: apply(unravel(f), (x, y)).ravel())(flat)
        inner = jax.hessian(lambda o: value(o.reshape(outputs.shape), (x, y)))(outputs.ravel())
        return jax.hessian(lambda f: value(apply(unravel(f), (x, y)), (x, y)))(flat), jacobian.T @ inner @ jacobian

    with jax.enable_x64(True):
        exact = list(map(np.asarray, jax.jit(matrices, compiler_options=FAST)(exact_params, jnp.asarray(x))))

    def measure(params: dict, x: jax.Array, tangents: dict) -> tuple:
        hessian = curvature.hessian(lambda p, b: value(apply(p, b), b), params, data=(x, y))
        ggn = curvature.ggn(apply, params, (x, y), "cross_entropy")
        products = jax.lax.map(lambda t: (hessian.mv(t), ggn.mv(t)), tangents)
        return products, curvature.spectrum(hessian, jax.random.key(0), tree.size(params) // 2, 1).extreme(1)

    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), exact_params)
    tangents = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal((5, *a.shape)), jnp.float32), params)

    def rows(stacked: dict) -> np.ndarray:
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(5, -1) for leaf in jax.tree.leaves(stacked)], axis=1
        )

    products, extreme = jax.jit(measure, compiler_options=FAST)(params, jnp.asarray(x, jnp.float32), tangents)
    for matrix, found in zip(exact, products, strict=True):
        expected = rows(tangents) @ matrix
        error = np.linalg.norm(rows(found) - expected, axis=1)
        assert (error <= 1e-5 * np.linalg.norm(expected, axis=1)).all()
    values = np.linalg.eigvalsh(exact[0])
    np.testing.assert_allclose(extreme.largest, values[-1:], rtol=1e-4)
    np.testing.assert_allclose(extreme.smallest, values[:1], rtol=1e-4)


# --- chunks -----------------------------------------------------------------------------------------------------------


def all_products(params: dict, batch: tuple, key: jax.Array, chunk_size: int | None) -> dict[str, Any]:
    ops = {
        "hessian": curvature.hessian(loss_fn("cross_entropy"), params, batch, chunk_size),
        "ggn": curvature.ggn(network, params, batch, "cross_entropy", chunk_size),
        "empirical_fisher": curvature.empirical_fisher(network, params, batch, "cross_entropy", chunk_size),
        "fisher": curvature.fisher(network, params, batch, "cross_entropy", key, chunk_size=chunk_size),
    }
    return {name: op.mv(params) for name, op in ops.items()}


def some_products(params: dict, batch: tuple, key: jax.Array, chunk_size: int | None) -> list[Any]:
    """One of a loss, and one of outputs and draws."""
    of_loss = curvature.hessian(loss_fn("cross_entropy"), params, batch, chunk_size)
    of_draws = curvature.fisher(network, params, batch, "cross_entropy", key, chunk_size=chunk_size)
    return [of_loss.mv(params), of_draws.mv(params)]


@pytest.mark.usefixtures("x64")
def test_chunks_of_any_size_are_the_whole() -> None:
    """11 examples in chunks of 4, 4 and 3 to rounding, in double precision."""
    params, batch = make("cross_entropy", np.float64)

    def run(params: dict, batch: tuple) -> list[dict]:
        return [all_products(params, batch, jax.random.key(0), size) for size in (None, 4)]

    whole, chunked = jax.jit(run, compiler_options=FAST)(params, batch)
    for name, product in chunked.items():
        got, expected = (ravel_pytree(p)[0] for p in (product, whole[name]))
        assert np.linalg.norm(got - expected) <= 1e-13 * np.linalg.norm(expected), name


def test_one_chunk_is_linearised_once() -> None:
    params, batch = make("cross_entropy")

    def traced(chunk_size: int | None) -> str:
        return str(jax.make_jaxpr(lambda p: all_products(p, batch, jax.random.key(0), chunk_size))(params))

    assert "scan" in traced(4)
    for size in (None, EXAMPLES, 100):
        assert "scan" not in traced(size)


def test_memory_of_chunks_does_not_grow_with_the_examples() -> None:
    params, batch = make("cross_entropy")

    def temporary(examples: int, chunk_size: int | None) -> int:
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), batch)

        run = jax.jit(lambda p, b: some_products(p, b, jax.random.key(0), chunk_size), compiler_options=FAST)
        return run.lower(params, data).compile().memory_analysis().temp_size_in_bytes

    more = 4096
    growth = temporary(64 + more, 16) - temporary(64, 16)
    # The sampled Fisher matrix numbers its examples, in four bytes each; activations take over forty times that.
    assert growth <= 5 * more
    assert temporary(64 + more, None) > 160 * more


@pytest.mark.slow
def test_seeds_in_chunks_under_vmap_and_over_devices_equal_single_ones(compilations: Callable[[], int]) -> None:
    params, batch = make("cross_entropy")
    devices = jax.devices()
    seeds = jax.tree.map(lambda x: jnp.stack([(i + 1.0) / 2 * x for i in range(len(devices))]), params)
    seeds = (seeds, jax.random.split(jax.random.key(0), len(devices)))
    single = jax.jit(lambda p, key: some_products(p, batch, key, None), compiler_options=FAST)
    many = jax.jit(jax.vmap(lambda p, key: some_products(p, batch, key, 4)), compiler_options=FAST)
    shards = jax.sharding.NamedSharding(jax.make_mesh((len(devices),), ("seed",)), jax.sharding.PartitionSpec("seed"))
    spread = jax.device_put(seeds, shards)
    before = compilations()
    got = many(*spread)
    assert compilations() == before + 1
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(got)} == {len(devices)}
    for i in range(len(devices)):
        whole = single(*jax.tree.map(lambda x, i=i: x[i], seeds))
        for products, one in zip(got, whole, strict=True):
            expected = ravel_pytree(one)[0]
            product = np.concatenate([np.asarray(leaf)[i].ravel() for leaf in jax.tree.leaves(products)])
            assert np.linalg.norm(product - expected) <= 1e-5 * np.linalg.norm(expected)


# --- combinations -----------------------------------------------------------------------------------------------------


def test_blocks_sums_multiples_and_shifts() -> None:
    params, batch = make("mse")

    def matrices(params: dict, batch: tuple) -> tuple[jax.Array, ...]:
        named = {"first": {"w": params["w0"], "b": params["b0"]}, "firsts": params["w1"], "last": params["b1"]}

        def apply(p: dict, b: tuple) -> jax.Array:
            return network({"w0": p["first"]["w"], "b0": p["first"]["b"], "w1": p["firsts"], "b1": p["last"]}, b)

        op = curvature.ggn(apply, named, batch, "mse")
        other = curvature.hessian(lambda p: 0.5 * tree.dot(p, p), named)
        return (
            curvature.dense(op),
            curvature.dense(curvature.block(op, "first")),
            curvature.dense(curvature.block(op, lambda name: name.endswith(("/w", "last")))),
            curvature.dense(curvature.add(op, other, curvature.scale(op, -3.0))),
            curvature.dense(curvature.shift(op, 0.5)),
            curvature.spectrum(curvature.block(op, "first"), jax.random.key(0), 42, 1).nodes,
        )

    full, first, picked, total, shifted, nodes = map(
        np.asarray, jax.jit(matrices, compiler_options=FAST)(params, batch)
    )
    # Ravelled by name: first/b, first/w, firsts, last.
    ends = np.cumsum([7, 35, 28, 4])
    np.testing.assert_allclose(first, full[: ends[1], : ends[1]], atol=1e-6)
    chosen = np.r_[ends[0] : ends[1], ends[2] : ends[3]]
    np.testing.assert_allclose(picked, full[np.ix_(chosen, chosen)], atol=1e-6)
    np.testing.assert_allclose(total, np.eye(ends[-1]) - 2.0 * full, atol=1e-5)
    np.testing.assert_allclose(shifted, 0.5 * np.eye(ends[-1]) + full, atol=1e-6)
    # The block has a complete spectrum of its own.
    np.testing.assert_allclose(nodes[0], np.linalg.eigvalsh(first), atol=1e-5 * np.abs(first).max())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    params, batch = make("mse")
    with pytest.raises(ValueError, match="cross_entropy"):
        curvature.ggn(network, params, batch, "hinge")
    with pytest.raises(ValueError, match="square"):
        curvature.from_matrix(jnp.ones((2, 3)))
    op = curvature.from_matrix(jnp.eye(3))
    with pytest.raises(ValueError, match="one structure"):
        curvature.add(op, curvature.from_matrix(jnp.eye(2)))
    with pytest.raises(ValueError, match="one structure"):
        curvature.add()
    with pytest.raises(ValueError, match=r"'b'.*\['b0', 'b1', 'w0', 'w1'\]"):
        curvature.block(curvature.ggn(network, params, batch, "mse"), "b")


@pytest.mark.parametrize("traced", [False, True])
def test_what_has_no_hessian_is_refused_before_compilation(traced: bool, assert_no_retrace: Any) -> None:
    params, batch = make("mse")
    loss = loss_fn("mse")

    def refused(match: str, loss: Any = loss, params: Any = params, **options: Any) -> None:
        def run(params: Any) -> jax.Array:
            return tree.norm(curvature.hessian(loss, params, **options).mv(params))

        with pytest.raises(ValueError, match=match):
            jax.jit(run)(params) if traced else run(params)

    with assert_no_retrace():
        refused(r"no parameters.*'mask' \(bool\), 'step' \(int32\)", params={"step": np.int32(3), "mask": np.True_})
        refused("complex: 'w'", params={"w": np.ones(2, np.complex64)})
        refused("no parameters", params={})
        refused("no parameters", params={"w": np.ones((0, 3), np.float32)})
        refused(r"\(11, 4\)", loss=network, data=batch)
        refused(r"\(\(\), \{'aux': \(\)\}\)", loss=lambda p: (jnp.vdot(p["b0"], p["b0"]), {"aux": p["b0"][0]}))
        refused("chunk_size must be at least 1, got 0", data=batch, chunk_size=0)
        refused("chunk_size needs data", loss=lambda p: jnp.vdot(p["b0"], p["b0"]), chunk_size=2)
        refused(r"leading axis.*'0': \(11, 5\), '1': \(9, 4\)", data=(batch[0], np.ones((9, 4))), chunk_size=4)
        refused(r"leading axis.*'1': \(\)", data=(batch[0], np.float32(1.0)), chunk_size=4)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_what_is_not_finite_is_named_where_it_is_known_and_seen_where_not(chunk_size: int | None) -> None:
    params, batch = make("mse")
    broken = params | {"b1": params["b1"].at[1].set(jnp.inf)}
    with pytest.raises(ValueError, match=r"not finite: gradient/b0, .*, loss$"):
        curvature.hessian(loss_fn("mse"), broken, batch, chunk_size)
    with pytest.raises(ValueError, match=r"not finite: outputs$"):
        curvature.ggn(network, broken, batch, "mse", chunk_size)
    image = jax.jit(lambda p: curvature.ggn(network, p, batch, "mse", chunk_size).mv(params))(broken)
    assert not np.isfinite(image["w0"]).any()


def test_a_leaf_of_the_gradient_that_is_not_finite_is_named() -> None:
    params, batch = make("mse")
    # The square root's slope at zero: the loss is finite, and one leaf of the gradient is not.
    with pytest.raises(ValueError, match=r"not finite: gradient/b1$"):
        curvature.hessian(
            lambda p: loss_fn("mse")(p, batch) + jnp.sum(jnp.sqrt(p["b1"])), params | {"b1": jnp.zeros(4)}
        )
