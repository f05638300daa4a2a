"""What every parameter is, of networks of every make: by structure where that says it, by declaration, or unsaid."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import models, tree
from plastax.errors import ConfigError
from plastax.models import CNN, MLP, ActorCritic, ResNet18
from plastax.roles import STRUCTURE, Kernel, Roles, axes, convolution, from_matrices, kernels, matrices, norms, outputs


def zeros(**shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def linen(module, x):
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """As Equinox has it: a module is a tree, its kernel ``[out, in]``."""

    weight: jax.Array
    bias: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerNorm:
    weight: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Embedding:
    weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Network:
    layers: list


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, rngs=rngs, decode=False)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.LayerNorm()(nn.Dense(10)(x))), None


class Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Block, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=6)
        return stack()(x, None)[0]


X = jnp.zeros((2, 10))
DENSE, TURNED = Kernel((0,), (1,)), Kernel((1,), (0,))
# What each parameter is; of a kernel, its axes.
TREES = {
    "linen": (
        linen(nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.relu, nn.Dense(3)]), X),
        {"layers_0/kernel": DENSE, "layers_0/bias": "bias", "layers_1/scale": "scale", "layers_1/bias": "offset"},
    ),
    "one dense": (linen(nn.Dense(3), X), {"kernel": DENSE, "bias": "bias"}),
    "embedding": (linen(nn.Embed(5, 3), jnp.zeros(2, jnp.int32)), {"embedding": "embedding"}),
    "attention without biases": (
        linen(nn.Sequential([nn.MultiHeadDotProductAttention(2, use_bias=False)]), jnp.zeros((2, 5, 6))),
        {"layers_0/query/kernel": Kernel((0,), (1, 2)), "layers_0/out/kernel": Kernel((0, 1), (2,))},
    ),
    "scanned": (
        linen(Scanned(), X),
        {"ScanBlock_0/Dense_0/kernel": Kernel((1,), (2,)), "ScanBlock_0/LayerNorm_0/scale": "scale"},
    ),
    "nnx": (
        nnx.state(Nnx(nnx.Rngs(0)), nnx.Param),
        {
            "first/kernel/value": DENSE,
            "norm/scale/value": "scale",
            "norm/bias/value": "offset",
            "attention/value/kernel/value": Kernel((0,), (1, 2)),
        },
    ),
    "haiku": (
        {"mlp/~/linear_0": zeros(w=(4, 8), b=(8,)), "layer_norm": zeros(scale=(8,), offset=(8,))},
        {"mlp/~/linear_0/w": DENSE, "mlp/~/linear_0/b": "bias", "layer_norm/offset": "offset"},
    ),
    "gpt": ({"ln_1": zeros(g=(8,), b=(8,))}, {"ln_1/g": "scale", "ln_1/b": "offset"}),
    "equinox": (
        Network([Linear(jnp.zeros((8, 8)), jnp.zeros(8)), LayerNorm(jnp.zeros(8), jnp.zeros(8)), Linear(X, None)]),
        {"layers/0/weight": TURNED, "layers/1/weight": "scale", "layers/1/bias": "offset", "layers/2/weight": TURNED},
    ),
    "equinox in a dict": ({"a": Linear(jnp.zeros((8, 8)), jnp.zeros(8))}, {"a/weight": TURNED, "a/bias": "bias"}),
    "embedding of equinox": (Network([Embedding(jnp.zeros((5, 3)))]), {"layers/0/weight": "embedding"}),
    "pairs": ([(jnp.zeros((4, 8)), jnp.zeros(8))], {"0/0": DENSE, "0/1": "bias"}),
    "free": ({"log_std": jnp.zeros(2)}, {"log_std": "other"}),
}


@pytest.mark.parametrize("make", TREES)
def test_parameters_are_told_by_what_they_are(make: str) -> None:
    params, expected = TREES[make]
    found = STRUCTURE.of(params)
    assert set(found) == set(tree.named_leaves(params))
    for name, what in expected.items():
        if isinstance(what, str):
            assert found[name].kind == what, name
        else:
            assert axes(name, found[name], "test") == what, name


UNCLEAR = {
    "a convolution or attention": {"a": zeros(kernel=(3, 4, 8))},
    "a stack or attention": {"a": zeros(kernel=(6, 6, 10), bias=(6, 10))},
    "square, in either order": [(jnp.zeros((8, 8)), jnp.zeros(8))],
    "two matrices": zeros(w1=(4, 8), w2=(8, 8)),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_what_shapes_leave_open_is_refused_by_name(what: str) -> None:
    found = STRUCTURE.of(UNCLEAR[what])
    name, role = next(iter(kernels(found, "test").items()))
    with pytest.raises(ConfigError, match=r"test: which axes of '.*' \[.*\] .* cannot be told .* give roles="):
        axes(name, role, "test")


def test_only_who_asks_for_a_window_must_know_it() -> None:
    found = STRUCTURE.of({"a": zeros(kernel=(3, 3, 4, 8), bias=(8,))})["a/kernel"]
    assert axes("a/kernel", found, "test").outputs == (3,)
    with pytest.raises(ConfigError, match="which axes of 'a/kernel'"):
        axes("a/kernel", found, "test", places=True)


def test_a_lone_vector_may_be_a_normalisation() -> None:
    """As with `nn.LayerNorm(use_scale=False)`, or a hand-written RMSNorm."""
    for params in ({"a": zeros(bias=(8,))}, {"a": zeros(size=(8,))}):
        found = STRUCTURE.of(params)
        with pytest.raises(ConfigError, match=r"whether 'a/.*' belongs to a norm.*Roles\(norms=\('a',\)\)"):
            norms(found, "test")
        assert norms(Roles(norms=("a",)).of(params), "test") == {*tree.named_leaves(params)}


def test_what_is_declared_holds() -> None:
    params = {"a": zeros(kernel=(6, 6, 10), bias=(6, 10)), "b": {"c": zeros(kernel=(3, 4, 8))}, "t": jnp.zeros(())}
    found = Roles(output=("b/*",), stacked={"a": 1}, kernels={"b/c/kernel": convolution(1)}, others=("t",)).of(params)
    assert axes("a", found["a/kernel"], "test") == Kernel((1,), (2,))
    assert axes("b", found["b/c/kernel"], "test", places=True) == Kernel((1,), (2,), (0,))
    assert found["t"].kind == "other"
    assert set(outputs(found, "test")) == {"b/c/kernel"}
    assert set(kernels(found, "test", hidden=True)) == {"a/kernel"}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (Roles(output=("hed",)), r"roles.output: 'hed' is unknown \(did you mean 'head'\?\)"),
        (Roles(kernels={"head/kern": Kernel((0,), (1,))}), "roles.kernels: 'head/kern' is unknown"),
        (Roles(kernels={"head/kernel": Kernel((0,), (2,))}), r"does not fit 'head/kernel' \[4, 8\]"),
        (Roles(kernels={"head/kernel": Kernel((0,), (-2,))}), r"does not fit 'head/kernel' \[4, 8\]"),
    ],
)
def test_a_declaration_that_fits_nothing_is_refused(roles: Roles, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        roles.of({"head": zeros(kernel=(4, 8), bias=(8,))})


def test_output_layers_are_never_guessed() -> None:
    found = STRUCTURE.of({"hidden": zeros(kernel=(4, 8)), "output": zeros(kernel=(8, 2))})
    for ask in (lambda: outputs(found, "test"), lambda: kernels(found, "test", hidden=True)):
        with pytest.raises(ConfigError, match=r"test: nothing says which .* 'hidden', 'output'\)"):
            ask()


def test_matrices_come_back() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    role = STRUCTURE.of({"a": {"kernel": x}})["a/kernel"]
    kernel = Kernel((3,), (1,), (2,))
    got = matrices(jnp.asarray(x), role, kernel)
    np.testing.assert_array_equal(got, x.transpose(0, 2, 3, 1).reshape(2, 20, 3).astype(np.float32))
    np.testing.assert_array_equal(from_matrices(got, role, kernel), x.astype(np.float32))


MODELS = {
    "mlp": lambda: MLP(hidden=(5, 4), layer_norm=True).build((3,), 2),
    "injected": lambda: MLP(hidden=(5, 4), injections=1).build((3,), 2),
    "cnn": lambda: CNN(channels=(2,), kernels=(3,), hidden=(4,)).build((4, 4, 1), 2),
    "resnet": lambda: ResNet18(channels=(2, 3), blocks=(1, 1), hidden=(4,)).build((4, 4, 1), 2),
    "agent": lambda: ActorCritic(hidden=(4,)).build((3,), 2, continuous=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_own_networks_know_everything(name: str) -> None:
    model = MODELS[name]()
    found = model.roles.of(jax.eval_shape(model.init, jax.random.key(0)))
    assert [role.layer for role in kernels(found, "test").values()] == sorted(model.layers)
    for parameter, role in found.items():
        assert role.kind != "unknown"
        assert role.output == ("output" in parameter.split("/"))
        assert (role.kind in ("scale", "offset")) == ("norm_" in parameter)
        if role.kind == "kernel":
            kernel = axes(parameter, role, "test", places=True)
            assert (kernel.places, kernel.outputs) == (((0, 1), (3,)) if len(role.shape) == 4 else ((), (1,)))
        if role.kind == "bias":
            assert role.stacks == (0,)


class Vision(nn.Module):
    """Layers without biases, of every kind, under names of their own."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.LayerNorm(name="calm")(x)).reshape(x.shape[0], -1, 4)
        x = nn.MultiHeadDotProductAttention(2, use_bias=False)(x)
        x = nn.DenseGeneral(10, axis=(-2, -1), use_bias=False, name="flat")(x)
        x = Scanned()(x)
        return nn.Dense(3, name="last")(x), {"flat": nn.relu(x)}


