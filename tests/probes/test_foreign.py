"""Probes of networks of every make: the numbers of the same network in plastax's own form, or a refusal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import models, probes
from plastax.curvature.losses import LOSSES
from plastax.errors import ConfigError
from plastax.probes import GGN, Hessian, NTKProbe, TrainabilityProbe
from plastax.roles import Kernel, Roles
from plastax.types import Loss
from tests.foreign import FORMS, MODEL

KEY = jax.random.key(0)
CHOSEN = (
    "features", "weights", "gradient", "movement", Hessian(order=64, probes=1), GGN(order=4, examples=4),
    NTKProbe(examples=4), TrainabilityProbe(learning_rate=0.1, steps=10, examples=4),
)  # fmt: skip
# A stack of layers is one layer, after the output layer in the order of the tree.
OF_STACKS = {
    "weights/norm": np.linalg.norm,
    "weights/mean_magnitude": np.mean,
    "weights/spectral_norm": np.max,
    "gradient/layer_norm": np.linalg.norm,
    "gradient/layer_l1": np.sum,
    "gradient/layer_zero_fraction": np.mean,
    "movement/from_init": np.linalg.norm,
    "movement/change": np.linalg.norm,
}
OWN = MODEL
PARAMS = OWN.init(KEY)


def batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((8, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 8))


def measure(
    params: Any, apply: Callable, chosen: Any = CHOSEN, data: Any = None, **options: Any
) -> dict[str, jax.Array]:
    given = {"initial": jax.tree.map(lambda x: 0.5 * x, params), "previous": params}
    return probes.measure(chosen, params, apply, data or batch(), KEY, **given, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_probe_has_the_numbers_of_plastax_own_form(form: str) -> None:
    given = FORMS[form]
    with jax.enable_x64(True) if form == "double" else contextlib.nullcontext():
        own, theirs = given.model(False), given.model(True)
        params, x = own.init(KEY), batch()[0].astype(given.dtype)
        chosen = CHOSEN if own.hidden else CHOSEN[1:]
        expected, found = (
            measure(p, model.apply, chosen, (x, batch()[1]), roles=model.roles)
            for p, model in ((params, own), (given.to(params), theirs))
        )
        if not own.hidden:
            with pytest.raises(ConfigError, match="no features"):
                measure(given.to(params), theirs.apply, ("features",), roles=theirs.roles)
    assert found.keys() == expected.keys()
    # All eigenvalues are found, by other probe vectors: those of the tree's own order.
    chance = {name for name in expected if name.endswith(("residual", "residuals", "breakdowns"))}
    if form == "scanned":
        expected |= {name: np.array([expected[name][2], of(expected[name][:2])]) for name, of in OF_STACKS.items()}
    for name in expected.keys() - chance:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("form", ["nnx", pytest.param("equinox", marks=pytest.mark.slow)])
def test_weights_are_found_whatever_they_are_called(form: str) -> None:
    params, apply = FORMS[form].to(PARAMS), FORMS[form].apply
    found = measure(params, apply, ("weights",))
    for layer, place in (("dense_0", 0), ("output", 1)):
        kernel = np.asarray(PARAMS[layer]["kernel"], np.float64)
        np.testing.assert_allclose(found["weights/spectral_norm"][place], np.linalg.norm(kernel, 2), rtol=1e-5)
        np.testing.assert_allclose(found["weights/norm"][place], np.linalg.norm(kernel), rtol=1e-5)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.MultiHeadDotProductAttention(2, out_features=3)(x[:, None], x[:, None])[:, 0]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.relu(nn.Dense(4)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[0]


def test_spectral_norms_are_of_the_matrices_that_layers_multiply_with() -> None:
    x = batch()[0]
    attention = Attention().init(KEY, x)["params"]
    found = measure(attention, lambda p, x: Attention().apply({"params": p}, x), ("weights",))
    (block,) = attention.values()
    sizes = {"query": (4, -1), "key": (4, -1), "value": (4, -1), "out": (-1, 3)}
    expected = [np.linalg.norm(np.asarray(block[name]["kernel"]).reshape(sizes[name]), 2) for name in sorted(sizes)]
    np.testing.assert_allclose(found["weights/spectral_norm"], expected, rtol=1e-5)

    stack = Scanned().init(KEY, x)["params"]
    found = measure(stack, lambda p, x: Scanned().apply({"params": p}, x), ("weights",))
    kernels = np.asarray(stack["ScanBlock_0"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(found["weights/spectral_norm"], [max(np.linalg.norm(k, 2) for k in kernels)], rtol=1e-5)


@pytest.mark.parametrize("make", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_one_dense_layer_is_a_network(make: str) -> None:
    net: Any = nn.Dense(3) if make == "linen" else nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    params = net.init(KEY, batch()[0])["params"] if make == "linen" else nnx.state(net, nnx.Param)
    found = measure(params, models.tapped(net), ("weights", "gradient", "kronecker"))
    np.testing.assert_allclose(found["weights/norm"], [np.linalg.norm(jax.tree.leaves(params)[1])], rtol=1e-5)
    assert found["kronecker/a_largest"].shape == (1,)


def test_kernels_that_no_shape_tells_of_are_declared() -> None:
    params = {"a": jnp.ones((4, 3))}
    apply = lambda p, x: x @ p["a"]  # noqa: E731
    with pytest.raises(ConfigError, match=r"weights: which axes of 'a' .* give roles=Roles"):
        measure(params, apply, ("weights",))
    found = measure(params, apply, ("weights",), roles=Roles(kernels={"a": Kernel((0,), (1,))}))
    np.testing.assert_allclose(found["weights/spectral_norm"], [np.sqrt(12.0)], rtol=1e-5)


def test_outputs_and_batches_of_other_shapes_are_named() -> None:
    x, y = batch()

    def pair(params: Any, x: jax.Array) -> Any:
        return OWN.apply(params, x)[0], x[:, 0]

    def both(out: Any, data: Any) -> jax.Array:
        return LOSSES["cross_entropy"].value(out[0], data) + jnp.mean(jnp.square(out[1]))

    for wrong in ({"image": x, "label": y}, (x,)):
        with pytest.raises(ConfigError, match=r"batch: a .* is not allowed; give \(inputs, labels\)"):
            probes.measure(("gradient",), PARAMS, OWN.apply, wrong, KEY)
    with pytest.raises(ValueError, match="one array, got a tuple"):
        measure(PARAMS, pair, ("gradient",))
    loss = Loss(both, lambda out, data, tangent: tangent)
    assert np.isfinite(measure(PARAMS, pair, ("gradient",), loss=loss)["gradient/norm"])
    with pytest.raises(ConfigError, match="features hidden are not allowed"):
        measure(PARAMS, lambda p, x: (OWN.apply(p, x)[0], {"hidden": [x]}), ("features",))
