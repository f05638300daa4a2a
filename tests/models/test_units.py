"""The contract of the models: names, taps, units, seeds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.curvature.kronecker import rows
from plastax.layers import Entries
from plastax.models import CNN, MLP, SUPERVISED, ActorCritic, ConvActorCritic, ResNet18
from plastax.types import Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES, OUTPUTS = 4, 3
IMAGE = (9, 8, 2)


@dataclasses.dataclass(frozen=True)
class Joined:
    """An actor-critic as a network with one array of outputs: the logits, then the value."""

    config: ActorCritic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def build(self, shape: tuple[int, ...], outputs: int) -> Model:
        model = self.config.build(shape, outputs - 1, continuous=False)

        def joined(outputs: dict[str, jax.Array], *rest: Any) -> Any:
            return jnp.concatenate([outputs["policy"], outputs["value"][:, None]], -1), *rest

        return model._replace(
            apply=lambda params, x: joined(*model.apply(params, x)),
            tapped=lambda params, taps, x: joined(*model.tapped(params, taps, x)),
        )


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (MLP(hidden=(6, 5)), (3, 2)),
    "mlp_layer_norm": (MLP(hidden=(6, 5), layer_norm=True, activation="leaky_relu"), (4,)),
    "mlp_crelu": (MLP(hidden=(4, 5), activation="crelu", initializer="orthogonal"), (4,)),
    "mlp_deep_fourier": (MLP(hidden=(4, 5), activation="deep_fourier"), (4,)),
    "cnn": (CNN(channels=(3, 4), kernels=(3, 2), hidden=(5,), activation="tanh"), IMAGE),
    "cnn_crelu": (CNN(channels=(3,), kernels=(2,), hidden=(5, 4), padding="VALID", activation="crelu"), IMAGE),
    "resnet": (ResNet18(channels=(3, 4), blocks=(1, 1), hidden=(5,)), IMAGE),
    "actor_critic": (Joined(ActorCritic(hidden=(4, 5), activation="silu", layer_norm=True)), (3,)),
    "actor_critic_conv": (Joined(ConvActorCritic(hidden=(5,), channels=(3, 3), activation="crelu")), IMAGE),
    "resnet_crelu": (ResNet18(channels=(3,), blocks=(1,), hidden=(5,), activation="crelu", layer_norm=True), IMAGE),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def build(case: str) -> tuple[Model, Any, jax.Array]:
    """A model (its `apply` compiled, once for all tests), parameters with nothing left at zero, and inputs."""
    config, shape = CASES[case]
    model = config.build(shape, OUTPUTS)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, *shape)), jnp.float32)
    return model._replace(apply=jit(model.apply)), params, x


def belongs(entries: tuple[Entries, ...], unit: int, width: int, name: str, leaf: jax.Array) -> np.ndarray:
    """Which entries of a parameter are the unit's, ``leaf``'s shape."""
    mask = np.zeros(leaf.shape, bool)
    for entry in entries:
        if entry.name == name:
            np.moveaxis(mask, entry.axis, 0)[unit::width] = True
    return mask


def shifted(params: Any, entries: tuple[Entries, ...], unit: int, width: int) -> Any:
    rng = np.random.default_rng(2)
    return tree.map_named(
        lambda n, x: x + belongs(entries, unit, width, n, x) * (2.0 + rng.standard_normal(x.shape).astype(x.dtype)),
        params,
    )


def cut(params: Any, entries: tuple[Entries, ...], unit: int, width: int) -> Any:
    return tree.map_named(lambda n, x: jnp.where(belongs(entries, unit, width, n, x), 0.0, x), params)


@every_case
def test_names_agree_with_the_parameters(case: str) -> None:
    model, params, x = build(case)
    leaves = tree.named_leaves(params)
    order: list[str] = []

    def call(params: Any, taps: Any, x: jax.Array) -> Any:
        outputs, features, inputs = model.tapped(params, taps, x)
        order.extend(features)
        assert tuple(inputs) == model.layers
        return outputs, features, inputs

    taps = model.taps(x)
    outputs, features, inputs = jax.eval_shape(call, params, taps, x)
    assert tuple(order) == model.hidden
    assert tuple(taps) == model.layers == tuple(name for name in model.layers if f"{name}/kernel" in leaves)
    assert set(model.hidden) < set(model.layers)
    assert outputs.shape == (EXAMPLES, OUTPUTS)
    assert {n for n in leaves if "norm_" not in n} == {f"{n}/{p}" for n in model.layers for p in ("kernel", "bias")}
    assert all(n.endswith(("scale", "bias")) for n in leaves if "norm_" in n)
    for layer in model.layers:
        kernel = leaves[f"{layer}/kernel"]
        assert kernel.shape[-2:] == (inputs[layer].values.shape[-1], taps[layer].shape[-1])
    for layer in model.hidden:
        doubled = 2 if CASES[case][0].activation in ("crelu", "deep_fourier") else 1
        assert features[layer].shape == (*taps[layer].shape[:-1], doubled * taps[layer].shape[-1])
    for layer, units in model.units.items():
        assert layer in model.hidden
        assert leaves[f"{layer}/kernel"].shape[-1] == units.width
        assert features[layer].shape[-1] == units.copies * units.width
        for entry in units.incoming:
            assert leaves[entry.name].shape[entry.axis] == units.width
        for entry in units.outgoing:
            assert leaves[entry.name].shape[entry.axis] % features[layer].shape[-1] == 0


@every_case
def test_layers_without_a_residual_stream_have_units(case: str) -> None:
    model, _, _ = build(case)
    expected = [n for n in model.hidden if "resnet" not in case or n.endswith("conv_0") or n.startswith("dense")]
    assert list(model.units) == expected


@every_case
def test_a_unit_is_its_incoming_entries_and_acts_through_its_outgoing_ones(case: str) -> None:
    model, params, x = build(case)
    apply = model.apply
    plain = apply(params, x)
    for layer, (width, incoming, outgoing, _) in model.units.items():
        # A LayerNorm mixes the units: what belongs to one unit alone comes after it.
        mixed = CASES[case][0].layer_norm and ("resnet" not in case or layer.startswith("dense"))
        own = tuple(entry for entry in incoming if "norm_" in entry.name) if mixed else incoming
        for unit, other in ((1, 0), (width - 1, 1)):
            outputs, features = apply(shifted(params, own, unit, width), x)
            moved = np.abs(features[layer] - plain[1][layer]).max(tuple(range(features[layer].ndim - 1)))
            mine = np.arange(moved.size) % width == unit
            assert moved[mine].max() > 1e-2
            np.testing.assert_allclose(moved[~mine], 0.0, atol=1e-6)
            assert np.abs(outputs - plain[0]).max() > 1e-3

            without = cut(params, outgoing, unit, width)
            before, after = apply(without, x)[0], apply(shifted(without, own, unit, width), x)[0]
            np.testing.assert_allclose(before, after, atol=1e-6)
            # The others act as before.
            assert np.abs(apply(shifted(without, own, other, width), x)[0] - before).max() > 1e-3
            if mixed:
                assert np.abs(apply(shifted(without, incoming, unit, width), x)[0] - before).max() > 1e-3


@pytest.mark.parametrize("case", ["mlp_layer_norm", "resnet"])
def test_taps_are_pre_activations(case: str, x64: None) -> None:
    """In double precision: in float32 two programs of a normalised network differ by what their compilers fused."""
    model, *rest = build(case)
    params, x, taps = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (*rest, model.taps(rest[-1])))
    weights = jnp.asarray(np.random.default_rng(3).standard_normal((EXAMPLES, OUTPUTS)))

    def loss(params: Any, taps: Any) -> tuple[jax.Array, Any]:
        outputs, features, inputs = model.tapped(params, taps, x)
        return jnp.sum(weights * jnp.square(outputs)), ((outputs, features), inputs)

    (grads, tap_grads), (tapped, inputs) = jit(jax.grad(loss, (0, 1), has_aux=True))(params, taps)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(b).max()), tapped, model.apply(params, x)
    )
    leaves = tree.named_leaves(grads)
    for layer in model.layers:
        kernel = leaves[f"{layer}/kernel"]
        assert kernel.dtype == np.float64
        gradient = tap_grads[layer].reshape(EXAMPLES, -1, kernel.shape[-1])
        outer = np.einsum("bti,bto->io", rows(inputs[layer]), gradient)
        scale = np.abs(outer).max()
        assert scale > 1e-3
        np.testing.assert_allclose(kernel.reshape(-1, kernel.shape[-1]), outer[:-1], atol=1e-9 * scale)
        np.testing.assert_allclose(leaves[f"{layer}/bias"], outer[-1], atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MLP(hidden=(3,), initializer="orthogonal", layer_norm=True), (2,)),
        (ResNet18(channels=(2,), blocks=(1,), hidden=()), (4, 4, 1)),
    ],
)
def test_seeds(config: Any, shape: tuple[int, ...]) -> None:
    """A seed is its key's draw and its own network, alone and among others."""
    model = config.build(shape, OUTPUTS)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((EXAMPLES, *shape)), jnp.float32)

    def run(key: jax.Array) -> Any:
        params = model.init(key)
        return params, model.apply(params, x)[0]

    alone, keys = jit(run), jax.random.split(jax.random.key(0), 2)
    (first, _), second = alone(keys[0]), alone(keys[1])
    jax.tree.map(np.testing.assert_array_equal, first, alone(keys[0])[0])
    a, b = tree.named_leaves(first), tree.named_leaves(second[0])
    assert all((a[name] != b[name]).any() == name.endswith("kernel") for name in a)
    assert all((a[name] == name.endswith("scale")).all() for name in a if not name.endswith("kernel"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), jit(jax.vmap(run))(keys), second
    )


SIZES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "mlp": ((28, 28, 1), 10, 2_797_010),
    "cnn": ((32, 32, 3), 2, 373_826),
    "resnet18": ((32, 32, 3), 100, 11_750_244),
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_registered_models_have_the_documented_sizes(name: str) -> None:
    assert name in SIZES, f"give {name} an entry in SIZES: shape of an example, outputs, number of parameters"
    tested = {type(getattr(config, "config", config)) for config, _ in CASES.values()}
    assert type(SUPERVISED[name]) in tested, f"give {name} an entry in CASES: small settings, shape of an example"
    shape, outputs, size = SIZES[name]
    model = SUPERVISED[name].build(shape, outputs)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert tree.size(params) == size
    z, features = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert z.shape == (2, outputs)
    assert set(features) == set(model.hidden)
    assert (model.train is None) == (model.evaluate is None) == (model.stats == ()) == (name != "resnet18")