def test_a_module_tells_what_shapes_do_not() -> None:
    module, x = Vision(), jnp.zeros((2, 4, 4, 1))
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    found = models.roles(module, x).of(params)
    kernel = lambda name: axes(name, found[name], "test", places=True)  # noqa: E731
    assert kernel("Conv_0/kernel") == Kernel((2,), (3,), (0, 1))
    assert kernel("MultiHeadDotProductAttention_0/query/kernel") == Kernel((0,), (1, 2))
    assert kernel("MultiHeadDotProductAttention_0/out/kernel") == Kernel((0, 1), (2,))
    assert kernel("flat/kernel") == Kernel((0, 1), (2,))
    assert kernel("Scanned_0/ScanBlock_0/Dense_0/kernel") == Kernel((1,), (2,))
    assert found["Scanned_0/ScanBlock_0/LayerNorm_0/scale"].stacks == (1,)
    assert found["calm/bias"].kind == "offset"
    assert {role.layer for role in found.values() if role.output} == {"last"}
    assert {role.layer for role in found.values() if role.normalized} == {"Conv_0", "Scanned_0/ScanBlock_0/Dense_0"}


def test_a_module_of_one_layer_and_one_whose_outputs_are_hidden() -> None:
    assert models.roles(nn.Dense(3), X).output == ("",)
    hidden = models.roles(nn.Sequential([nn.Dense(3), nn.softmax]), X)
    assert hidden.output is None
    with pytest.raises(ConfigError, match="is stacked, and not along its first axes"):
        models.roles(Scanned(axis=1), X)
