"""The contract of the models: names, taps, units, seeds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from plastax import tree
from plastax.models import CNN, GPT, MLP, SUPERVISED, ActorCritic, ConvActorCritic, ResNet18, ViT
from plastax.testing.models import Trial, check_names, check_padding, check_seeds, check_taps, check_units
from plastax.types import Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OUTPUTS = 3
IMAGE = (9, 8, 2)
SMALL: dict[str, Any] = {"width": 6, "depth": 1, "mlp_ratio": 2}


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
    "vit": (ViT(**SMALL, heads=3, patch=2), (4, 2, 2)),
    "vit_crelu": (ViT(**SMALL, heads=2, patch=2, pool="mean", activation="crelu", layer_norm=True), (4, 4, 1)),
    "gpt": (GPT(**SMALL, heads=2), (4,)),
    "actor_critic": (Joined(ActorCritic(hidden=(4, 5), activation="silu", layer_norm=True)), (3,)),
    "actor_critic_conv": (Joined(ConvActorCritic(hidden=(5,), channels=(3, 3), activation="crelu")), IMAGE),
    "resnet_crelu": (ResNet18(channels=(3,), blocks=(1,), hidden=(5,), activation="crelu", layer_norm=True), IMAGE),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def build(case: str) -> Trial:
    config, shape = CASES[case]
    return Trial(config.build(shape, OUTPUTS), shape)


@every_case
def test_names_agree(case: str) -> None:
    check_names(build(case), OUTPUTS)


# The others compile long; resnet's taps are tested in double precision, too.
@pytest.mark.parametrize("case", [c if "mlp" in c else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_seeds_and_taps(case: str) -> None:
    check_seeds(build(case))
    check_taps(build(case))


@every_case
def test_a_unit_is_its_incoming_entries_and_acts_through_its_outgoing_ones(case: str) -> None:
    """A LayerNorm mixes the units of its layer, and nothing else does."""
    trial, config = build(case), CASES[case][0]
    dense = [n for n in trial.model.units if n.startswith("dense") or n.endswith("/up") or "actor_critic" in case]
    assert check_units(trial) == (set(dense) if config.layer_norm else set())


@every_case
def test_parameters_have_our_names(case: str) -> None:
    model, leaves = build(case).model, tree.named_leaves(build(case).params)
    kept = {n for n in leaves if "norm_" not in n and not n.endswith("/embedding")}
    assert kept == {f"{n}/{p}" for n in model.layers for p in ("kernel", "bias")}
    assert all(n.endswith(("scale", "bias")) for n in leaves if "norm_" in n)
    assert set(model.hidden) < set(model.layers)


@every_case
def test_layers_without_a_residual_stream_have_units(case: str) -> None:
    model = build(case).model
    stream = ("stem", "/conv_1", "/mlp/down") if case.startswith(("resnet", "vit", "gpt")) else ()
    assert list(model.units) == [n for n in model.hidden if not n.endswith(stream)]
    doubled = 2 if CASES[case][0].activation in ("crelu", "deep_fourier") else 1
    assert all(units.copies == (1 if n.endswith("/value") else doubled) for n, units in model.units.items())


def test_padding_changes_no_other_place() -> None:
    check_padding(build("gpt"))


@pytest.mark.parametrize("case", ["mlp_layer_norm", "resnet"])
def test_taps_are_pre_activations(case: str, x64: None) -> None:
    """In double precision: in float32 two programs of a normalised network differ by what their compilers fused."""
    check_taps(build(case))


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MLP(hidden=(3,), initializer="orthogonal", layer_norm=True), (2,)),
        (ResNet18(channels=(2,), blocks=(1,), hidden=()), (4, 4, 1)),
    ],
)
def test_kernels_are_drawn_and_the_rest_starts_at_its_neutral_value(config: Any, shape: tuple[int, ...]) -> None:
    drawn = jit(config.build(shape, OUTPUTS).init)
    a, b = (tree.named_leaves(drawn(jax.random.key(seed))) for seed in range(2))
    assert all((a[name] != b[name]).any() == name.endswith("kernel") for name in a)
    assert all((a[name] == name.endswith("scale")).all() for name in a if not name.endswith("kernel"))


SIZES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "mlp": ((28, 28, 1), 10, 2_797_010),
    "cnn": ((32, 32, 3), 2, 373_826),
    "resnet18": ((32, 32, 3), 100, 11_750_244),
    "vit": ((28, 28, 1), 10, 116_938),
    "gpt": ((32,), 64, 120_928),
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
    x = jax.ShapeDtypeStruct((2, *shape), jnp.int32 if model.counted else jnp.float32)
    z, features = jax.eval_shape(model.apply, params, x)
    assert z.shape == ((2, *shape, outputs) if model.counted else (2, outputs))
    assert set(features) == set(model.hidden)
    assert (model.train is None) == (model.evaluate is None) == (model.stats == ()) == (name != "resnet18")
