"""What methods promise wherever they stand: in chains, under falling steps and gradient accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.errors import ConfigError
from plastax.methods import compose
from plastax.models import MLP
from plastax.moving import Moving
from plastax.program import learner
from plastax.types import MethodArgs

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MODEL = MLP(hidden=(6, 5)).build((4,), 2)
BATCH = {"x": jax.random.normal(jax.random.key(9), (7, 4)), "y": jnp.arange(7) % 2}
MODEL = MODEL._replace(batch_like=jax.eval_shape(lambda: BATCH))


def features_fn(params: Any, batch: Any) -> Any:
    return MODEL.apply(params, batch["x"])[1]


def outputs_fn(params: Any, batch: Any) -> Any:
    return MODEL.apply(params, batch["x"])[0]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return jnp.mean(jnp.square(outputs_fn(params, batch)))


def seen(params: Any) -> tuple[Any, Any, Any, Any]:
    """Loss, features, gradient, gradient of the taps."""

    def fn(params: Any, taps: Any) -> Any:
        outputs, features, _ = MODEL.tapped(params, taps, BATCH["x"])
        return jnp.mean(jnp.square(outputs)), features

    (value, features), (grads, taps) = jax.value_and_grad(fn, (0, 1), has_aux=True)(params, MODEL.taps(BATCH["x"]))
    return value, features, grads, taps


def arguments(params: Any, clock: Any, init_fn: Any = MODEL.init, **extra: Any) -> tuple[Any, MethodArgs]:
    value, features, grads, taps = seen(params)
    args = MethodArgs(
        jax.random.fold_in(jax.random.key(1), clock), clock, BATCH, value, features, taps, loss_fn, features_fn,
        outputs_fn, init_fn, boundary=False,
    )  # fmt: skip
    return grads, args._replace(**extra)


def start(seed: int = 0) -> Any:
    return MODEL.init(jax.random.key(seed))


def close(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


# Whatever follows it or wraps it, `effective_rank` gives updates.
ER = methods.effective_rank(1e-2, 2)
CHAINS: dict[str, Callable[[], Any]] = {
    "clip_by_global_norm": lambda: optax.chain(optax.sgd(0.05), ER, optax.clip_by_global_norm(1.0)),
    "scale": lambda: optax.chain(optax.sgd(0.05), ER, optax.scale(0.5)),
    "weight_decay": lambda: optax.chain(methods.l2(1e-3), optax.sgd(0.05), ER, methods.weight_decay(1e-3)),
    "redo": lambda: methods.redo(optax.chain(optax.sgd(0.05), ER), MODEL.units, 0.5, 2),
    "upgd": lambda: methods.upgd(optax.chain(optax.sgd(0.05), ER)),
    "trac": lambda: methods.trac(optax.chain(optax.sgd(0.05), ER), start=0.1),
    "hare_tortoise": lambda: optax.chain(optax.sgd(0.05), ER, methods.hare_tortoise(0.5, 2)),
    "composed": lambda: compose([methods.EffectiveRank(2, 1e-2), methods.L2()]).build(optax.sgd(0.05), MODEL),
}


def fast(names: Any, *chosen: str) -> list[Any]:
    """The names, all but the chosen ones marked as slow: each compiles a training of its own."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", fast(CHAINS, "clip_by_global_norm", "weight_decay"))
def test_parameters_never_pass_for_updates(name: str) -> None:
    """The programs' step is `optax`'s: updates of the parameters' size times a step size, added."""
    method = optax.with_extra_args_support(CHAINS[name]())
    assert not isinstance(method, Moving)

    @jit
    def step(params: Any, state: Any, clock: Any) -> Any:
        grads, args = arguments(params, clock)
        updates, _ = method.update(grads, state, params, **args._asdict())
        return optax.apply_updates(params, updates), learner.step(method, grads, state, params, args)

    params = start()
    state = method.init(params)
    for clock in range(2):
        expected, (moved, state) = step(params, state, clock)
        close(moved, expected)
        assert tree.norm(jax.tree.map(jnp.subtract, moved, params)) < 0.2 * tree.norm(params)
        params = moved


def test_the_outermost_may_make_the_whole_step() -> None:
    method = methods.L2ER(1, 1e-2).build(optax.adam(0.05), MODEL)
    assert isinstance(method, Moving)

    def both(params: Any) -> Any:
        grads, args = arguments(params, jnp.int32(0))
        updates, state = method.update(grads, method.init(params), params, **args._asdict())
        moved = learner.step(method, grads, method.init(params), params, args)
        return moved, (optax.apply_updates(params, updates), state)

    close(*jit(both)(start()))


def at_rate(method: Any, rate: float, steps: int = 4) -> list[Any]:
    """The parameters after each of some steps, of which the share ``rate`` is made."""

    def step(carry: Any, clock: Any) -> Any:
        grads, args = arguments(carry[0], clock, rate=rate)
        carry = learner.step(method, grads, carry[1], carry[0], args)
        return carry, carry[0]

    params = start()
    _, path = jit(lambda: jax.lax.scan(step, (params, method.init(params)), jnp.arange(steps)))()
    return [jax.tree.map(lambda x, t=t: x[t], path) for t in range(steps)]


# Each is what it is around an optimiser of a smaller step size: the share that is made changes nothing else.
WHOLE: dict[str, Callable[[Any], Any]] = {
    "hare_tortoise": lambda inner: optax.chain(inner, methods.hare_tortoise(0.5, 2)),
    "project": lambda inner: optax.chain(inner, methods.project(roles=MODEL.roles)),
    "trac": lambda inner: methods.trac(inner, start=0.1),
    "weight_clipping": lambda inner: optax.chain(inner, methods.weight_clipping(0.5, MODEL.roles)),
    "shrink_and_perturb": lambda inner: optax.chain(inner, methods.shrink_and_perturb(0.1, 0.1, 2)),
}


