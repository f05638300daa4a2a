"""Taps on modules that know nothing of them: geometry of convolutions, names, what is refused."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import curvature, models, tree
from plastax.curvature.moments import rows
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


LAYERS = ("same", "strides", "valid", "dilation", "line", "tokens", "norm", "Dense_0", "Dense_1")


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
    for name in LAYERS[:-3]:
        kernel = np.float64(leaves[f"{name}/kernel"])
        weights = [kernel.reshape(-1, kernel.shape[-1])]
        assert inputs[name].bias == (f"{name}/bias" in leaves)
        weights += [np.float64(leaves[f"{name}/bias"])[None]] if inputs[name].bias else []
        expected = np.float64(rows(inputs[name])) @ np.concatenate(weights)
        np.testing.assert_allclose(plain[name].reshape(expected.shape), expected, atol=1e-4)
        np.testing.assert_allclose(moved[name], plain[name] + shift[name], atol=1e-5)
    np.testing.assert_allclose(moved["norm"], plain["norm"] + 2.0 * shift["norm"], atol=1e-5)
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
    def both(params: Any) -> tuple[jax.Array, Any]:
        exact = curvature.ggn(lambda p, batch: module.apply({"params": p}, batch[0]), params, data, "mse")
        factors = curvature.kronecker(network, params, data, "mse")
        return curvature.dense(exact), factors[""]

    exact, (a, g) = both(params)
    assert np.abs(exact).max() > 0.1
    # The bias is the factor's last row, and the first of the parameters.
    np.testing.assert_allclose(np.roll(np.kron(a, g), 2, axis=(0, 1)), exact, rtol=1e-6, atol=1e-7)


IMAGE = (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (nn.Conv(4, (3, 3), padding=1, input_dilation=2), IMAGE, "input_dilation=2"),
        (nn.Conv(4, (3, 3), padding="CIRCULAR"), IMAGE, "CIRCULAR"),
        (nn.Conv(4, (3, 3), mask=jnp.ones((3, 3, 4, 4))), IMAGE, "a mask"),
        (nn.Conv(4, (3, 3)), IMAGE[1:], r"inputs \(4, 4, 4\)"),
        (nn.DenseGeneral(3, axis=-1, batch_dims=0), IMAGE, "a kernel for each example"),
        (nn.Einsum((4, 3), "btsd,df->bf"), IMAGE, "btsd,df->bf.*leave it out"),
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
        (Normalised(False), {"more": {}}, params, r"variables: 'more' is not enough.*batch_stats"),
    ):
        with pytest.raises(ConfigError, match=says):
            models.tapped(module, variables=given).apply(params_given, {}, x)
    for average in (True, False):
        assert models.tapped(Normalised(average)).apply(variables, {}, x)[0].shape == (4, 3)
        assert models.tapped(Normalised(average), variables=rest).apply(params, {}, x)[0].shape == (4, 3)


def test_other_modules_than_those_of_flax_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"module: builtins.function is not allowed; give a module of flax.linen"):
        models.tapped(lambda x: x)  # type: ignore[arg-type]


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(3, name="last")(nn.relu(nn.Dense(4, name="first")(x)))


class Wrapped(nn.Module):
    """Two blocks of one class, and a layer outside of them."""

    block: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="output")(self.block(name="b")(self.block(name="a")(x)))


class NnxInner(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.last(nn.relu(self.first(x)))


class NnxWrapped(nnx.Module):
    def __init__(self, lift: Callable) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b, self.output = NnxInner(rngs), NnxInner(rngs), nnx.Linear(3, 2, rngs=rngs)
        self.lift = lift

    def __call__(self, x: jax.Array) -> jax.Array:
        block = self.lift(lambda inner, x: inner(x))
        return self.output(block(self.b, block(self.a, x)))


BLOCKS = ("a/first", "a/last", "b/first", "b/last", "output")
FORMS = {
    "remat": Wrapped(nn.remat(Inner)),
    "jit": Wrapped(nn.jit(Inner)),
    "nnx": NnxWrapped(lambda block: block),
    "nnx.remat": NnxWrapped(nnx.remat),
    "nnx.jit": NnxWrapped(nnx.jit),
}


def test_layers_are_tapped_in_every_form_as_in_a_plain_one() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    params = Wrapped(Inner).init(jax.random.key(0), x)["params"]
    FORMS["jit"].apply({"params": params}, x)  # What `nn.jit` keeps of a pass without taps must not be taken.
    for name, module in FORMS.items():
        for layers in (["b/last"], None):
            network = models.tapped(module, layers=layers)
            assert tuple(models.taps.parameters_of(network, x)) == (BLOCKS if layers is None else ("b/last",)), name

    @jit
    def passes(params: Any) -> Any:
        networks = [models.tapped(module) for module in (Wrapped(Inner), *FORMS.values())]

        def of(network: Any) -> Any:
            outputs, pull, inputs = jax.vjp(
                lambda params, taps: network.apply(params, taps, x), params, network.taps(x), has_aux=True
            )
            grads, tap_grads = pull(jnp.sin(outputs))
            return outputs, {name: seen.values for name, seen in inputs.items()}, grads, tap_grads

        return [of(network) for network in networks]

    expected, *found = passes(params)
    for name, each in zip(FORMS, found, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6, err_msg=name), each, expected)


def test_modules_of_nnx_are_convolutions_states_and_keys_too() -> None:
    class Network(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv, self.norm = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.dropout(nn.relu(self.norm(self.conv(x)))).mean((1, 2)))

    module, x = Network(), jnp.asarray(np.random.default_rng(0).standard_normal((5, 6, 6, 2)), jnp.float32)
    mean = np.asarray(module.norm.mean[...])
    params, network = nnx.state(module, nnx.Param), models.tapped(module)
    outputs, inputs = network.apply(params, {}, x)
    np.testing.assert_array_equal(network.apply(nnx.to_pure_dict(params), {}, x)[0], outputs)
    np.testing.assert_array_equal(module.norm.mean[...], mean)
    np.testing.assert_array_equal(module(x), outputs)
    twin = models.tapped(nn.Conv(4, (3, 3), strides=2))
    kernel = {"kernel": module.conv.kernel[...], "bias": module.conv.bias[...]}
    assert inputs["conv"].window == twin.apply(kernel, {}, x)[1][""].window
    shift = {"head": jnp.ones((5, 3))}
    np.testing.assert_allclose(network.apply(params, shift, x)[0], outputs + 1, atol=1e-5)


@pytest.mark.slow  # compiles much
def test_factors_of_a_module_of_nnx_are_those_of_its_twin() -> None:
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.standard_normal((5, 3)), jnp.float32), jnp.arange(5) % 2
    params = nnx.state(FORMS["nnx"], nnx.Param)

    @jit
    def both(params: Any) -> list[Any]:
        networks = [models.tapped(module, inputs=operator.itemgetter(0)) for module in (Wrapped(Inner), FORMS["nnx"])]
        given = nnx.to_pure_dict(params), params
        return [
            curvature.kronecker(network, p, data, "cross_entropy", kind="exact") for network, p in zip(networks, given)
        ]

    expected, found = both(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)


def test_what_cannot_be_tapped_in_nnx_is_refused() -> None:
    rngs = nnx.Rngs(0)
    rnn = nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match=r"is inside nnx.scan, nnx.vmap or nnx.RNN.*leave it out"):
        models.tapped(rnn)
    shared = nnx.Linear(3, 3, rngs=rngs)
    with pytest.raises(ConfigError, match=r"layers: 'kernel' is unknown"):
        models.tapped(nnx.Sequential(shared), layers=["kernel"])
    with pytest.raises(ConfigError, match=r"rngs: not for nnx modules; Linear has its own"):
        models.tapped(shared, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(ConfigError, match=r"params: kernel are not allowed; give nnx.state"):
        models.tapped(shared).apply({"kernel": jnp.ones((3, 3))}, {}, jnp.ones((1, 3)))


class Many(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "vmap":
            x = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})(3)(x)
        else:
            x = nn.RNN(nn.LSTMCell(3))(x[:, None])[:, 0]
        return nn.Dense(2, name="output")(x)


@pytest.mark.parametrize("kind", ["vmap", "rnn"])
def test_steps_that_share_a_layer_are_refused_and_can_be_left_out(kind: str) -> None:
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    params = jax.eval_shape(Many(kind).init, jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"is inside nn.scan, nn.vmap or nn.RNN.*leave it out"):
        models.tapped(Many(kind)).taps(x)
    with pytest.raises(ValueError, match=r"is inside nn.scan, nn.vmap or nn.RNN.*leave it out"):
        jax.eval_shape(lambda p, x: models.tapped(Many(kind)).apply(p, {}, x), params, x)
    network = models.tapped(Many(kind), layers=["output"])
    assert list(jax.eval_shape(lambda p, x: network.apply(p, network.taps(x), x), params, x)[1]) == ["output"]
    with pytest.raises(ConfigError, match=r"layers: 'outputs' is unknown \(did you mean 'output'\?\)"):
        models.tapped(Many(kind), layers=["outputs"]).taps(x)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(40)(x))
        return nn.Dense(2, name="output")(x)


def test_dropout_draws_with_the_keys_that_it_is_given() -> None:
    x = jnp.ones((5, 3))
    params = Noisy().init(jax.random.key(0), x, train=False)["params"]
    rngs = {"dropout": jax.random.key(1)}
    network = models.tapped(Noisy(), train=True, rngs=rngs)
    outputs, inputs = network.apply(params, network.taps(x), x)
    np.testing.assert_array_equal(outputs, Noisy().apply({"params": params}, x, train=True, rngs=rngs))
    assert 0.2 < np.mean(np.asarray(inputs["output"].values) == 0) < 0.8
    with pytest.raises(ConfigError, match=r"rngs: none is not enough for Noisy, which draws"):
        models.tapped(Noisy(), train=True).apply(params, {}, x)


def test_exact_factors_of_long_sequences_are_refused_before_they_are_computed() -> None:
    """Of 256 places of 1,000 classes: a cotangent of them all for each."""
    batch = jax.ShapeDtypeStruct((8, 256, 4), jnp.float32), jax.ShapeDtypeStruct((8, 256), jnp.int32)
    network = models.tapped(nn.Dense(1000), inputs=operator.itemgetter(0))
    params = jax.eval_shape(nn.Dense(1000).init, tree.key_like(), batch[0])["params"]

    def take(kind: str) -> Any:
        def factors(params: Any, batch: Any, key: jax.Array) -> Any:
            return curvature.kronecker(network, params, batch, "cross_entropy", kind=kind, key=key)

        return jax.eval_shape(factors, params, batch, tree.key_like())

    with pytest.raises(MemoryError, match=r"kind='exact' needs 1,\d{3}\.\d GiB .*take kind='sampled'"):
        take("exact")
    assert take("sampled")[""].g.shape == (1000, 1000)
