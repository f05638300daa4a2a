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

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import MLP
from plastax.types import MethodArgs, Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
INNER = optax.adam(1e-2)
EXACT = optax.sgd(0.5, momentum=0.5)
"""Exact where all numbers are small and whole, however XLA compiles it."""
STEPS = 200
SWITCH = 60
"""The step before which a task switch comes, where the method acts at switches."""
# Settings under which each of a method's fields matters to the small network below; others stay as they are.
EXAGGERATED: dict[str, dict[str, Any]] = {
    "weight_clipping": {"kappa": 1.0},
    "hare_tortoise": {"period": 10, "mu": 0.9},
    "trac": {"start": 1e-2, "eps": 1e-3},
    "muon": {"learning_rate": 1e-2},
    "plasticity_injection": {"injections": 2},
    "l2_init": {"variant": "huber", "delta": 0.05},
    "c_chain": {"target": 5e-4},
    "effective_rank": {"max_step": 3e-4},
    "l2_er": {"max_step": 3e-4},
    "continual_backprop": {"replacement_rate": 2e-3, "maturity": 20},
    "redo": {"period": 50, "threshold": 0.3},
    "regrama": {"period": 50, "threshold": 0.7},
    "self_normalized_resets": {"level": 0.2, "decay": 0.8, "first_gap": 8.0, "patience": 2},
}
CONFIGS = {name: dataclasses.replace(config, **EXAGGERATED.get(name, {})) for name, config in METHODS.items()}
FIELDS = {name: [f.name for f in dataclasses.fields(config)] for name, config in METHODS.items()}
# What may be traced (types.MethodConfig); the rest is static.
FLOATS = {
    name: [field for field in fields if isinstance(getattr(METHODS[name], field), float)]
    for name, fields in FIELDS.items()
}
NUMBERS = [
    (name, field)
    for name, fields in FIELDS.items()
    for field in fields
    if isinstance(value := getattr(METHODS[name], field), int | float) and not isinstance(value, bool)
]

