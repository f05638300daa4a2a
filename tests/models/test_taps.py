"""Taps on modules that know nothing of them: geometry of convolutions, names, what is refused."""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import curvature, models, tree
from plastax.curvature import ekfac
from plastax.curvature.kronecker import rows
from plastax.errors import ConfigError

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES = 3


class Convolutions(nn.Module):
    """One convolution of every geometry side by side, and what else a network has."""

    @nn.compact
    def __call__(self, x: jax.Array, scale: float = 1.0) -> dict[str, jax.Array]:
        line = x[:, :, 0]
        return {
            "same": nn.Conv(4, (3, 2), name="same")(x),
            "strides": nn.Conv(2, (3, 3), strides=2, name="strides")(x),
            "valid": nn.Conv(2, (2, 3), strides=(1, 2), padding="VALID", use_bias=False, name="valid")(x),
            "dilation": nn.Conv(2, (2, 2), padding=((0, 1), (2, 0)), kernel_dilation=(2, 3), name="dilation")(inputs=x),
            "line": nn.Conv(5, 2, padding=1, name="line")(line),
            "tokens": nn.Dense(4, use_bias=False, name="tokens")(x),
            "norm": scale * nn.LayerNorm(name="norm")(x),
            "nested": nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])(line.reshape(len(x), -1)),
        }


LAYERS = ("same", "strides", "valid", "dilation", "line", "tokens", "Dense_0", "Dense_1")


def test_rows_times_kernel_are_the_pre_activations() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, 6, 5, 3)), jnp.float32)
    module = Convolutions()
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes)
    network = models.tapped(module, scale=2.0)
    taps = network.taps(x)
    assert tuple(taps) == LAYERS
    shift = {name: jnp.asarray(rng.standard_normal(t.shape), t.dtype) for name, t in taps.items()}
    (plain, inputs), (moved, _) = jit(lambda p, x: (network.apply(p, {}, x), network.apply(p, shift, x)))(params, x)
    jax.tree.map(
        np.testing.assert_array_equal, plain, jit(functools.partial(module.apply, scale=2.0))({"params": params}, x)
    )
    leaves = tree.named_leaves(params)
    for name in LAYERS[:-2]:
        kernel = np.float64(leaves[f"{name}/kernel"])
        weights = [kernel.reshape(-1, kernel.shape[-1])]
        assert inputs[name].bias == (f"{name}/bias" in leaves)
        weights += [np.float64(leaves[f"{name}/bias"])[None]] if inputs[name].bias else []
        expected = np.float64(rows(inputs[name])) @ np.concatenate(weights)
        np.testing.assert_allclose(plain[name].reshape(expected.shape), expected, atol=1e-4)
        np.testing.assert_allclose(moved[name], plain[name] + shift[name], atol=1e-5)
    np.testing.assert_array_equal(moved["norm"], plain["norm"])
    # A tap inside moves what comes after it.
    assert (np.abs(moved["nested"] - plain["nested"] - shift["Dense_1"]) > 1e-3).any()

    only = models.tapped(module, layers=("line", "Dense_0"))
    assert tuple(only.taps(x)) == ("line", "Dense_0")


def test_one_linear_layer_with_squared_errors_is_exact() -> None:
    """The Gauss-Newton matrix of a linear layer is a Kronecker product."""
    rng = np.random.default_rng(1)
    data = tuple(jnp.asarray(rng.standard_normal((EXAMPLES, width)), jnp.float32) for width in (4, 2))
    module = nn.Dense(2)
    params = module.init(jax.random.key(0), data[0])["params"]
    network = models.tapped(module, inputs=operator.itemgetter(0))

    @jit
    def both(params: Any) -> tuple[jax.Array, jax.Array, Any]:
        exact = curvature.ggn(lambda p, batch: module.apply({"params": p}, batch[0]), "mse", params, data)
        factors = curvature.kronecker(network, "mse", params, data)
        block = ekfac.operator(factors, params)
        return curvature.dense(exact), curvature.dense(block), ekfac.errors(factors, exact)

    exact, approximate, errors = both(params)
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(approximate, exact, rtol=1e-6, atol=1e-7)
    assert errors[""].relative < 1e-6
    np.testing.assert_allclose(errors[""].cosine, 1.0, atol=1e-6)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = nn.Dense(4)
        return layer(layer(x))


IMAGE = (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (nn.Conv(4, (3, 3), feature_group_count=2), IMAGE, "feature_group_count=2"),
        (nn.Conv(4, (3, 3), padding=1, input_dilation=2), IMAGE, "input_dilation=2"),
        (nn.Conv(4, (3, 3), padding="CIRCULAR"), IMAGE, "CIRCULAR"),
        (nn.Conv(4, (3, 3), mask=jnp.ones((3, 3, 4, 4))), IMAGE, "a mask"),
        (nn.Conv(4, (3, 3)), IMAGE[1:], r"inputs \(4, 4, 4\)"),
        (Twice(), (2, 4), "'Dense_0' is called twice"),
    ],
)
def test_what_factors_cannot_describe_is_refused(module: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    network, x = models.tapped(module), jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(lambda p, x: network.apply(p, {}, x), params, x)
    # Left out, it is in nobody's way.
    alone = models.tapped(module, layers=())
    assert jax.eval_shape(lambda p, x: alone.apply(p, alone.taps(x), x), params, x)[1] == {}


class Normalised(nn.Module):
    """A network with running statistics, which `nn.BatchNorm` keeps in a collection of their own."""

    use_running_average: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=self.use_running_average)(x))


def test_collections_are_asked_for_in_the_words_of_tapped() -> None:
    x = jnp.ones((4, 2))
    variables = Normalised(False).init(jax.random.key(0), x)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    for module, given, params_given, says in (
        (Normalised(True), None, params, r"variables: none is not enough for Normalised.*batch_stats"),
        (Normalised(False), rest, params, r"variables: 'batch_stats' is not enough.*immutable"),
        (Normalised(True), rest, variables, r"params: the collections batch_stats, params .*variables\['params'\]"),
    ):
        with pytest.raises(ConfigError, match=says):
            models.tapped(module, variables=given).apply(params_given, {}, x)
    assert models.tapped(Normalised(True), variables=rest).apply(params, {}, x)[0].shape == (4, 3)


@pytest.mark.parametrize("module", [nnx.Linear(2, 3, rngs=nnx.Rngs(0)), lambda x: x])
def test_other_modules_than_linen_are_refused(module: Any) -> None:
    with pytest.raises(ConfigError, match=r"module: .*(flax\.nnx.*Linear|function) is not allowed; give a flax\.linen"):
        models.tapped(module)
