"""Spectra of parameters that are cut over devices: the numbers of one device, on shares of its memory."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import curvature, sharding
from plastax.types import Operator
from tests.compiling import AS_USERS

DEVICES, EXAMPLES = 8, 4
QUICK = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(3)
SMALL, MILLION = (16, 24, 32, 4), (64, 968, 968, 8)
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16": {"basis_dtype": jnp.bfloat16},
    "window": {"reorthogonalise": 3},
    "none": {"reorthogonalise": "none"},
    "host": {"basis": "host"},
}


@pytest.fixture(scope="module", autouse=True)
def mesh() -> jax.sharding.Mesh:
    if jax.device_count() < DEVICES:
        pytest.skip("needs eight devices")
    return sharding.mesh(jax.devices()[:DEVICES])


def network(widths: tuple[int, ...]) -> tuple[Any, Any]:
    """Parameters and a batch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / math.sqrt(shape[0]), jnp.float32)

    layers = [{"kernel": normal(a, b), "bias": jnp.zeros(b)} for a, b in itertools.pairwise(widths)]
    return layers, (normal(EXAMPLES, widths[0]), normal(EXAMPLES, widths[-1]))


def loss(params: Any, data: Any) -> jax.Array:
    x, y = data
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return jnp.mean(jnp.square(x @ params[-1]["kernel"] + params[-1]["bias"][None] - y))


def nodes(params: Any, data: Any, like: Any = None, order: int = 8, **mode: Any) -> jax.Array:
    op = curvature.hessian(loss, params, data)
    return curvature.spectrum(Operator(op.mv, op.like if like is None else like), KEY, order, probes=1, **mode).nodes


def program(
    params: Any, data: Any, like: Any = None, order: int = 8, options: Mapping[str, Any] = AS_USERS
) -> jax.stages.Compiled:
    def fn(params: Any, data: Any) -> jax.Array:
        return nodes(params, data, like, order)

    return jax.jit(fn, compiler_options=dict(options)).lower(params, data).compile()


def moved(compiled: jax.stages.Compiled) -> int:
    """Entries of the largest array that devices exchange."""
    calls = re.findall(r"= (.*?) (?:all-gather|all-to-all|all-reduce|collective-\w+)(?:-start)?\(", compiled.as_text())
    shapes = re.findall(r"\[([\d,]*)\]", " ".join(calls))
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)


def check(widths: tuple[int, ...], mesh: jax.sharding.Mesh, options: Mapping[str, Any], order: int = 64) -> None:
    params, data = network(widths)
    cut = sharding.shard_params(params, mesh)
    like = sharding.shapes(params, mesh)
    alone, spread = program(params, data, None, order, options), program(cut, data, like, order, options)
    expected = alone(params, data)
    np.testing.assert_allclose(spread(cut, data), expected, atol=1e-5 * float(jnp.abs(expected).max()))
    largest = max(leaf.size for leaf in jax.tree.leaves(params)) // DEVICES
    assert 0 < moved(spread) < largest
    # A Lanczos run that does not know how the parameters lie gathers them.
    assert moved(program(cut, data, None, order, options)) > largest

    def peak(compiled: jax.stages.Compiled) -> int:
        account = compiled.memory_analysis()
        return account.argument_size_in_bytes + account.output_size_in_bytes + account.temp_size_in_bytes

    assert peak(spread) <= 1.25 / DEVICES * peak(alone)
    reserved = spread.memory_analysis().temp_size_in_bytes
    assert curvature.memory(like, order, probes=1) == pytest.approx(reserved, rel=0.25)


def test_nothing_as_large_as_a_parameter_moves(mesh: jax.sharding.Mesh) -> None:
    check((64, 256, 8), mesh, QUICK)


@pytest.mark.slow
def test_a_million_parameters(mesh: jax.sharding.Mesh) -> None:
    check(MILLION, mesh, AS_USERS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_modes_have_the_numbers_of_one_device(mode: str, mesh: jax.sharding.Mesh) -> None:
    params, data = network(SMALL)
    expected = nodes(params, data, **MODES[mode])
    found = nodes(sharding.shard_params(params, mesh), data, **MODES[mode])
    tolerance = 1e-3 if mode == "bfloat16" else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("specs", [(jax.P("a"), jax.P(None, "b")), (jax.P(("b", "a")), jax.P("a", "b"))])
def test_start_vectors_are_those_of_one_device(specs: tuple[jax.P, jax.P]) -> None:
    """The weights of a diagonal matrix's eigenvalues are the squares of the start vector's entries there."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2)
    whole = [jnp.zeros((8, 4)), jnp.zeros((4, 6, 5)), jnp.zeros(3)]
    for value, (leaf, place) in enumerate([(0, (3, 1)), (0, (7, 2)), (1, (2, 5, 3)), (1, (0, 2, 4)), (2, (1,))], 1):
        whole[leaf] = whole[leaf].at[place].set(value)

    def weights(diagonal: list[jax.Array]) -> jax.Array:
        op = Operator(lambda v: jax.tree.map(jnp.multiply, diagonal, v), diagonal)
        return curvature.spectrum(op, KEY, 6, probes=1).weights

    cut = [*(jax.device_put(x, jax.NamedSharding(mesh, s)) for x, s in zip(whole, specs)), whole[-1]]
    np.testing.assert_allclose(weights(cut), weights(whole), rtol=1e-3)


def test_bad_placements_are_refused_by_name(mesh: jax.sharding.Mesh) -> None:
    other = jax.make_mesh((2,), ("params",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    explicit = jax.make_mesh((2,), ("params",), devices=jax.devices()[:2])

    def refused(words: str, key: jax.Array = KEY, **shapes: tuple[tuple[int, ...], jax.sharding.Mesh, jax.P]) -> None:
        like = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
            for name, (shape, mesh, spec) in shapes.items()
        }
        with pytest.raises(ValueError, match=words):
            curvature.spectrum(Operator(lambda v: v, like), key, 2, probes=1)

    cut = jax.P("params")
    refused("b lies on the mesh .* and other leaves", a=((8, 4), mesh, cut), b=((8, 4), other, cut))
    refused("a is cut along the explicit mesh axes.*Auto", a=((8, 4), explicit, cut))
    refused(r"a \(9, 4\) cannot be cut into 8 equal parts along axis 0", a=((9, 4), mesh, cut))
    refused("a threefry2x32 key.*got rbg", jax.random.key(0, impl="rbg"), a=((8, 4), mesh, cut))
    with pytest.raises(ValueError, match="axis: the mesh has no 'model'; give one of params"):
        sharding.shardings({}, mesh, "model")


@pytest.mark.slow
def test_spectra_of_blocks_are_those_of_one_device(mesh: jax.sharding.Mesh) -> None:
    params, data = network((16, 16, 16))

    def measured(params: Any, like: Any = None) -> Any:
        op = curvature.hessian(loss, params, data)
        op = op if like is None else op._replace(like=like)
        found = curvature.block_spectra(op, KEY, "layers", 8, 1)
        return {name: s.nodes for name, s in found.blocks.items()}, found.whole.nodes, found.off_diagonal().value

    alone, like = jax.jit(measured)(params), sharding.shapes(params, mesh)
    spread = jax.jit(lambda p: measured(p, like))(sharding.shard_params(params, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), spread, alone)
