"""The convolutional network: its geometry, and the maximum over squares."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.curvature.moments import rows
from plastax.models import CNN
from plastax.models.cnn import max_pool
from plastax.models.convolution import by_patches

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(("padding", "flattened"), [("SAME", 2048), ("VALID", 512)])
def test_padding(padding: str, flattened: int) -> None:
    model = CNN(padding=padding).build((32, 32, 3), 2)
    leaves = tree.named_leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert leaves["dense_0/kernel"].shape == (flattened, 128)


@pytest.mark.parametrize("shape", [(3, 8, 6, 2), (2, 7, 9, 3)])
def test_max_pool_is_that_of_flax(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((shape[0], shape[1] // 2, shape[2] // 2, shape[3])), jnp.float32)

    @jit
    def both(x: jax.Array) -> tuple:
        pools = (max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
        return tuple((pool(x), jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)) for pool in pools)

    ours, flax = both(x)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_layers_are_given_the_maxima_of_the_features_before() -> None:
    model = CNN(channels=(3, 4), kernels=(3, 2), hidden=(5,), layer_norm=True).build((9, 8, 2), 3)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    x = jnp.asarray(rng.standard_normal((4, 9, 8, 2)), jnp.float32)
    outputs, features, inputs = jit(model.tapped)(params, model.taps(x), x)
    leaves = {name: np.float64(leaf) for name, leaf in tree.named_leaves(params).items()}

    np.testing.assert_array_equal(inputs["conv_0"].values, x)
    for layer, following in (("conv_0", "conv_1"), ("conv_1", "dense_0"), ("dense_0", "output")):
        kernel = leaves[f"{layer}/kernel"].reshape(-1, leaves[f"{layer}/bias"].size)
        z = np.float64(rows(inputs[layer])) @ np.concatenate([kernel, leaves[f"{layer}/bias"][None]])
        # Over the channels of each place.
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
        z = np.maximum(z * leaves[f"norm_{layer}/scale"] + leaves[f"norm_{layer}/bias"], 0)
        np.testing.assert_allclose(features[layer], z.reshape(features[layer].shape), rtol=1e-4, atol=1e-4)
        given = np.asarray(features[layer])
        if given.ndim == 4:
            height, width = given.shape[1] // 2, given.shape[2] // 2
            squares = given[:, : 2 * height, : 2 * width].reshape(4, height, 2, width, 2, -1)
            given = squares.max((2, 4))
        np.testing.assert_array_equal(np.reshape(inputs[following].values, (4, -1)), given.reshape(4, -1))
    expected = np.float64(features["dense_0"]) @ leaves["output/kernel"] + leaves["output/bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [((3, 2), (1, 1), "SAME"), ((5, 5), (2, 1), "VALID"), ((1, 1), (2, 2), "SAME"), ((3, 3), (2, 2), ((0, 1), (2, 0)))],
)
def test_patches_are_a_convolution(size, strides, padding) -> None:
    """Values and both gradients, against XLA's."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 8, 7, 3)), rng.standard_normal((*size, 3, 4))

    def xla(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jit
    def both(x, kernel):
        out, pull = jax.vjp(lambda x, kernel: by_patches(x, kernel, strides, padding), x, kernel)
        expected, expected_pull = jax.vjp(xla, x, kernel)
        cotangent = jnp.cos(expected)
        return (out, *pull(cotangent)), (expected, *expected_pull(cotangent))

    found, expected = both(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
