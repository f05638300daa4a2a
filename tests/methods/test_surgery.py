"""Surgery: exactly a replaced unit's entries change, on every kind of network and in every optimiser's state."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import methods, tree
from plastax.errors import ConfigError
from plastax.layers import Entries, Units
from plastax.methods import surgery
from plastax.methods.base import apply_if
from plastax.models import CNN, GPT, MLP, ActorCritic, ConvActorCritic, ResNet18
from plastax.types import Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IMAGE = (6, 5, 2)
MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: MLP(hidden=(5, 4)).build((3,), 2),
    "mlp_layer_norm": lambda: MLP(hidden=(5, 4), layer_norm=True).build((3,), 2),
    "mlp_crelu": lambda: MLP(hidden=(3, 4), activation="crelu", initializer="orthogonal").build((3,), 2),
    "cnn": lambda: CNN(channels=(3, 4), kernels=(3, 2), hidden=(5,)).build(IMAGE, 2),
    "cnn_fourier": lambda: CNN(channels=(3,), kernels=(3,), hidden=(4,), activation="deep_fourier").build(IMAGE, 2),
    "resnet": lambda: ResNet18(channels=(3, 4), blocks=(1, 1), hidden=(5,)).build(IMAGE, 2),
    "actor_critic": lambda: ActorCritic(hidden=(5,)).build((3,), 2, continuous=True),
    "gpt": lambda: GPT(width=6, depth=1, heads=2, mlp_ratio=1).build((3,), 4),
    "conv_actor_critic": lambda: ConvActorCritic(hidden=(5,), channels=(3,)).build(IMAGE, 2, continuous=False),
}
OPTIMISERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "rmsprop": optax.rmsprop(0.1, initial_scale=0.5, centered=True, momentum=0.5),
    "adagrad": optax.adagrad(0.1),
    "adam_per_parameter": methods.adam_per_parameter(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), methods.l2_init(0.1), optax.adam(0.1), methods.l2(0.1)),
    "compose": methods.compose([methods.L2Init(), methods.WeightDecay()]).build(optax.adam(0.1)),
    "masked": optax.chain(optax.masked(optax.trace(0.9), lambda p: tree.map_named(lambda n, _: "bias" in n, p))),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


@functools.cache
def model_of(name: str) -> Model:
    """Built when a test needs it: at collection it would cost every process a second."""
    return MODELS[name]()


@functools.cache
def shapes_of(name: str) -> Any:
    return jax.eval_shape(model_of(name).init, jax.random.key(0))


def random_like(like: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def draw(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return np.asarray(rng.integers(3, 9, x.shape), x.dtype)
        return np.asarray(1.0 + rng.random(x.shape), x.dtype)

    return jax.tree.map(draw, like)


def numpy_masks(model: Model, chosen: dict[str, np.ndarray], shapes: dict[str, Any]) -> tuple[dict, dict]:
    """Incoming and outgoing entries, index by index."""
    masks = [{n: np.zeros(s.shape, bool) for n, s in shapes.items()} for _ in range(2)]
    for layer, mask in chosen.items():
        units = model.units[layer]
        for out, entries in zip(masks, (units.incoming, units.outgoing), strict=True):
            for name, axis in entries:
                view = np.moveaxis(out[name], axis, 0)
                for i in range(view.shape[0]):
                    view[i] |= mask[i // units.size % units.width]
    return masks[0], masks[1]


@functools.cache
def operation(name: str, optimiser: str) -> Any:
    """`surgery.replace`, compiled: without and with compensation."""
    units, inner = model_of(name).units, OPTIMISERS[optimiser]

    @jit
    def both(chosen: Any, fresh: Any, params: Any, updates: Any, state: Any, means: Any) -> Any:
        args = units, chosen, tree.named_leaves(fresh), params, updates, state, inner
        return surgery.replace(*args), surgery.replace(*args, means)

    return both


SLOW = ("adamw", "amsgrad", "adagrad", "injected")  # states like others'
PAIRS = [
    pytest.param(*pair, marks=pytest.mark.slow) if pair[0] in SLOW else pair
    for pair in zip(OPTIMISERS, itertools.cycle(MODELS))
]


@pytest.mark.parametrize(("optimiser", "name"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_exactly_the_stated_entries_change(optimiser: str, name: str, seed: int, share: float) -> None:
    model, inner, rng = model_of(name), OPTIMISERS[optimiser], np.random.default_rng(seed)
    params, updates, fresh = (random_like(shapes_of(name), seed + i) for i in range(3))
    start = inner.init(params)
    state = random_like(jax.eval_shape(inner.init, params), seed + 3)
    chosen = {layer: rng.random(units.width) < share for layer, units in model.units.items()}
    means = {n: np.float32(rng.standard_normal(u.copies * u.width * u.size)) for n, u in model.units.items()}
    results = operation(name, optimiser)(chosen, fresh, params, updates, state, means)
    w, u, f = (tree.named_leaves(t) for t in (params, updates, fresh))
    incoming, outgoing = numpy_masks(model, chosen, w)
    for (got, moved), compensate in zip(results, (False, True), strict=True):
        new = tree.named_leaves(got)
        shift = {n: np.zeros(x.shape) for n, x in w.items()}
        for layer, units in model.units.items() if compensate else ():
            mine = np.arange(means[layer].size) // units.size % units.width
            lost = np.where(chosen[layer][mine], means[layer], 0)
            for kernel, axis in units.outgoing:
                stepped = np.moveaxis(np.float64(w[kernel]) + u[kernel], axis, 0)
                for i in range(stepped.shape[0]):
                    each = stepped[i] * lost[i % lost.size]
                    shift[kernel.replace("kernel", "bias")] += each.reshape(-1, each.shape[-1]).sum(0)
        for leaf in w:
            stay = ~incoming[leaf] & ~outgoing[leaf] & (shift[leaf] == 0)
            np.testing.assert_array_equal(np.asarray(new[leaf])[stay], u[leaf][stay], err_msg=leaf)
            expected = np.where(incoming[leaf], f[leaf], np.where(outgoing[leaf], 0, w[leaf] + u[leaf] + shift[leaf]))
            np.testing.assert_allclose(w[leaf] + new[leaf], expected, rtol=1e-5, atol=1e-5, err_msg=leaf)
            # Zero is exact.
            assert not np.asarray(w[leaf] + new[leaf])[outgoing[leaf] & ~incoming[leaf]].any()

        cleared = 0
        for (path, before), after, first in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(moved), jax.tree.leaves(start), strict=True
        ):
            place = jax.tree_util.keystr(path)
            own = [n for n in w if tree.path_name(path).endswith(n)]
            if own and ".initial" not in place:
                leaf = max(own, key=len)
                mask = incoming[leaf] | outgoing[leaf]
                np.testing.assert_array_equal(after, np.where(mask, first, before), err_msg=place)
                cleared += mask.sum()
            else:
                np.testing.assert_array_equal(after, before, err_msg=place)
        assert bool(cleared) == any(m.any() for m in chosen.values())


ACTIVATIONS = {
    "mlp": lambda z: np.maximum(z, 0),
    "mlp_crelu": lambda z: np.maximum(np.concatenate([z, -z], -1), 0),
    "cnn_fourier": lambda z: np.concatenate([np.sin(z), np.cos(z)], -1),
    "conv_actor_critic": lambda z: np.maximum(z, 0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_new_unit_has_no_effect_and_its_mean_is_made_up_for(name: str) -> None:
    """The dense reader gets what the other units give; with compensation, also the mean of what is gone."""
    model = model_of(name)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((7, *((3,) if "mlp" in name else IMAGE))), jnp.float32)
    params, fresh = (jax.tree.map(jnp.asarray, random_like(shapes_of(name), i)) for i in (1, 2))
    params = jax.tree.map(lambda w: w - 1.4, params)
    layer = next(iter(model.units))
    width, _, ((kernel, _),), copies, _ = model.units[layer]
    chosen = {n: jnp.arange(u.width) % 2 < (n == layer) for n, u in model.units.items()}
    reader = kernel.removesuffix("/kernel")

    @jit
    def results(params: Any) -> Any:
        _, features, inputs = model.tapped(params, model.taps(x), x)
        means = {n: surgery.per_feature(features[n]) for n in model.units}
        given = [features[reader]]
        for m in (None, means):
            inner, zeros = optax.identity(), jax.tree.map(jnp.zeros_like, params)
            args = model.units, chosen, tree.named_leaves(fresh), params, zeros, inner.init(params), inner, m
            given.append(model.apply(optax.apply_updates(params, surgery.replace(*args)[0]), x)[1][reader])
        return given, inputs[reader].values.reshape(7, -1), means[layer]

    (before, plain, compensated), inputs, mean = jax.tree.map(np.float64, results(params))
    w, bias = (np.float64(tree.named_leaves(params)[f"{reader}/{part}"]) for part in ("kernel", "bias"))
    gone = np.asarray(chosen[layer])[np.arange(len(w)) % width]
    lost = inputs[:, gone] @ w[gone]
    z, act = inputs @ w + bias, ACTIVATIONS[name]
    assert np.abs(lost).max() > 1e-2
    np.testing.assert_allclose(before, act(z), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain, act(z - lost), rtol=1e-3, atol=1e-3)
    given = mean[np.arange(len(w)) % (copies * width)][gone] @ w[gone]
    np.testing.assert_allclose(compensated, act(z - lost + given), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["actor_critic", "mlp"])
def test_a_new_head_and_its_moments(name: str) -> None:
    """`reset_head`: the output layers, and no more."""
    model, inner = model_of(name), OPTIMISERS["chain"]
    method = methods.ResetHead().build(inner, model)
    params = random_like(shapes_of(name), 0)
    state = random_like(jax.eval_shape(inner.init, params), 3)
    fresh: list[Any] = []

    def init_fn(key: jax.Array) -> Any:
        fresh.append(random_like(shapes_of(name), 7))
        return fresh[0]

    zeros = jax.tree.map(np.zeros_like, params)
    updates, moved = method.update(zeros, state, params, key=jax.random.key(0), boundary=True, init_fn=init_fn)
    heads = {n for n in tree.named_leaves(params) if "output" in n}
    assert len(heads) == (4 if name == "actor_critic" else 2)
    drawn, new = tree.named_leaves(fresh[0]), tree.named_leaves(optax.apply_updates(params, updates))
    for n, old in tree.named_leaves(params).items():
        np.testing.assert_allclose(new[n], drawn[n] if n in heads else old, rtol=1e-6)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(moved), strict=True):
        place = tree.path_name(path)
        head = any(place.endswith(f"{part}/{n}") for n in heads for part in ("mu", "nu"))
        np.testing.assert_array_equal(after, 0 * before if head else before, err_msg=place)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 14),
)
def test_exactly_the_lowest_eligible_ones_are_chosen(units: list[tuple[int, bool]], count: int) -> None:
    units = units + [(0, False)] * (12 - len(units))  # One size, one compilation.
    scores, eligible = np.array([s for s, _ in units], np.float32), np.array([e for _, e in units])
    got = np.asarray(jit(surgery.lowest)(scores, eligible, np.int32(count)))
    expected = sorted(np.flatnonzero(eligible), key=lambda i: (scores[i], i))[:count]
    np.testing.assert_array_equal(np.flatnonzero(got), np.sort(expected))


def test_weights_are_averaged_over_all_readers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 3, 4, 5)), rng.standard_normal((8, 2))
    leaves = {"a/kernel": jnp.asarray(a, jnp.float32), "b/kernel": jnp.asarray(b, jnp.float32)}
    got = surgery.magnitude((Entries("a/kernel", -2), Entries("b/kernel", 0)), leaves, 4)
    expected = [np.concatenate([abs(a[:, :, i]).ravel(), abs(b[i::4]).ravel()]).mean() for i in range(4)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_condition_is_a_branch_under_vmap() -> None:
    """No seed pays for what none needs; where one does, the others stay as they are."""
    f = jax.vmap(lambda needed, x: apply_if(needed, lambda x: x * 2, x))
    assert "while" in str(jax.make_jaxpr(f)(jnp.array([False, True]), jnp.ones(2)))
    np.testing.assert_array_equal(f(jnp.array([False, True]), jnp.array([3.0, 4.0])), [3.0, 8.0])


@pytest.mark.parametrize(
    "config",
    [methods.ContinualBackprop(replacement_rate=0.0, maturity=1), methods.SelfNormalizedResets(level=0.0, patience=1)],
)
def test_off_replaces_nothing_however_old_or_silent(config: Any) -> None:
    model = model_of("mlp")
    params = random_like(shapes_of("mlp"), 0)
    method = config.build(optax.identity(), model)
    features = {n: -jnp.ones((2, u.width)) for n, u in model.units.items()}

    @jit
    def step(state: Any, clock: jax.Array) -> Any:
        extra = {"features": features, "init_fn": model.init, "boundary": False}
        return method.update(params, state, params, key=jax.random.key(0), clock=clock, **extra)

    state = method.init(params)
    for clock in range(5):
        updates, state = step(state, jnp.int32(clock))
        jax.tree.map(np.testing.assert_array_equal, updates, params)


def test_new_values_arrive_whole_where_the_step_size_has_fallen() -> None:
    """The program multiplies all of an update by the share of the step size that is left."""
    model, rate = model_of("mlp_crelu"), 0.2
    params, fresh = random_like(shapes_of("mlp_crelu"), 0), random_like(shapes_of("mlp_crelu"), 1)
    inner, ones = optax.identity(), jax.tree.map(np.ones_like, params)
    chosen = {n: jnp.arange(u.width) == 1 for n, u in model.units.items()}
    means = {n: jnp.full(u.copies * u.width, 2.0) for n, u in model.units.items()}
    results = []
    # A step of which a fifth is taken, and that fifth.
    for step, share in ((ones, rate), (jax.tree.map(lambda x: rate * x, ones), 1.0)):
        args = model.units, chosen, tree.named_leaves(fresh), params, step, inner.init(params), inner, means, share
        results.append(jax.tree.map(lambda w, u, share=share: w + share * u, params, surgery.replace(*args)[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


@pytest.mark.parametrize("order", [("redo", "weight_decay"), ("weight_decay", "redo")])
def test_nothing_is_added_to_a_new_unit(order: tuple[str, str]) -> None:
    """Composed in any order: what is replaced is as the replacement says."""
    parts = {"redo": methods.ReDo(period=1), "weight_decay": methods.WeightDecay(decay=0.5)}
    model = model_of("mlp")
    method = methods.compose([parts[name] for name in order]).build(optax.sgd(0.1), model)
    params = random_like(shapes_of("mlp"), 0)
    features = {n: jnp.arange(2.0 * u.width).reshape(2, -1) % u.width for n, u in model.units.items()}
    fresh = random_like(shapes_of("mlp"), 1)
    extra = {"key": jax.random.key(0), "clock": jnp.int32(1), "features": features, "boundary": False}
    grads = jax.tree.map(np.ones_like, params)
    updates, _ = method.update(grads, method.init(params), params, init_fn=lambda key: fresh, **extra)
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["dense_1"]["kernel"][0, 1:], 0.0)
    np.testing.assert_allclose(new["dense_0"]["kernel"][:, 0], fresh["dense_0"]["kernel"][:, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["continual_backprop", "redo", "regrama", "self_normalized_resets"])
@pytest.mark.parametrize("model", [None, MLP(hidden=()).build((3,), 2)])
def test_models_without_units_are_refused(name: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=f"methods: {name} .* without hidden units"):
        methods.METHODS[name].build(optax.sgd(0.1), model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: methods.ContinualBackprop(utility="contributoin"),
            "utility: 'contributoin' .*did you mean 'contribution'",
        ),
        (lambda: methods.ContinualBackprop(decay=1.0), "decay: 1.0"),
        (lambda: methods.ContinualBackprop(replacement_rate=1.5), "replacement_rate: 1.5"),
        (lambda: methods.SelfNormalizedResets(patience=0), "patience: 0"),
        (lambda: methods.SelfNormalizedResets(first_gap=0.5), "first_gap: 0.5"),
        (lambda: methods.SelfNormalizedResets(decay=1.1), "decay: 1.1"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_units_of_a_residual_layer_may_have_several_readers() -> None:
    units = {"a": Units(2, (Entries("a/kernel", -1),), (Entries("b/kernel", -2), Entries("c/kernel", -2)))}
    shapes = {"a": (1, 2), "b": (2, 3), "c": (4, 1)}
    params = {n: {"kernel": jnp.ones(s), "bias": jnp.zeros(s[-1])} for n, s in shapes.items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    fresh = {"a/kernel": jnp.full((1, 2), 7.0)}
    got, _ = surgery.replace(
        units,
        {"a": jnp.array([False, True])},
        fresh,
        params,
        zeros,
        optax.EmptyState(),
        optax.identity(),
        {"a": jnp.array([9.0, 2.0])},
    )
    new = optax.apply_updates(params, got)
    np.testing.assert_array_equal(new["a"]["kernel"], [[1.0, 7.0]])
    np.testing.assert_array_equal(new["b"]["kernel"], [[1.0] * 3, [0.0] * 3])
    np.testing.assert_array_equal(new["c"]["kernel"], [[1.0], [0.0], [1.0], [0.0]])
    np.testing.assert_array_equal(new["b"]["bias"], [2.0] * 3)
    np.testing.assert_array_equal(new["c"]["bias"], [4.0])


def test_units_that_the_network_does_not_have_are_named() -> None:
    units = {"dense_0": Units(5, (Entries("dense_0/kernel", -1),), (Entries("head/kernel", -2),))}
    params = random_like(shapes_of("mlp"), 0)
    with pytest.raises(ConfigError, match=r"redo: units\['dense_0'\]: 'head/kernel' is unknown"):
        methods.redo(optax.sgd(0.1), units).init(params)
    units = {"dense_0": Units(3, (Entries("dense_0/kernel", -1),), (Entries("dense_1/kernel", -2),))}
    with pytest.raises(ConfigError, match=r"axis -1 of 'dense_0/kernel' \[3, 5\] is not one of 3 units"):
        methods.redo(optax.sgd(0.1), units).init(params)
    for make in (methods.redo, methods.regrama, methods.self_normalized_resets, methods.continual_backprop):
        with pytest.raises(ConfigError, match="not allowed for a model without hidden units"):
            make(optax.sgd(0.1), {}).init(params)


def test_compensation_needs_a_bias_in_the_reader() -> None:
    params = random_like(shapes_of("mlp"), 0)
    del params["dense_1"]["bias"]
    units = {"dense_0": model_of("mlp").units["dense_0"]}
    with pytest.raises(ConfigError, match="compensate: True is not allowed: the layer of 'dense_1/kernel' has no bias"):
        methods.continual_backprop(optax.sgd(0.1), units).init(params)
    methods.continual_backprop(optax.sgd(0.1), units, compensate=False).init(params)
