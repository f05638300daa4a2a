"""What every registered method keeps to, and what the methods that act at task switches keep to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax.methods import METHODS
from plastax.types import ConfigError, MethodArgs

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
INNER = optax.adam(1e-2)
STEPS = 200
FIELDS = {name: [f.name for f in dataclasses.fields(config)] for name, config in METHODS.items()}
STRENGTHS = {name: [field for field in names if field != "period"] for name, names in FIELDS.items()}

every_method = pytest.mark.parametrize("name", METHODS)
every_field = pytest.mark.parametrize(("name", "field"), [(n, f) for n, names in FIELDS.items() for f in names])
at_boundaries = pytest.mark.parametrize("name", [name for name, config in METHODS.items() if config.needs_boundary])


class Network(NamedTuple):
    """One hidden layer, with or without LayerNorm: small, because every test compiles its training anew."""

    layer_norm: bool

    def init(self, key: jax.Array) -> Any:
        draw = jax.random.uniform(key, (4, 8), minval=-1.0)
        params = {
            "dense_0": {"bias": jnp.zeros(8), "kernel": draw[:3]},
            "output": {"kernel": draw[3:].T / 2},
        }
        return params | ({"norm_dense_0": {"scale": jnp.ones(8)}} if self.layer_norm else {})

    def features(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        h = batch["x"] @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None, :]
        if self.layer_norm:
            h = jax.nn.standardize(h) * params["norm_dense_0"]["scale"][None, :]
        return {"dense_0": jax.nn.relu(h)}

    def loss(self, params: Any, batch: dict) -> jax.Array:
        outputs = self.features(params, batch)["dense_0"] @ params["output"]["kernel"]
        return jnp.mean(jnp.square(outputs[:, 0] - batch["y"]))


def make_stream() -> dict[str, np.ndarray]:
    """One batch a step, of one target."""
    x = np.random.default_rng(0).standard_normal((STEPS, 16, 3)).astype(np.float32)
    return {"x": x, "y": np.sin(x[..., 0]) + x[..., 1] * x[..., 2]}


STREAM = make_stream()


def network_of(name: str) -> Network:
    options = METHODS[name].model_options
    assert set(options) <= {"layer_norm"}, "teach the toy network this option"
    return Network(**{"layer_norm": False} | options)


def arguments(network: Network, params: Any, key: jax.Array, clock: Any, boundary: Any = False) -> tuple[Any, dict]:
    """A gradient, and the arguments that go with it, of which no method knows ``surprise``."""
    batch = jax.tree.map(lambda x: jnp.asarray(x)[clock % STEPS], STREAM)
    value, grads = jax.value_and_grad(network.loss)(params, batch)
    features = network.features(params, batch)
    args = MethodArgs(key, clock, batch, value, features, network.loss, network.features, network.init, boundary)
    return grads, args._asdict() | {"surprise": jnp.ones(3)}


def step(method: Any, network: Network, params: Any, state: Any, key: jax.Array, clock: jax.Array) -> Any:
    grads, args = arguments(network, params, key, clock)
    updates, state = method.update(grads, state, params, **args)
    return optax.apply_updates(params, updates), state, args["value"]


def train(name: str, fields: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Trains with ``fields`` in place of the configuration's own; parameters, state and losses."""
    network = network_of(name)
    method = dataclasses.replace(METHODS[name], **fields).build(INNER)
    params = network.init(key)

    def body(carry: tuple[Any, Any], x: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
        params, state, value = step(method, network, *carry, *x)
        return (params, state), value

    steps = (jax.random.split(key, STEPS), jnp.arange(STEPS))
    (params, state), losses = jax.lax.scan(body, (params, method.init(params)), steps)
    return params, state, losses


@functools.cache
def trainer(name: str) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """One compiled program a method, for all its settings."""
    return jit(functools.partial(train, name))


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
def test_state_keeps_its_structure_and_types(name: str) -> None:
    """Weak types included: a step that changes them compiles twice."""
    network, method = network_of(name), METHODS[name].build(INNER)
    key = jax.random.key(0)
    params = jax.eval_shape(network.init, key)
    state = jax.eval_shape(method.init, params)
    later = jax.eval_shape(functools.partial(step, method, network), params, state, key, jnp.int32(3))
    for got, expected in zip(later[:2], (params, state), strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@every_method
def test_second_call_does_not_trace_again(name: str, assert_no_retrace: Callable) -> None:
    settings = [pick(numbers(name), i) for i in range(2)]
    keys = [jax.random.key(i) for i in range(2)]
    trainer(name)(settings[0], keys[0])
    with assert_no_retrace():
        trainer(name)(settings[1], keys[1])


@every_method
def test_learns_and_is_deterministic(name: str) -> None:
    fields = pick(numbers(name), 0)
    params, state, losses = trainer(name)(fields, jax.random.key(0))
    assert_equal(trainer(name)(fields, jax.random.key(0)), (params, state, losses))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state, losses)))
    assert losses[-20:].mean() < 0.7 * losses[:20].mean()


