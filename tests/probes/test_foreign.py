"""Probes of networks of every make: the numbers of the same network in plastax's own form, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from plastax.models import MLP
from plastax.probes import GGN, Hessian, NTKProbe, TrainabilityProbe
from plastax.roles import Kernel, Roles
from plastax.types import Loss

KEY = jax.random.key(0)
CHOSEN = (
    "features", "weights", "gradient", "movement", Hessian(order=60, probes=1), GGN(order=4, examples=4),
    NTKProbe(examples=4), TrainabilityProbe(learning_rate=0.1, steps=10, examples=4),
)  # fmt: skip
OWN = MLP(hidden=(6,)).build((4,), 3)
PARAMS = OWN.init(KEY)


def batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((8, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 8))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(nn.Dense(6)(x))
        return nn.Dense(3)(hidden), {"dense_0": hidden}


class Nnx(nnx.Module):
    def __init__(self) -> None:
        self.first, self.second = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(self.first(x))
        return self.second(hidden), {"dense_0": hidden}


@jax.tree_util.register_dataclass
@dataclass
class Linear:
    """As in Equinox: units in front."""

    weight: Any
    bias: Any


def forms() -> dict[str, tuple[Any, Callable]]:
    """Name -> the parameters, and ``apply`` of them."""
    (w0, b0), (w1, b1) = ((PARAMS[layer]["kernel"], PARAMS[layer]["bias"]) for layer in ("dense_0", "output"))
    graph, state = nnx.split(Nnx(), nnx.Param)
    leaves = {"first": (w0, b0), "second": (w1, b1)}
    for layer, (kernel, bias) in leaves.items():
        state[layer]["kernel"].set_value(kernel)
        state[layer]["bias"].set_value(bias)

    def plain(first: Callable, second: Callable) -> Callable:
        def apply(params: Any, x: jax.Array) -> Any:
            hidden = nn.relu(first(params, x))
            return second(params, hidden), {"dense_0": hidden}

        return apply

    return {
        "linen": (
            {"Dense_0": {"kernel": w0, "bias": b0}, "Dense_1": {"kernel": w1, "bias": b1}},
            lambda p, x: Linen().apply({"params": p}, x),
        ),
        "nnx": (state, lambda p, x: nnx.merge(graph, p)(x)),
        "haiku": (
            {"linear": {"w": w0, "b": b0}, "linear_1": {"w": w1, "b": b1}},
            plain(lambda p, x: x @ p["linear"]["w"] + p["linear"]["b"][None],
                  lambda p, x: x @ p["linear_1"]["w"] + p["linear_1"]["b"][None]),
        ),
        "equinox": (
            [Linear(w0.T, b0), Linear(w1.T, b1)],
            plain(lambda p, x: x @ p[0].weight.T + p[0].bias[None], lambda p, x: x @ p[1].weight.T + p[1].bias[None]),
        ),
    }  # fmt: skip


def measure(params: Any, apply: Callable, chosen: Any = CHOSEN, **options: Any) -> dict[str, jax.Array]:
    given = {"initial": jax.tree.map(lambda x: 0.5 * x, params), "previous": params}
    return probes.measure(chosen, params, apply, batch(), KEY, **given, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["linen", "nnx", "haiku", "equinox"])
def test_every_probe_has_the_numbers_of_plastax_own_form(form: str) -> None:
    expected, found = measure(PARAMS, OWN.apply, roles=OWN.roles), measure(*forms()[form])
    assert found.keys() == expected.keys()
    # All eigenvalues are found, by other probe vectors: those of the tree's own order.
    chance = {name for name in expected if name.endswith(("residual", "residuals", "breakdowns"))}
    for name in expected.keys() - chance:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("form", ["nnx", "equinox"])
def test_weights_are_found_whatever_they_are_called(form: str) -> None:
    params, apply = forms()[form]
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


def test_one_dense_layer_is_a_network() -> None:
    net = nn.Dense(3)
    params = net.init(KEY, batch()[0])["params"]
    found = measure(params, models.tapped(net), ("weights", "gradient", "kronecker"))
    np.testing.assert_allclose(found["weights/norm"], [np.linalg.norm(params["kernel"])], rtol=1e-5)
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
