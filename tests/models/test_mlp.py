"""The multi-layer perceptron, and the nonlinearities and initialisers that all networks share."""

from __future__ import annotations

import functools
import itertools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.errors import ConfigError
from plastax.models import CNN, MLP, ActivationName, InitializerName, ResNet18
from plastax.models.layers import ACTIVATIONS, INITIALIZERS

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


REFERENCES: dict[str, Any] = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z < 0, 0.1 * z, z),
    "tanh": np.tanh,
    "silu": lambda z: z * sigmoid(z),
    "gelu": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "crelu": lambda z: np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], -1),
    "smooth_leaky": lambda z: 0.1 * z + 0.9 * z * sigmoid(5 * z / 3),
    "deep_fourier": lambda z: np.concatenate([np.sin(z), np.cos(z)], -1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nonlinearities(name: str) -> None:
    z = np.random.default_rng(0).normal(0, 3, (2, 5, 4))
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(z, jnp.float32)), REFERENCES[name](z), atol=1e-5)


def test_names_are_the_tables() -> None:
    assert get_args(ActivationName) == tuple(ACTIVATIONS)
    assert get_args(InitializerName) == tuple(INITIALIZERS)


def test_initialisers_scale_with_the_inputs() -> None:
    expected = {  # name -> variance and largest square, times the number of inputs
        "he_uniform": (2.0, 6.0),
        "lecun_uniform": (1.0, 3.0),
        "torch_uniform": (1 / 3, 1.0),
        "lecun_normal": (1.0, (2 / 0.87962566103423978) ** 2),
    }
    inputs, shape = 3 * 3 * 20, (3, 3, 20, 150)
    draws = jit(lambda key: {name: INITIALIZERS[name](key, shape) for name in expected})(jax.random.key(0))
    for name, (variance, largest) in expected.items():
        draw = np.float64(draws[name])
        np.testing.assert_allclose(draw.var() * inputs, variance, rtol=0.05)
        np.testing.assert_allclose(np.square(draw).max() * inputs, largest, rtol=0.01)
        assert abs(draw.mean()) < 0.02 / np.sqrt(inputs)


def test_orthogonal_initialiser_has_gain_root_two() -> None:
    draw = np.float64(INITIALIZERS["orthogonal"](jax.random.key(0), (12, 7)))
    np.testing.assert_allclose(np.linalg.svd(draw, compute_uv=False), np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_outputs_are_those_of_the_formula(layer_norm: bool) -> None:
    model = MLP(hidden=(6, 5), activation="crelu", layer_norm=layer_norm).build((2, 3), 4)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    x = rng.standard_normal((7, 2, 3))
    outputs, features = jit(model.apply)(params, jnp.asarray(x, jnp.float32))
    leaves = {name: np.float64(leaf) for name, leaf in tree.named_leaves(params).items()}

    h = x.reshape(7, 6)
    for layer in ("dense_0", "dense_1"):
        z = h @ leaves[f"{layer}/kernel"] + leaves[f"{layer}/bias"]
        if layer_norm:
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-6)
            z = z * leaves[f"norm_{layer}/scale"] + leaves[f"norm_{layer}/bias"]
        h = REFERENCES["crelu"](z)
        np.testing.assert_allclose(features[layer], h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs, h @ leaves["output/kernel"] + leaves["output/bias"], rtol=1e-4, atol=1e-4)


def test_all_kernels_are_drawn_by_the_initialiser() -> None:
    config = MLP(hidden=(40, 30), initializer="torch_uniform")
    params = jit(config.build((50,), 20).init)(jax.random.key(1))
    widths = (50, 40, 30, 20)
    for layer, (inputs, outputs) in zip(("dense_0", "dense_1", "output"), itertools.pairwise(widths), strict=True):
        assert params[layer]["kernel"].shape == (inputs, outputs)
        np.testing.assert_allclose(np.abs(params[layer]["kernel"]).max(), 1 / np.sqrt(inputs), rtol=0.02)
        np.testing.assert_array_equal(params[layer]["bias"], 0.0)


def test_no_hidden_layers_are_a_linear_model() -> None:
    model = MLP(hidden=()).build((3,), 2)
    assert model.hidden == ()
    assert model.units == {}
    params = {"output": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.array([1.0, -1.0])}}
    outputs, features = model.apply(params, jnp.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(outputs, [[17.0, 21.0]])
    assert features == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(hidden=(4, 0)), r"model.hidden: \(4, 0\)"),
        (lambda: MLP(activation="rulu"), "model.activation: 'rulu' .*'relu'.*deep_fourier"),
        (lambda: MLP(initializer="lecun_norm"), "model.initializer: 'lecun_norm' .*'lecun_normal'.*orthogonal"),
        (lambda: MLP().build((4,), 0), "model.outputs"),
        (lambda: CNN(channels=()), "model.channels"),
        (lambda: CNN(kernels=(3, 3)), r"model.kernels: \(3, 3\)"),
        (lambda: CNN(kernels=(3, 3, 0)), "model.kernels"),
        (lambda: CNN(hidden=(-1,)), "model.hidden"),
        (lambda: CNN(padding="same"), "model.padding: 'same' .*SAME, VALID"),
        (lambda: CNN(activation="glu"), "model.activation"),
        (lambda: CNN(initializer="zeros"), "model.initializer"),
        (lambda: CNN().build((784,), 10), r"'cnn' needs inputs.*\(784,\)"),
        (lambda: CNN().build((7, 32, 3), 10), r"\(7, 32, 3\)"),
        (lambda: CNN(padding="VALID").build((8, 8, 1), 10), "VALID"),
        (lambda: CNN().build((32, 32, 3), -1), "model.outputs"),
        (lambda: ResNet18(blocks=(2, 2)), r"model.blocks: \(2, 2\)"),
        (lambda: ResNet18(channels=(), blocks=()), "model.channels"),
        (lambda: ResNet18(blocks=(2, 2, 0, 2)), "model.blocks"),
        (lambda: ResNet18(hidden=(0,)), "model.hidden"),
        (lambda: ResNet18(momentum=1.0), "model.momentum: 1.0"),
        (lambda: ResNet18(activation="sin"), "model.activation"),
        (lambda: ResNet18().build((64,), 10), "'resnet18' needs inputs"),
        (lambda: ResNet18().build((32, 32, 3), 0), "model.outputs"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
