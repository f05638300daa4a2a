"""What every registered method keeps to, and what the methods that act at task switches keep to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.types import ConfigError, MethodArgs, Model

INNER = optax.adam(1e-2)
STEPS = 200
FIELDS = {name: [f.name for f in dataclasses.fields(config)] for name, config in METHODS.items()}
STRENGTHS = {name: [field for field in names if field != "period"] for name, names in FIELDS.items()}

every_method = pytest.mark.parametrize("name", METHODS)
every_field = pytest.mark.parametrize(("name", "field"), [(n, f) for n, names in FIELDS.items() for f in names])
at_boundaries = pytest.mark.parametrize("name", [name for name, config in METHODS.items() if config.needs_boundary])


@functools.cache
def model_of(name: str) -> Model:
    return ActorCritic(hidden=(8, 6), **METHODS[name].model_options).build((3,), 2, continuous=False)


def loss_fn(model: Model, params: Any, batch: dict) -> jax.Array:
    outputs, _ = model.apply(params, batch["x"])
    policy = jnp.square(outputs["policy"] - batch["y"]).sum(axis=1)
    return jnp.mean(policy + jnp.square(outputs["value"] - batch["v"]))


def draw(key: jax.Array) -> dict:
    """A batch of a fixed smooth target."""
    x = jax.random.normal(key, (16, 3))
    return {"x": x, "y": jnp.sin(x[:, :2]), "v": x[:, 0] * x[:, 1]}


def arguments(model: Model, params: Any, key: jax.Array, clock: Any, boundary: Any = False) -> tuple[Any, dict]:
    """A gradient, and the arguments that go with it, of which no method knows ``surprise``."""
    batch = draw(jax.random.fold_in(key, 1))
    loss = functools.partial(loss_fn, model)
    value, grads = jax.value_and_grad(loss)(params, batch)
    features_fn = lambda p, b: model.apply(p, b["x"])[1]  # noqa: E731
    features = features_fn(params, batch)
    args = MethodArgs(key, clock, batch, value, features, loss, features_fn, model.init, boundary)
    return grads, args._asdict() | {"surprise": jnp.ones(3)}


def step(method: Any, model: Model, params: Any, state: Any, key: jax.Array, clock: jax.Array) -> tuple[Any, Any, Any]:
    grads, args = arguments(model, params, key, clock)
    updates, state = method.update(grads, state, params, **args)
    return optax.apply_updates(params, updates), state, args["value"]


def train(name: str, fields: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Trains with ``fields`` in place of the configuration's own; parameters, state and losses."""
    model = model_of(name)
    method = dataclasses.replace(METHODS[name], **fields).build(INNER)
    params = model.init(key)

    def body(carry: tuple[Any, Any], clock: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        params, state, value = step(method, model, *carry, jax.random.fold_in(key, clock), clock)
        return (params, state), value

    (params, state), losses = jax.lax.scan(body, (params, method.init(params)), jnp.arange(STEPS))
    return params, state, losses


@functools.cache
def trainer(name: str) -> Callable[..., tuple[Any, Any, jax.Array]]:
    return jax.jit(functools.partial(train, name))


def numbers(name: str) -> dict[str, jax.Array]:
    """The method's fields, twice: as they are, and others."""
    config = METHODS[name]
    return {
        field: jnp.asarray([getattr(config, field), 4 if field == "period" else 30.0 * getattr(config, field)])
        for field in FIELDS[name]
    }


def pick(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@every_method
def test_second_call_does_not_trace_again(name: str, assert_no_retrace: Callable) -> None:
    model, method = model_of(name), METHODS[name].build(INNER)
    run = jax.jit(functools.partial(step, method, model))
    keys = [jax.random.key(i) for i in range(3)]
    clocks = [jnp.int32(i) for i in range(2)]
    params = jax.jit(model.init)(keys[2])
    params, state, _ = run(params, jax.jit(method.init)(params), keys[0], clocks[0])
    with assert_no_retrace():
        jax.block_until_ready(run(params, state, keys[1], clocks[1]))


@every_method
def test_state_keeps_its_structure_and_types(name: str) -> None:
    model, method = model_of(name), METHODS[name].build(INNER)
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    state = jax.eval_shape(method.init, params)
    later = jax.eval_shape(functools.partial(step, method, model), params, state, key, jnp.int32(3))
    for got, expected in zip(later[:2], (params, state), strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@every_method
def test_learns_and_is_deterministic(name: str) -> None:
    fields = pick(numbers(name), 0)
    params, state, losses = trainer(name)(fields, jax.random.key(0))
    assert_equal(trainer(name)(fields, jax.random.key(0)), (params, state, losses))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state, losses)))
    assert losses[-20:].mean() < 0.5 * losses[:20].mean()