@every_method
def test_vmaps_over_seeds_and_settings(name: str) -> None:
    keys = jax.random.split(jax.random.key(1), 2)
    fields = numbers(name)
    together = jax.vmap(functools.partial(train, name), in_axes=(None, 0))
    if fields:
        together = jax.vmap(together, in_axes=(0, None))
    _, _, losses = jit(together)(fields, keys)
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
    network = network_of(name)
    off = dataclasses.replace(METHODS[name], **dict.fromkeys(STRENGTHS[name], 0.0)).build(INNER)

    # Not under jit, where XLA rounds one formula differently in different company.
    start, params, *grads = (jit(network.init)(jax.random.key(i)) for i in range(4))
    state, inner_state = off.init(start), INNER.init(start)
    for clock, g in enumerate(grads):
        batch = {name: jnp.asarray(x[clock]) for name, x in STREAM.items()}
        functions = network.loss, network.features, network.init
        args = MethodArgs(jax.random.key(clock), jnp.int32(clock), batch, jnp.zeros(()), {}, *functions, False)
        got, state = off.update(g, state, params, **args._asdict())
        expected, inner_state = INNER.update(g, inner_state, params)
        assert_equal(got, expected)


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
def test_boundary_starts_again(name: str) -> None:
    network, method = network_of(name), METHODS[name].build(INNER)
    params, state, _ = trainer(name)(pick(numbers(name), 0), jax.random.key(0))
    key = jax.random.key(7)

    @jit
    def switch(traced: jax.Array) -> list[tuple[Any, Any]]:
        out = []
        for boundary in (traced, True, False):
            grads, args = arguments(network, params, key, jnp.int32(STEPS), boundary)
            updates, later = method.update(jax.tree.map(jnp.zeros_like, grads), state, params, **args)
            out.append((optax.apply_updates(params, updates), later))
        return out

    traced_yes, yes, no = switch(jnp.asarray(True))
    traced_no = switch(jnp.asarray(False))[0]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-7)
    jax.tree.map(close, traced_yes, yes)
    jax.tree.map(close, traced_no, no)

    new, new_state = yes
    fresh = jit(network.init)(key)
    jax.tree.map(close, new, fresh)
    assert_equal(new_state, INNER.init(fresh))
    # Without a boundary it is the optimiser; here on a zero gradient.
    updates, expected_state = INNER.update(jax.tree.map(jnp.zeros_like, params), state, params)
    jax.tree.map(close, no, (optax.apply_updates(params, updates), expected_state))

    # The new network learns.
    run = jit(functools.partial(step, method, network))
    losses = []
    for clock in range(STEPS):
        new, new_state, value = run(new, new_state, jax.random.key(clock), jnp.int32(clock))
        losses.append(value)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
