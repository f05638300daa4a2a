"""The residual network: its shape, its shortcuts, and what batch normalisation does where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.curvature.moments import rows
from plastax.layers import LayerInputs, Window
from plastax.models import ResNet18
from plastax.models.layers import norm_name
from plastax.types import Model

# These tests compile much and compute little. The emitters are those of users: a shortcut has to pass on every bit.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}
)
EXAMPLES = 6
IMAGE = (6, 5, 2)
STEM = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


class Passes(NamedTuple):
    """What the three ways through the network give."""

    apply: Any
    train: Any
    evaluate: Any


@functools.cache
def build() -> tuple[Model, Callable[..., Passes], Any, Any, jax.Array]:
    """A model, all of it as one program, parameters and statistics with nothing left at its start, and inputs."""
    model = ResNet18(channels=(3, 4), blocks=(1, 1), hidden=(5,), momentum=0.75).build(IMAGE, 3)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes)
    stats = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 2.0, x.shape), x.dtype), model.stats)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, *IMAGE)), jnp.float32)
    train, evaluate = model.train, model.evaluate
    assert train is not None
    assert evaluate is not None

    def run(params: Any, stats: Any, x: jax.Array) -> Passes:
        return Passes(model.apply(params, x), train(params, stats, {}, x), evaluate(params, stats, x))

    return model, jit(run), params, stats, x


def batch_moments(inputs: LayerInputs, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = np.concatenate([np.float64(kernel).reshape(-1, bias.size), np.float64(bias)[None]])
    z = (np.float64(rows(inputs)) @ weights).reshape(-1, bias.size)
    return z.mean(0), z.var(0)


def test_stages_halve_the_image_and_shortcuts_are_where_shapes_change() -> None:
    model, run, params, stats, x = build()
    features = run(params, stats, x).apply[1]
    assert {name: features[name].shape[1:] for name in model.hidden} == {
        "stem": (6, 5, 3),
        "block_0_0/conv_0": (6, 5, 3),
        "block_0_0/conv_1": (6, 5, 3),
        "block_1_0/conv_0": (3, 3, 4),
        "block_1_0/conv_1": (3, 3, 4),
        "dense_0": (5,),
    }
    shortcuts = [name for name in tree.named_leaves(params) if name.endswith("shortcut/kernel")]
    assert shortcuts == ["block_1_0/shortcut/kernel"]
    assert params["block_1_0"]["shortcut"]["kernel"].shape == (1, 1, 3, 4)
    assert params["stem"]["kernel"].shape == (3, 3, 2, 3)


def test_a_block_whose_branch_is_silent_passes_its_input_on() -> None:
    _, run, params, stats, x = build()

    def silent(name: str, leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if name.startswith(("block_0_0/norm_conv_1", "block_1_0/norm_conv_1")) else leaf

    features = run(tree.map_named(silent, params), stats, x).apply[1]
    np.testing.assert_array_equal(features["block_0_0/conv_1"], features["stem"])
    assert np.abs(features["stem"]).max() > 0.1
    # Every other place of the input, through the 1x1 convolution and its normalisation.
    leaves = {name: np.float64(leaf) for name, leaf in tree.named_leaves(params["block_1_0"]).items()}
    z = np.float64(features["block_0_0/conv_1"])[:, ::2, ::2] @ leaves["shortcut/kernel"][0, 0]
    z = (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)
    z = np.maximum(z * leaves["norm_shortcut/scale"] + leaves["norm_shortcut/bias"], 0)
    np.testing.assert_allclose(features["block_1_0/conv_1"], z, rtol=1e-4, atol=1e-4)


def test_training_moves_the_statistics_and_nothing_else() -> None:
    model, run, params, stats, x = build()
    passes = run(params, stats, x)
    outputs, features, inputs, moved = passes.train
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (outputs, features), passes.apply)
    leaves, old, new = (tree.named_leaves(t) for t in (params, stats, moved))
    assert set(new) == set(old)
    convs = [layer for layer in model.layers if not layer.startswith(("dense", "output"))]
    assert len(new) == 2 * len(convs)
    for layer in convs:
        mean, var = batch_moments(inputs[layer], leaves[f"{layer}/kernel"], leaves[f"{layer}/bias"])
        for name, value in ((f"{norm_name(layer)}/mean", mean), (f"{norm_name(layer)}/var", var)):
            np.testing.assert_allclose(new[name], 0.75 * old[name] + 0.25 * value, rtol=1e-4, atol=1e-5)


def test_momentum_is_the_documented_one() -> None:
    assert ResNet18().momentum == 0.9


def test_statistics_start_as_a_standard_normal() -> None:
    for name, value in tree.named_leaves(build()[0].stats).items():
        np.testing.assert_array_equal(value, float(name.endswith("var")))


def test_evaluation_uses_the_statistics_and_no_other_example() -> None:
    _, run, params, stats, x = build()
    passes = run(params, stats, x)
    changed = run(params, stats, x.at[2:].multiply(-3.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:2], b[:2], atol=1e-5), passes.evaluate, changed.evaluate)
    # By the batch, an example's outputs depend on the others.
    assert np.abs(passes.apply[0][:2] - changed.apply[0][:2]).max() > 1e-2

    leaves, moments = ({n: np.float64(v) for n, v in tree.named_leaves(t).items()} for t in (params, stats))
    weights = np.concatenate([leaves["stem/kernel"].reshape(-1, 3), leaves["stem/bias"][None]])
    z = np.float64(rows(LayerInputs(x, True, STEM))) @ weights
    z = (z - moments["norm_stem/mean"]) / np.sqrt(moments["norm_stem/var"] + 1e-5)
    z = np.maximum(z * leaves["norm_stem/scale"] + leaves["norm_stem/bias"], 0)
    stem = passes.evaluate[1]["stem"]
    np.testing.assert_allclose(stem, z.reshape(stem.shape), rtol=1e-4, atol=1e-4)


def test_evaluation_by_a_batchs_own_statistics_is_training() -> None:
    _, run, params, stats, x = build()
    passes = run(params, stats, x)
    own = jax.tree.map(lambda new, old: 4.0 * (new - 0.75 * old), passes.train[3], stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), run(params, own, x).evaluate, passes.apply
    )
    assert np.abs(passes.evaluate[0] - passes.apply[0]).max() > 0.1


def test_kernels_scale_with_the_outputs() -> None:
    model = ResNet18(channels=(16,), blocks=(1,), hidden=(90,)).build((4, 4, 3), 30)
    variances = {"stem": 2 / (9 * 16), "dense_0": 1 / 90, "output": 1 / 30}

    @jit
    def kernels(key: jax.Array) -> dict[str, jax.Array]:
        leaves = tree.named_leaves(model.init(key))
        return {name: leaves[f"{name}/kernel"] for name in variances}

    for name, kernel in kernels(jax.random.key(2)).items():
        np.testing.assert_allclose(np.float64(kernel).var(), variances[name], rtol=0.15)
        # Cut off at two standard deviations of the normal distribution.
        assert np.abs(kernel).max() < 2 / 0.87 * np.sqrt(variances[name])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layer_norm_is_for_the_dense_layers(layer_norm: bool) -> None:
    model = ResNet18(channels=(2,), blocks=(1,), hidden=(3, 4), layer_norm=layer_norm).build((4, 4, 1), 2)
    names = tree.named_leaves(jax.eval_shape(model.init, jax.random.key(0)))
    norms = {name for name in names if "norm_" in name and "dense" in name}
    assert norms == ({f"norm_dense_{i}/{p}" for i in (0, 1) for p in ("scale", "bias")} if layer_norm else set())
