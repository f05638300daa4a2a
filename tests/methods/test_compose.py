"""Several methods as one: what acts at switches is outermost, and keeps the rest still while it does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods
from plastax.errors import ConfigError
from plastax.methods import compose
from plastax.methods.base import at_boundary
from plastax.types import Method

PARAMS = {"w": jnp.array([1.0, -2.0])}
GRADS = {"w": jnp.array([0.5, 0.25])}


def update(method: Method, state, *, boundary: bool, grads=GRADS):
    extra = {"clock": jnp.int32(0), "key": jax.random.key(0), "init_fn": lambda key: {"w": jnp.full(2, 7.0)}}
    updates, state = method.update(grads, state, PARAMS, boundary=boundary, **extra)
    return optax.apply_updates(PARAMS, updates), state


def test_one_method_is_itself():
    config = methods.L2()
    assert compose([config]) is config


def test_each_wraps_those_before_it():
    both = compose([methods.L2(l2=0.1), methods.WeightDecay(decay=0.01)]).build(optax.sgd(1.0))
    got, _ = update(both, both.init(PARAMS), boundary=False)
    expected = PARAMS["w"] - (GRADS["w"] + 0.1 * PARAMS["w"]) - 0.01 * PARAMS["w"]
    np.testing.assert_allclose(got["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("order", [("l2", "reset"), ("reset", "l2")])
def test_a_switch_is_outermost_in_any_order(order):
    method = compose([methods.METHODS[name] for name in order])
    assert (method.needs_boundary, method.restarts_statistics) == (True, True)
    built = method.build(optax.adam(0.1))
    _, state = update(built, built.init(PARAMS), boundary=False)
    got, state = update(built, state, boundary=True)
    np.testing.assert_allclose(got["w"], [7.0, 7.0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, built.init(got))


def test_at_a_switch_the_optimiser_stands_still():
    """A step of a momentum, or of a regulariser, would move what a switch leaves alone."""
    doubled = at_boundary(
        methods.METHODS["l2"].build(optax.adam(0.1)), lambda p, s, **_: (jax.tree.map(lambda x: 2 * x, p), s)
    )
    _, state = update(doubled, doubled.init(PARAMS), boundary=False)
    got, after = update(doubled, state, boundary=True)
    np.testing.assert_array_equal(got["w"], 2 * PARAMS["w"])
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_switches_within_switches_all_act_the_inner_first():
    add = at_boundary(optax.adam(0.1), lambda p, s, **_: (jax.tree.map(lambda x: x + 1, p), s))
    both = at_boundary(add, lambda p, s, **_: (jax.tree.map(lambda x: 2 * x, p), s))
    got, _ = jax.jit(lambda b: update(both, both.init(PARAMS), boundary=b))(True)
    np.testing.assert_allclose(got["w"], 2 * (PARAMS["w"] + 1), rtol=1e-6)
    got, _ = jax.jit(lambda b: update(both, both.init(PARAMS), boundary=b))(False)
    expected, _ = update(optax.with_extra_args_support(optax.adam(0.1)), optax.adam(0.1).init(PARAMS), boundary=False)
    np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-6)


def test_an_optimiser_goes_below_the_rest_and_only_one():
    both = compose([methods.L2(l2=0.5), methods.Muon(learning_rate=0.1)])
    assert both.replaces_optimizer
    got, _ = update(both.build(optax.sgd(1.0)), both.build(optax.sgd(1.0)).init(PARAMS), boundary=False)
    # No matrix, so it is Adam with Nesterov momentum, whose first step has one size: in the direction of g + l2 w.
    expected = PARAMS["w"] - 0.1 * (0.9 * 0.1 / (1 - 0.9**2) + 1) * jnp.sign(GRADS["w"] + 0.5 * PARAMS["w"])
    np.testing.assert_allclose(got["w"], expected, rtol=1e-4)
    with pytest.raises(ConfigError, match="replace the optimiser"):
        compose([methods.Muon(), methods.L2(), methods.Muon()])


def test_every_part_draws_from_a_key_of_its_own():
    noise = methods.ShrinkAndPerturb(shrink=0.0, perturb=1.0, variant="upgd")

    def moved(method):
        zeros = {"w": jnp.zeros(2)}
        return update(method, method.init(PARAMS), boundary=False, grads=zeros)[0]["w"] - PARAMS["w"]

    one, two = moved(noise.build(optax.sgd(1.0))), moved(compose([noise, noise]).build(optax.sgd(1.0)))
    assert not np.allclose(two, 2 * one)
    np.testing.assert_allclose(two - one, moved(compose([noise, methods.L2(l2=0.0)]).build(optax.sgd(1.0))), rtol=1e-5)


def test_contradicting_models_are_refused():
    class Other(methods.LayerNorm):
        model_options = {"layer_norm": False}  # noqa: RUF012

    assert compose([methods.LayerNorm(), methods.L2()]).model_options == {"layer_norm": True}
    with pytest.raises(ConfigError, match="layer_norm True, another False"):
        compose([methods.LayerNorm(), Other()])
