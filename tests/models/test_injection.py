"""Injected heads: nothing before they are trained, the new one alone afterwards; for every model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.errors import ConfigError
from plastax.models import CNN, MLP, ActorCritic, ResNet18
from plastax.types import Model
from tests.compiling import AS_USERS

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(kind: str, **options: Any) -> tuple[Model, jax.Array]:
    image = jax.random.normal(jax.random.key(9), (4, 8, 8, 2))
    if kind == "mlp":
        return MLP((6, 5), **options).build((3,), 2), image[:, 0, :3, 0]
    if kind == "actor_critic":
        return ActorCritic((6, 5), layer_norm=True, **options).build((3,), 2, continuous=True), image[:, 0, :3, 0]
    if kind == "cnn":
        return CNN((4,), (3,), (6, 5), layer_norm=True, **options).build((8, 8, 2), 3), image
    return ResNet18((4,), (1,), (6, 5), **options).build((8, 8, 2), 3), image


@pytest.mark.parametrize("kind", ["mlp", "cnn", pytest.param("resnet18", marks=pytest.mark.slow), "actor_critic"])
def test_equal_pairs_change_no_bit(kind: str) -> None:
    plain, x = build(kind)
    model, _ = build(kind, injections=2)
    params = jit(model.init)(jax.random.key(0))
    own = {name: value for name, value in params.items() if not name.startswith("injection_")}
    jax.tree.map(np.testing.assert_array_equal, own, jit(plain.init)(jax.random.key(0)))
    for i in range(2):
        pair = params[f"injection_{i}"]
        jax.tree.map(np.testing.assert_array_equal, pair["new"], pair["frozen"])
    first, second = (tree.named_leaves(params[f"injection_{i}"]["new"]) for i in range(2))
    assert all(not np.array_equal(first[name], second[name]) for name in first if name.endswith("kernel"))

    @functools.partial(jax.jit, compiler_options=AS_USERS)
    def both(params: Any, own: Any) -> Any:
        return model.apply(params, x), plain.apply(own, x)

    (outputs, features), (expected, _) = both(params, own)
    jax.tree.map(np.testing.assert_array_equal, outputs, expected)
    assert set(features) == set(model.hidden)
    assert {f"{layer}/kernel" for layer in model.layers} == {n for n in tree.named_leaves(params) if "kernel" in n}
    assert set(model.taps(x)) == set(model.factored)
    if model.evaluate is not None:

        @functools.partial(jax.jit, compiler_options=AS_USERS)
        def evaluated() -> Any:
            return model.evaluate(params, model.stats, x)[0], plain.evaluate(own, plain.stats, x)[0]

        np.testing.assert_array_equal(*evaluated())


def test_the_sum_is_the_heads() -> None:
    """Of heads that differ, also through the taps, whose gradients are those of the layers' pre-activations."""
    plain, x = build("mlp")
    model, _ = build("mlp", injections=1)
    params = model.init(jax.random.key(0))
    moved = jax.tree.map(lambda p: p + 0.1, params["injection_0"]["new"])
    params = params | {"injection_0": params["injection_0"] | {"new": moved}}
    outputs, _, inputs = model.tapped(params, model.taps(x), x)
    own = {name: params[name] for name in ("dense_0", "dense_1", "output")}
    pair = params["injection_0"]
    base, new, frozen = (plain.apply(own | head, x)[0] for head in ({}, pair["new"], pair["frozen"]))
    np.testing.assert_allclose(outputs, base + new - frozen, rtol=1e-5, atol=1e-6)
    assert set(inputs) == set(model.factored)

    def loss(params: Any, taps: Any) -> jax.Array:
        return jnp.sum(jnp.sin(model.tapped(params, taps, x)[0]))

    grads, tap_grads = jax.grad(loss, (0, 1))(params, model.taps(x))
    for name in model.layers:
        kernel = tree.named_leaves(grads)[f"{name}/kernel"]
        np.testing.assert_allclose(inputs[name].values.T @ tap_grads[name], kernel, rtol=1e-4, atol=1e-5, err_msg=name)


def test_units_of_shared_layers_have_no_effect_without_what_reads_them() -> None:
    model, x = build("mlp", injections=1)
    assert set(model.units) == {"dense_0"}
    params = model.init(jax.random.key(1))
    params = jax.tree.map(lambda p, n: p + 0.05 * n, params, tree.normal_like(jax.random.key(2), params))
    readers = {entry.name for entry in model.units["dense_0"].outgoing}
    assert readers == {"dense_1/kernel", "injection_0/new/dense_1/kernel", "injection_0/frozen/dense_1/kernel"}
    silent = tree.map_named(lambda name, p: p.at[2].set(0.0) if name in readers else p, params)
    poked = tree.map_named(lambda name, p: p.at[..., 2].add(1.0) if name == "dense_0/kernel" else p, silent)
    np.testing.assert_allclose(model.apply(poked, x)[0], model.apply(silent, x)[0], rtol=1e-6)


def test_what_is_trained_and_when() -> None:
    """Before the first switch the network's own head, then one new head after the other; the shared layers always."""
    config = methods.PlasticityInjection(injections=2)
    model, x = build("mlp", **config.model_options)
    method = config.build(optax.chain(optax.adam(1e-2), methods.weight_decay(1e-2)), model)
    params = model.init(jax.random.key(0))
    extra = {"key": jax.random.key(1), "clock": jnp.int32(0)}

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(model.apply(params, x)[0] - 1.0))

    @jax.jit
    def train(params: Any, state: Any) -> Any:
        for _ in range(2):
            updates, state = method.update(jax.grad(loss)(params), state, params, boundary=False, **extra)
            params = optax.apply_updates(params, updates)
        return params, state

    @jax.jit
    def switch(params: Any, state: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = method.update(zeros, state, params, boundary=True, **extra)
        return optax.apply_updates(params, updates), state

    def moved(before: Any, after: Any) -> set[str]:
        names = {
            name: not np.array_equal(a, b)
            for (name, a), b in zip(tree.named_leaves(before).items(), jax.tree.leaves(after), strict=True)
        }
        return {name.rpartition("/")[0] for name, m in names.items() if m}

    state, outputs = method.init(params), jax.jit(lambda p: model.apply(p, x)[0])
    heads = [
        {"dense_1", "output"},
        {"injection_0/new/dense_1", "injection_0/new/output"},
        {"injection_1/new/dense_1", "injection_1/new/output"},
    ]
    for head in [*heads, heads[-1]]:
        after, state = train(params, state)
        assert moved(params, after) == {"dense_0", *head}
        params, state = switch(after, state)
        assert not moved(after, params)
        np.testing.assert_array_equal(outputs(params), outputs(after))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"injections": -1}, r"model.injections: -1 .* give 0 or more"),
        ({"injections": 1, "head_layers": 1}, r"model.head_layers: 1 .* to 3"),
        ({"injections": 1, "head_layers": 4}, r"model.head_layers: 4 .* to 3"),
        ({"injections": 1, "hidden": ()}, r"model.injections: 1 .* without dense hidden layers"),
    ],
)
def test_bad_heads_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLP(**({"hidden": (6, 5)} | options)).build((3,), 2)