every_method = pytest.mark.parametrize("name", METHODS)
# Those that differ in the model alone are built as another is, which trains in the fast tests.
BUILDS = {type(config).build: name for name, config in reversed(METHODS.items())}
every_training = pytest.mark.parametrize(
    "name", [n if n in BUILDS.values() else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
AT_BOUNDARIES = [name for name, config in METHODS.items() if config.needs_boundary]


class Network(NamedTuple):
    """A model and its loss: small, because every method compiles a training of its own."""

    model: Model
    drawn: Callable[[jax.Array], Any]
    """`init`, compiled."""
    viewed: Callable[[Any, dict], Any]
    """`seen`, compiled."""

    def init(self, key: jax.Array) -> Any:
        return self.model.init(key)

    def outputs(self, params: Any, batch: dict) -> jax.Array:
        return self.model.apply(params, batch["x"])[0]

    def features(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        return self.model.apply(params, batch["x"])[1]

    def loss(self, params: Any, batch: dict) -> jax.Array:
        return jnp.mean(jnp.square(self.outputs(params, batch)[:, 0] - batch["y"]))

    def seen(self, params: Any, batch: dict) -> Any:
        return seen(self.model, params, batch)


def seen(model: Model, params: Any, batch: dict) -> Any:
    """((loss, features), (gradient, gradient with respect to the taps))."""

    def fn(params: Any, taps: Any) -> Any:
        outputs, features, _ = model.tapped(params, taps, batch["x"])
        return jnp.mean(jnp.square(outputs[:, 0] - batch["y"])), features

    return jax.value_and_grad(fn, (0, 1), has_aux=True)(params, model.taps(batch["x"]))


def make_stream() -> dict[str, np.ndarray]:
    """One batch a step, of one target."""
    x = np.random.default_rng(0).standard_normal((STEPS, 16, 3)).astype(np.float32)
    return {"x": x, "y": np.sin(x[..., 0]) + x[..., 1] * x[..., 2]}


STREAM = make_stream()


def network_of(name: str) -> Network:
    return make_network(name == "self_normalized_resets", **CONFIGS[name].model_options)


@functools.cache
def make_network(silent: bool, **options: Any) -> Network:
    """One for all methods of the same options; ``silent``: with units that are so for whole batches."""
    shapes = {field: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for field, x in STREAM.items()}
    model = MLP(**{"hidden": (8,), **options}).build((3,), 1)._replace(batch_like=shapes)
    if silent:
        drawn = model.init
        model = model._replace(init=lambda key: tree.map_named(lambda n, x: x - 2 * (n == "dense_0/bias"), drawn(key)))
    return Network(model, jit(model.init), jit(functools.partial(seen, model)))


def build(name: str, **fields: Any) -> Any:
    return dataclasses.replace(CONFIGS[name], **fields).build(INNER, network_of(name).model)


def arguments(network: Network, params: Any, key: jax.Array, clock: Any, boundary: Any = False) -> tuple[Any, dict]:
    """A gradient, and the arguments that go with it, of which no method knows ``surprise``."""
    batch = jax.tree.map(lambda x: jnp.asarray(x)[clock % STEPS], STREAM)
    (value, features), (grads, tap_grads) = network.seen(params, batch)
    functions = network.loss, network.features, network.outputs, network.init
    args = MethodArgs(key, clock, batch, value, features, tap_grads, *functions, boundary)
    return grads, args._asdict() | {"surprise": jnp.ones(3)}


def step(method: Any, network: Network, params: Any, state: Any, key: jax.Array, clock: jax.Array) -> Any:
    grads, args = arguments(network, params, key, clock)
    updates, state = method.update(grads, state, params, **args)
    return optax.apply_updates(params, updates), state, args["value"]


def switch(method: Any, network: Network, params: Any, state: Any, key: jax.Array, boundary: Any = True) -> Any:
    """A task switch as the programs call it: no gradient, no batch, no features."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    batch = jax.tree.map(lambda x: jnp.zeros_like(x[0]), STREAM)
    functions = network.loss, network.features, network.outputs, network.init
    args = MethodArgs(key, jnp.int32(SWITCH), batch, jnp.zeros(()), {}, {}, *functions, boundary)
    updates, state = method.update(zeros, state, params, **args._asdict())
    return optax.apply_updates(params, updates), state


def train(name: str, fields: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Trains with ``fields`` in place of the configuration's own; parameters, state and losses."""
    network = network_of(name)
    method = build(name, **fields)
    params = network.init(key)

    def body(carry: tuple[Any, Any], x: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
        if name in AT_BOUNDARIES:
            key, clock = x
            act = functools.partial(switch, method, network, key=jax.random.fold_in(key, 1))
            carry = jax.lax.cond(clock == SWITCH, act, lambda *same: same, *carry)
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
    """What of the method's settings may be traced, twice: as it is, and half of it."""
    values = {field: getattr(CONFIGS[name], field) for field in FLOATS[name]}
    return {field: jnp.asarray([value, value / 2 if value else 0.5]) for field, value in values.items()}


def pick(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def assert_equal(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@every_method
def test_state_keeps_its_structure_and_types(name: str) -> None:
    """Weak types included: a step that changes them compiles twice."""
    network, method = network_of(name), build(name)
    key = jax.random.key(0)
    params = jax.eval_shape(network.init, key)
    state = jax.eval_shape(method.init, params)
    later = jax.eval_shape(functools.partial(step, method, network), params, state, key, jnp.int32(3))
    for got, expected in zip(later[:2], (params, state), strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@every_training
def test_second_call_does_not_trace_again(name: str, assert_no_retrace: Callable) -> None:
    settings = [pick(numbers(name), i) for i in range(2)]
    keys = [jax.random.key(i) for i in range(2)]
    trainer(name)(settings[0], keys[0])
    with assert_no_retrace():
        trainer(name)(settings[1], keys[1])


@every_training
def test_learns_and_is_deterministic(name: str) -> None:
    fields = pick(numbers(name), 0)
    params, state, losses = trainer(name)(fields, jax.random.key(0))
    assert_equal(trainer(name)(fields, jax.random.key(0)), (params, state, losses))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state, losses)))
    assert losses[-20:].mean() < 0.7 * losses[:20].mean()


@pytest.mark.slow  # compiles every method once more
@every_method
def test_vmaps_over_seeds_and_settings(name: str) -> None:
    seeds = jax.random.split(jax.random.key(1), 2)
    fields = numbers(name)
    # (setting, seed) of each of the networks trained together.
    chosen = np.array([(0, 0), (0, 1), (1, 0)] if fields else [(0, 0), (0, 1)])
    settings = jax.tree.map(lambda x: x[chosen[:, 0]], fields)
    _, _, losses = jit(jax.vmap(functools.partial(train, name)))(settings, seeds[chosen[:, 1]])
    for got, (setting, seed) in zip(losses, chosen, strict=True):
        _, _, alone = trainer(name)(pick(fields, setting), seeds[seed])
        # Rounding grows with the steps.
        np.testing.assert_allclose(got[:30], alone[:30], rtol=2e-4)
    for other in losses[1:]:
        assert not np.array_equal(losses[0], other)


@every_training
def test_every_setting_matters(name: str) -> None:
    """No field is accepted and then ignored."""
    fields = numbers(name)
    _, _, before = trainer(name)(pick(fields, 0), jax.random.key(2))
    for field in fields:
        _, _, after = trainer(name)(pick(fields, 0) | {field: fields[field][1]}, jax.random.key(2))
        assert not np.array_equal(before, after), field


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if config.off is not None])
def test_off_is_the_optimiser_bit_for_bit(name: str) -> None:
    network = network_of(name)
    off = dataclasses.replace(CONFIGS[name], **METHODS[name].off).build(EXACT, network.model)
    drawn = [network.drawn(jax.random.key(i)) for i in range(4)]
    start, params, *grads = [jax.tree.map(lambda x: jnp.round(8 * x), tree) for tree in drawn]
    batches = [{name: jnp.asarray(x[clock]) for name, x in STREAM.items()} for clock in range(len(grads))]
    steps = [(jnp.int32(t), g, b, network.viewed(params, b)) for t, (g, b) in enumerate(zip(grads, batches))]

    def both(states: Any, step: Any) -> Any:
        clock, grads, batch, ((value, features), (_, tap_grads)) = step
        functions = network.loss, network.features, network.outputs, network.init
        args = MethodArgs(jax.random.key(clock), clock, batch, value, features, tap_grads, *functions, boundary=False)
        got, state = off.update(grads, states[0], params, **args._asdict())
        expected, inner_state = EXACT.update(grads, states[1], params)
        return (state, inner_state), (got, expected)

    steps = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    _, (got, expected) = jit(lambda steps: jax.lax.scan(both, (off.init(start), EXACT.init(start)), steps))(steps)
    assert_equal(got, expected)


@pytest.mark.parametrize(("name", "field"), NUMBERS)
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan")])
def test_bad_settings_are_named(name: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"\.{field}: {value} .* give"):
        dataclasses.replace(METHODS[name], **{field: value})


@pytest.mark.parametrize("name", [name for name, fields in FIELDS.items() if "period" in fields])
def test_period_is_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match="period"):
        dataclasses.replace(METHODS[name], period=0)


@pytest.mark.parametrize("name", AT_BOUNDARIES)
def test_at_a_boundary_traced_or_not(name: str) -> None:
    """The programs trace whether there is one; and something happens at one, to the network or the method's state."""
    network, method = network_of(name), build(name)
    params, state, _ = trainer(name)(pick(numbers(name), 0), jax.random.key(0))
    key = jax.random.key(7)

    @jit
    def both(traced: jax.Array) -> list[Any]:
        return [switch(method, network, params, state, key, boundary) for boundary in (traced, True, False)]

    traced_yes, yes, no = both(jnp.asarray(True))
    traced_no = both(jnp.asarray(False))[0]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-7)
    jax.tree.map(close, traced_yes, yes)
    jax.tree.map(close, traced_no, no)
    assert jax.tree.structure(yes) == jax.tree.structure((params, state))
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), yes, (params, state))
    assert any(jax.tree.leaves(changed))


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if config.restarts_statistics])
def test_boundary_starts_again(name: str) -> None:
    network, method = network_of(name), build(name)
    params, state, _ = trainer(name)(pick(numbers(name), 0), jax.random.key(0))
    key = jax.random.key(7)
    yes, no = jit(lambda: [switch(method, network, params, state, key, boundary) for boundary in (True, False)])()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-7)

    fresh = network.drawn(key)
    jax.tree.map(close, yes[0], fresh)
    assert_equal(yes[1], INNER.init(fresh))
    # Without a boundary it is the optimiser; here on a zero gradient.
    updates, expected_state = INNER.update(jax.tree.map(jnp.zeros_like, params), state, params)
    jax.tree.map(close, no, (optax.apply_updates(params, updates), expected_state))

    # What is learned before a switch and after it is learned by two networks that know nothing of one another.
    _, _, losses = trainer(name)(pick(numbers(name), 0), jax.random.key(0))
    assert losses[SWITCH] > 2 * losses[SWITCH - 20 : SWITCH].mean()
