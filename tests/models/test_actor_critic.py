"""The contract of the actor-critic networks: names, widths, taps, units."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.curvature.moments import rows
from plastax.errors import ConfigError
from plastax.models import ACTOR_CRITICS, ActorCritic, ConvActorCritic
from plastax.types import Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES, ACTIONS = 4, 3
CASES: dict[str, tuple[ActorCritic, tuple[int, ...], bool]] = {
    "image": (ActorCritic(hidden=(6, 5), activation="leaky_relu"), (3, 2, 2), False),
    "continuous": (ActorCritic(hidden=(6, 5), activation="tanh", initial_log_std=-0.5), (4,), True),
    "layer_norm": (ActorCritic(hidden=(6, 5), layer_norm=True, activation="silu"), (4,), False),
    "conv": (ConvActorCritic(hidden=(6,), channels=(3,)), (10, 10, 4), False),
    "deep_conv": (
        ConvActorCritic(hidden=(6,), channels=(3, 4), layer_norm=True, activation="leaky_relu"),
        (6, 7, 2),
        False,
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str) -> tuple[Model, Any, jax.Array]:
    """A model, its parameters with nothing left at zero, and inputs."""
    config, shape, continuous = CASES[case]
    model = config.build(shape, ACTIONS, continuous=continuous)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes)
    return model, params, jnp.asarray(rng.standard_normal((EXAMPLES, *shape)), jnp.float32)


def replaced(params: Any, name: str, value: Any) -> Any:
    assert name in tree.named_leaves(params)
    return tree.map_named(lambda n, x: jnp.asarray(value, x.dtype) if n == name else x, params)


@every_case
def test_names_and_shapes_agree_with_the_parameters(case: str) -> None:
    model, params, x = build(case)
    config, _, continuous = CASES[case]
    leaves = tree.named_leaves(params)
    outputs, features = jax.eval_shape(model.apply, params, x)
    taps = jax.eval_shape(model.taps, x)
    assert set(outputs) == {"policy", "value"} | ({"log_std"} if continuous else set())
    assert outputs["value"].shape == (EXAMPLES,)
    assert all(outputs[k].shape == (EXAMPLES, ACTIONS) for k in outputs if k != "value")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, outputs, features)))

    channels = config.channels if isinstance(config, ConvActorCritic) else ()
    widths = [*channels, *config.hidden]
    assert tuple(features) == model.hidden
    for network in ("actor", "critic"):
        names = [name for name in model.hidden if name.startswith(f"{network}/")]
        assert [features[name].shape[-1] for name in names] == widths
    for name in model.hidden:
        kernel = leaves[f"{name}/kernel"]
        assert features[name].shape[0] == EXAMPLES
        assert leaves[f"{name}/bias"].shape == kernel.shape[-1:] == features[name].shape[-1:]

    # Every layer with a kernel is tapped.
    assert set(model.layers) == {n.removesuffix("/kernel") for n in leaves if n.endswith("/kernel")}
    assert set(taps) == set(model.factored)
    inputs = jax.eval_shape(model.tapped, params, taps, x)[2]
    assert set(inputs) == set(model.factored)
    for layer in model.layers:
        kernel = leaves[f"{layer}/kernel"]
        assert kernel.shape[-2:] == (inputs[layer].values.shape[-1], taps[layer].shape[-1])
        assert inputs[layer].values.shape[0] == taps[layer].shape[0] == EXAMPLES
        assert inputs[layer].bias
        assert (inputs[layer].window is None) == (kernel.ndim == 2)
    assert set(leaves) == (
        {f"{n}/{part}" for n in {*model.layers, *model.hidden} for part in ("kernel", "bias")}
        | (
            {f"{n.replace('/', '/norm_')}/{p}" for n in model.hidden for p in ("scale", "bias")}
            if config.layer_norm
            else set()
        )
        | ({"log_std"} if continuous else set())
    )


@every_case
def test_taps_are_pre_activations(case: str) -> None:
    model, params, x = build(case)
    outputs, features = jit(model.apply)(params, x)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((EXAMPLES, ACTIONS + 1)), jnp.float32)

    def loss(params: Any, taps: dict, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, Any]:
        outputs, features, inputs = model.tapped(params, taps, x)
        z = jnp.concatenate([outputs["policy"], outputs["value"][:, None]], axis=1)
        return jnp.sum(weights * jnp.square(z)), (outputs, features, inputs)

    both = jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (grads, tap_grads), (tapped_outputs, tapped_features, inputs) = both(params, model.taps(x), x, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (tapped_outputs, tapped_features),
        (outputs, features),
    )

    leaves = tree.named_leaves(grads)
    for layer in model.layers:
        kernel = leaves[f"{layer}/kernel"]
        gradient = np.float64(tap_grads[layer]).reshape(EXAMPLES, -1, kernel.shape[-1])
        outer = np.einsum("bti,bto->io", np.float64(rows(inputs[layer])), gradient)
        np.testing.assert_allclose(kernel.reshape(-1, kernel.shape[-1]), outer[:-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(leaves[f"{layer}/bias"], outer[-1], rtol=1e-4, atol=1e-5)

    # A row of the taps' gradient is the example's own gradient.
    (alone, _), _ = both(params, model.taps(x), x, weights * (jnp.arange(EXAMPLES) == 2)[:, None])
    alone = tree.named_leaves(alone)
    for layer in model.layers:
        places = tuple(range(tap_grads[layer].ndim - 2))
        np.testing.assert_allclose(alone[f"{layer}/bias"], tap_grads[layer][2].sum(places), rtol=1e-4, atol=1e-5)


@every_case
def test_a_unit_acts_through_its_outgoing_weights_only(case: str) -> None:
    model, params, x = build(case)
    leaves = tree.named_leaves(params)
    apply = jit(model.apply)
    order = [name for name in leaves if name.endswith("/kernel")]
    for network, output in (("actor", "policy"), ("critic", "value")):
        layers = [name for name in model.hidden if name.startswith(network)] + [f"{network}/output"]
        assert {f"{name}/kernel" for name in layers} == {name for name in order if name.startswith(network)}
        for layer, following in itertools.pairwise(layers):
            unit, width = 1, leaves[f"{layer}/kernel"].shape[-1]
            # With a LayerNorm, what belongs to one unit alone comes after it.
            norm = f"{layer.replace('/', '/norm_')}/bias"
            bias = norm if norm in leaves else f"{layer}/bias"
            moved = np.array(leaves[bias])
            moved[unit] += 3.0
            before, after = apply(params, x)[0], apply(replaced(params, bias, moved), x)[0]
            assert np.abs(before[output] - after[output]).max() > 1e-3
            other = "value" if output == "policy" else "policy"
            np.testing.assert_array_equal(before[other], after[other])

            outgoing = np.array(leaves[f"{following}/kernel"])
            if outgoing.ndim == 4:
                outgoing[:, :, unit] = 0.0
            else:  # after a convolution, every place of the channel
                outgoing[unit::width] = 0.0
            cut = replaced(params, f"{following}/kernel", outgoing)
            before, after = apply(cut, x)[0], apply(replaced(cut, bias, moved), x)[0]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after)


@every_case
def test_actor_and_critic_share_nothing(case: str) -> None:
    model, params, x = build(case)

    @jit
    def jacobians(params: Any) -> tuple[Any, Any]:
        policy = jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, x)[0]["policy"])))(params)
        return policy, jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, x)[0]["value"])))(params)

    policy, value = (tree.named_leaves(g) for g in jacobians(params))
    for name in policy:
        assert np.any(policy[name] != 0) == name.startswith("actor/"), name
        assert np.any(value[name] != 0) == name.startswith("critic/"), name


@pytest.mark.parametrize("actions", [1, 2, 8, 9])
def test_heads_and_their_gradients_are_those_of_a_matrix_product(actions: int) -> None:
    model = ActorCritic(hidden=(5,)).build((4,), actions, continuous=False)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), jax.eval_shape(model.init, jax.random.key(0))
    )
    x, cotangent = (jnp.asarray(rng.standard_normal((6, n)), jnp.float32) for n in (4, actions))

    @jit
    def run(params: Any) -> Any:
        (policy, features), pull = jax.vjp(lambda p: (lambda o, f: (o["policy"], f))(*model.apply(p, x)), params)
        silent = jax.tree.map(jnp.zeros_like, features)
        return policy, features["actor/dense_0"], pull((cotangent, silent))[0]["actor"]

    policy, features, grads = run(params)
    head, h, g = params["actor"]["output"], np.float64(features), np.float64(cotangent)
    np.testing.assert_allclose(policy, h @ np.float64(head["kernel"]) + np.float64(head["bias"]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads["output"]["kernel"], h.T @ g, rtol=1e-5, atol=1e-5)
    back = g @ np.float64(head["kernel"]).T * (h > 0)
    np.testing.assert_allclose(grads["dense_0"]["kernel"], np.float64(x).T @ back, rtol=1e-5, atol=1e-5)


def test_initialisation_is_the_documented_one() -> None:
    model = ActorCritic(hidden=(6, 5), initial_log_std=-0.5).build((4,), ACTIONS, continuous=True)
    leaves = tree.named_leaves(jit(model.init)(jax.random.key(3)))
    for name, leaf in leaves.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0.0)
        elif name.endswith("kernel"):
            gain = {"actor/output/kernel": 0.01, "critic/output/kernel": 1.0}.get(name, np.sqrt(2.0))
            s = np.linalg.svd(np.float64(leaf), compute_uv=False)
            np.testing.assert_allclose(s, gain, rtol=1e-5)
    np.testing.assert_array_equal(leaves["log_std"], -0.5)


def test_layer_norm_is_before_the_nonlinearity() -> None:
    model, params, x = build("layer_norm")
    leaves = {name: np.float64(leaf) for name, leaf in tree.named_leaves(params).items()}
    features = jit(model.apply)(params, x)[1]
    z = np.float64(x) @ leaves["actor/dense_0/kernel"] + leaves["actor/dense_0/bias"]
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-6)
    z = z * leaves["actor/norm_dense_0/scale"] + leaves["actor/norm_dense_0/bias"]
    np.testing.assert_allclose(features["actor/dense_0"], z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-5)


def test_initialisation_vmaps_over_seeds() -> None:
    model = ConvActorCritic(hidden=(4,), channels=(3,)).build((4, 5, 2), ACTIONS, continuous=False)
    keys = jax.random.split(jax.random.key(0), 2)
    many, one = jit(jax.vmap(model.init))(keys), jit(model.init)(keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), many, one)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: ActorCritic(hidden=()), "model.hidden"),
        (lambda: ActorCritic(hidden=(4, 0)), "model.hidden"),
        (lambda: ActorCritic(activation="swoosh"), "model.activation: 'swoosh'"),
        (lambda: ConvActorCritic(channels=()), "model.channels"),
        (lambda: ConvActorCritic(channels=(0,)), "model.channels"),
        (lambda: ConvActorCritic(hidden=()), "model.hidden"),
        (lambda: ConvActorCritic().build((4,), 2, continuous=False), r"\(4,\)"),
        (lambda: ConvActorCritic().build((2, 9, 4), 2, continuous=False), "model.channels"),
        (lambda: ConvActorCritic(channels=(2,) * 5).build((10, 10, 4), 2, continuous=False), "allow 4"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        make()


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_registered_models_build_for_minatar(name: str) -> None:
    model = ACTOR_CRITICS[name].build((10, 10, 4), 6, continuous=False)
    params = jax.eval_shape(model.init, jax.random.key(0))
    outputs, _ = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 10, 10, 4), jnp.float32))
    assert outputs["policy"].shape == (2, 6)
