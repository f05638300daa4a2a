"""Half precision and double: types that stay as they are, and sums and means that lose nothing to short numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods
from plastax.methods import METHODS, surgery
from plastax.methods.base import Settings
from plastax.testing.methods import make_model
from plastax.types import MethodArgs, Model
from tests.methods.test_contract import CONFIGS

HALF = jnp.bfloat16


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


RARE = [pytest.param(types, marks=pytest.mark.slow) for types in ("float16", "bfloat16 of float32")]


@pytest.fixture(params=["bfloat16", "float32 where 64 bits are allowed", *RARE])
def dtypes(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Of parameters, and of what is computed with them."""
    if "64" in request.param:
        with jax.enable_x64(True):
            yield jnp.float32, jnp.float32
    else:
        compute, _, params = request.param.partition(" of ")
        yield jnp.dtype(params or compute), jnp.dtype(compute)


def step(model: Model, method: Any, params: Any, state: Any, x: Any, key: Any, clock: Any, boundary: Any) -> Any:
    """One step, or a switch, computed in the type of the batch."""

    def fn(params: Any, taps: Any) -> Any:
        outputs, features, _ = model.tapped(cast(params, x.dtype), taps, x)
        return jnp.mean(jnp.square(outputs)).astype(x.dtype), features

    taps = cast(model.taps(x), x.dtype)
    (value, features), (grads, tap_grads) = jax.value_and_grad(fn, (0, 1), has_aux=True)(params, taps)
    args = MethodArgs(
        key, clock, {"x": x, "y": x[:, 0]}, value, features, tap_grads, lambda p, b: fn(p, taps)[0],
        lambda p, b: model.apply(cast(p, x.dtype), b["x"])[1],
        lambda p, b: model.apply(cast(p, x.dtype), b["x"])[0], model.init, boundary,
    )  # fmt: skip
    updates, state = method.update(grads, state, params, **args._asdict())
    return optax.apply_updates(params, updates), updates, state


# The others are options of the model.
@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if type(config).build is not Settings.build])
def test_types_stay_as_they_are(name: str, dtypes: Any) -> None:
    """Of parameters, updates and states, whatever the initialiser draws in; and no branch differs from the other."""
    model = make_model(False, **CONFIGS[name].model_options)
    x = jax.ShapeDtypeStruct((16, 3), dtypes[1])
    model = model._replace(batch_like={"x": x, "y": jax.ShapeDtypeStruct((16,), dtypes[1])})
    method = CONFIGS[name].build(optax.adam(1e-2), model)

    def two(key: Any, x: Any, clock: Any, boundary: Any) -> Any:
        params = cast(model.init(key), dtypes[0])
        state = method.init(params)
        after, updates, later = step(model, method, params, state, x, key, clock, boundary)
        return (params, params, state), (after, updates, later)

    boundary = jax.ShapeDtypeStruct((), bool)
    before, after = jax.eval_shape(
        two, jax.eval_shape(jax.random.key, 0), x, jax.ShapeDtypeStruct((), jnp.int32), boundary
    )
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_adam_per_parameter_moves_in_half_precision(half: Any) -> None:
    params = {"w": jnp.ones(3, half)}
    ours, theirs = methods.adam_per_parameter(1e-2), optax.adam(1e-2)
    wide = cast(params, jnp.float32)
    state, expected_state = ours.init(params), theirs.init(wide)
    ours_update, theirs_update = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(5):
        grads = {"w": jnp.array([1.0, -0.5, 0.0], half)}
        updates, state = ours_update(grads, state, params)
        expected, expected_state = theirs_update(cast(grads, jnp.float32), expected_state, wide)
        assert updates["w"].dtype == half
        np.testing.assert_allclose(cast(updates, jnp.float32)["w"], expected["w"], rtol=1e-2)


def test_running_means_move_in_half_precision() -> None:
    params, gradient = {"w": jnp.ones(3, HALF)}, {"w": jnp.array([1.0, -1.0, 0.1], HALF)}
    zero, steps = {"w": jnp.zeros(3, HALF)}, 5000
    tortoise = methods.hare_tortoise(mu=0.999, period=10**6)
    still = methods.upgd(optax.set_to_zero(), noise=0.0, beta=0.999)
    start = (tortoise.init(zero), still.init(params))

    def body(states: Any, clock: Any) -> Any:
        extra = {"clock": clock, "key": jax.random.key(0)}
        return (
            tortoise.update(zero, states[0], params, **extra)[1],
            still.update(gradient, states[1], params, **extra)[1],
        ), ()

    (slow, useful), _ = jax.jit(lambda: jax.lax.scan(body, start, jnp.arange(steps)))()
    share = 1 - 0.999**steps
    np.testing.assert_allclose(slow.tortoise["w"], np.full(3, share), rtol=1e-3)
    np.testing.assert_allclose(useful.utility["w"], -share * np.float32(gradient["w"]), rtol=1e-3)


@pytest.mark.parametrize("name", ["parseval", pytest.param("spectral_norm", marks=pytest.mark.slow)])
def test_penalties_in_half_precision_are_those_of_single(name: str) -> None:
    model = make_model()
    params = model.init(jax.random.key(0))
    method = {
        "parseval": lambda: methods.parseval(1.0, roles=model.roles),
        "spectral_norm": lambda: methods.spectral_norm(1.0, iterations=20, roles=model.roles),
    }[name]()
    half = cast(params, HALF)
    slope = jax.jit(lambda p: method.update(jax.tree.map(jnp.zeros_like, p), method.init(p), p)[0])
    got, expected = (slope(p) for p in (half, cast(half, jnp.float32)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # One rounding of the result.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-2 * float(jnp.max(jnp.abs(b))) + 1e-6)


def test_wasserstein_loses_no_digits_to_ties() -> None:
    """Uniform draws of 23 bits tie often; running sums over all of them lost a tenth of a weight."""
    w = jax.nn.initializers.he_uniform()(jax.random.key(0), (300, 200))
    tx = methods.wasserstein_init(0.5)

    @jax.jit
    def slope(w: Any, at: Any) -> Any:
        params = {"d": {"kernel": w}}
        return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), {"d": {"kernel": at}})[0]["d"]["kernel"]

    assert not jnp.any(slope(w, w))
    # Clipped, nearly half of the entries are one of two numbers: each of these has the mean of the initial ones there.
    clipped = jnp.clip(w, -0.05, 0.05)
    low, high = (np.asarray(w, np.float64)[mask].mean() for mask in (w <= -0.05, w >= 0.05))
    got = slope(w, clipped)
    np.testing.assert_allclose(got[w <= -0.05], -0.05 - low, rtol=1e-4)
    np.testing.assert_allclose(got[w >= 0.05], 0.05 - high, rtol=1e-4)
    assert not jnp.any(got[jnp.abs(w) < 0.05])


def test_mean_weights_in_half_precision() -> None:
    w = jnp.full((3000, 2), 0.01, HALF)
    got = surgery.magnitude((surgery.Entries("kernel", 1),), {"kernel": w}, 2)
    np.testing.assert_allclose(got, np.full(2, float(w[0, 0])), rtol=1e-5)