@pytest.mark.parametrize("name", fast(WHOLE, "hare_tortoise", "project", "trac"))
def test_what_has_to_arrive_whole_does_so_under_falling_steps(name: str) -> None:
    got = at_rate(WHOLE[name](optax.sgd(0.5)), rate=0.1)
    expected = at_rate(WHOLE[name](optax.sgd(0.05)), rate=1.0)
    for a, b in zip(got, expected, strict=True):
        close(a, b, rtol=1e-4, atol=1e-5)


def test_effective_rank_looks_from_where_the_shorter_step_has_led() -> None:
    got = at_rate(optax.chain(optax.sgd(0.5), methods.effective_rank(1e-2, 1)), rate=0.1)
    expected = at_rate(optax.chain(optax.sgd(0.05), methods.effective_rank(1e-3, 1)), rate=1.0)
    for a, b in zip(got, expected, strict=True):
        close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["redo", "regrama", "self_normalized_resets", "continual_backprop"])
def test_units_read_by_frozen_heads_are_not_replaced(name: str) -> None:
    """What a replaced unit did through a frozen head could not be taken back."""
    method = compose([methods.METHODS[name], methods.PlasticityInjection()])
    model = MLP(hidden=(6, 5, 4), **method.model_options).build((4,), 2)
    with pytest.raises(ConfigError, match=f"{name}: plasticity_injection is not allowed beside it"):
        jax.eval_shape(lambda key: method.build(optax.sgd(0.1), model).init(model.init(key)), jax.random.key(0))


def test_trac_without_the_clip_comes_back_from_its_start() -> None:
    """One gradient that points back at the second step, then a slope that leads on."""
    grads = [jnp.array([g]) for g in (1.0, -1.0, *[1.0] * 200)]

    def last(**options: Any) -> float:
        method = methods.trac(optax.sgd(0.1), start=1e-2, **options)
        params = {"w": jnp.zeros(1)}
        state = method.init(params)
        step = jax.jit(method.update)
        for g in grads:
            updates, state = step({"w": g}, state, params)
            params = optax.apply_updates(params, updates)
        return float(params["w"][0])

    assert last() == 0.0
    assert last(clip=False) != 0.0


PERIODIC: dict[str, Callable[[int], Any]] = {
    "shrink_and_perturb": lambda k: optax.chain(optax.sgd(0.0), methods.shrink_and_perturb(0.5, 0.0, 8 // k)),
    "effective_rank": lambda k: optax.chain(optax.sgd(0.0), methods.effective_rank(1e-2, 8 // k)),
    "hare_tortoise": lambda k: optax.chain(optax.sgd(0.1), methods.hare_tortoise(0.5, 8 // k)),
    "redo": lambda k: methods.redo(optax.sgd(0.1), MODEL.units, 0.9, 8 // k),
    "adam_rel": lambda k: methods.AdamRel(every=8 // k).build(optax.adam(0.1)),
    "self_normalized_resets": lambda k: methods.self_normalized_resets(
        optax.sgd(0.1), MODEL.units, 1.0, patience=8 // k
    ),
    "c_chain": lambda k: optax.chain(methods.c_chain(batch_like=BATCH), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", fast(PERIODIC, "shrink_and_perturb", "c_chain"))
def test_gradient_accumulation_hides_no_action(name: str) -> None:
    """Four gradients a step: every action falls on a call that `optax.MultiSteps` does not apply.

    It acts with the first that is applied, which is as often as without, whatever the clock counts.
    """
    every = 4

    def train(method: Any, own: Callable[[Any], Any], steps: int) -> Any:
        def step(carry: Any, i: Any) -> Any:
            params, state = carry
            grads, args = arguments(params, own(i), every_step=False, key=jax.random.key(0))
            updates, state = method.update(grads, state, params, **args._asdict())
            return (optax.apply_updates(params, updates), state), ()

        params = start()
        return jax.lax.scan(step, (params, method.init(params)), jnp.arange(steps))[0][0]

    accumulated = optax.MultiSteps(PERIODIC[name](1), every)
    got, expected = jit(
        lambda: (
            train(accumulated, lambda i: i, 32),
            # The same actions: with the clock of the last gradient of each step, each step by itself.
            train(optax.with_extra_args_support(PERIODIC[name](1)), lambda i: every * i + every - 1, 8),
        )
    )()
    close(got, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got["dense_0"]["kernel"], start()["dense_0"]["kernel"])


def test_periods_count_the_clock_that_is_given() -> None:
    params = {"w": jnp.ones(2)}
    tx = optax.MultiSteps(optax.chain(optax.sgd(0.0), methods.shrink_and_perturb(0.5, 0.0, period=16)), 4)

    def run(clock: Callable[[Any], Any]) -> jax.Array:
        def step(carry: Any, i: Any) -> Any:
            p, s = carry
            extra = {"key": jax.random.key(0), "clock": clock((i, s)), "init_fn": lambda _: params}
            u, s = tx.update({"w": jnp.zeros(2)}, s, p, **extra)
            return (optax.apply_updates(p, u), s), ()

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(160))[0][0]["w"]

    np.testing.assert_allclose(run(lambda x: x[0]), 0.5**10)
    np.testing.assert_allclose(run(lambda x: x[1].gradient_step), 0.5**3)