@every_method
def test_vmaps_over_seeds_and_settings(name: str) -> None:
    keys = jax.random.split(jax.random.key(1), 2)
    fields = numbers(name)
    together = jax.vmap(functools.partial(train, name), in_axes=(None, 0))
    if fields:
        together = jax.vmap(together, in_axes=(0, None))
    _, _, losses = jax.jit(together)(fields, keys)
    losses = losses if fields else losses[None]
    for setting in range(len(losses)):
        for seed in range(2):
            _, _, alone = trainer(name)(pick(fields, setting), keys[seed])
            # Rounding grows with the steps.
            np.testing.assert_allclose(losses[setting, seed, :30], alone[:30], rtol=2e-4)
    assert not np.array_equal(losses[0, 0], losses[0, 1])
    if fields:
        assert not np.array_equal(losses[0, 0], losses[1, 0])


@every_method
def test_every_setting_matters(name: str) -> None:
    """No field is accepted and then ignored."""
    fields = numbers(name)
    _, _, before = trainer(name)(pick(fields, 0), jax.random.key(2))
    for field in fields:
        _, _, after = trainer(name)(pick(fields, 0) | {field: fields[field][1]}, jax.random.key(2))
        assert not np.array_equal(before, after), field


@every_method
def test_off_is_the_optimiser_bit_for_bit(name: str) -> None:
    model = model_of(name)
    off = dataclasses.replace(METHODS[name], **dict.fromkeys(STRENGTHS[name], 0.0)).build(INNER)
    start, params = (jax.jit(model.init)(jax.random.key(i)) for i in range(2))

    @jax.jit
    def updates(params: Any, clock: jax.Array) -> tuple[Any, Any]:
        states = off.init(start), INNER.init(start)
        for i in range(2):
            grads, args = arguments(model, params, jax.random.key(i), clock)
            got, state = off.update(grads, states[0], params, **args)
            expected, inner_state = INNER.update(grads, states[1], params)
            states = state, inner_state
        return got, expected

    for clock in (0, 1):
        assert_equal(*updates(params, jnp.int32(clock)))


@every_field
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan")])
def test_bad_settings_are_named(name: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"\.{field}: {value} .* give"):
        dataclasses.replace(METHODS[name], **{field: value})


@pytest.mark.parametrize("name", [name for name, names in FIELDS.items() if "period" in names])
def test_period_is_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match="period"):
        dataclasses.replace(METHODS[name], period=0)


@at_boundaries
@pytest.mark.parametrize("traced", [False, True])
def test_boundary_starts_again(name: str, traced: bool) -> None:
    model, method = model_of(name), METHODS[name].build(INNER)
    params, state, _ = trainer(name)({}, jax.random.key(0))
    key = jax.random.key(7)

    def switch(boundary: Any) -> tuple[Any, Any]:
        grads, args = arguments(model, params, key, jnp.int32(STEPS), boundary)
        updates, later = method.update(jax.tree.map(jnp.zeros_like, grads), state, params, **args)
        return optax.apply_updates(params, updates), later

    def call(boundary: bool) -> tuple[Any, Any]:
        return jax.jit(switch)(jnp.asarray(boundary)) if traced else jax.jit(lambda: switch(boundary))()

    new, new_state = call(True)
    fresh = jax.jit(model.init)(key)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-7), new, fresh)
    assert_equal(new_state, INNER.init(fresh))

    # No boundary is the optimiser; here on a zero gradient.
    still, still_state = call(False)
    updates, expected_state = jax.jit(INNER.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), still_state, expected_state)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), still, expected)

    # The new network learns.
    run = jax.jit(functools.partial(step, method, model))
    losses = []
    for clock in range(60):
        new, new_state, value = run(new, new_state, jax.random.key(clock), jnp.int32(clock))
        losses.append(value)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
