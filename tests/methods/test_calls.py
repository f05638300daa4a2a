"""What a method says where it is called in a way that it cannot work with, and layers that start at zero."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods
from plastax.errors import ConfigError
from plastax.models import MLP
from plastax.roles import Roles

MODEL = MLP(hidden=(4,)).build((3,), 2)
PARAMS = MODEL.init(jax.random.key(0))
BATCH = {"x": jnp.ones((2, 3))}
DECLARED = Roles(output=("output",))
WITHOUT_PARAMS = {
    "l2": methods.l2(),
    "weight_decay": methods.weight_decay(),
    "l2_init": methods.l2_init(),
    "spectral_norm": methods.spectral_norm(),
    "parseval": methods.parseval(roles=DECLARED),
    "isometry": methods.isometry(roles=DECLARED),
    "wasserstein_init": methods.wasserstein_init(),
    "trac": methods.trac(optax.sgd(0.1)),
    "upgd": methods.upgd(optax.sgd(0.1)),
    "weight_clipping": methods.weight_clipping(),
    "hare_tortoise": methods.hare_tortoise(),
    "project": methods.project(),
    "redo": methods.redo(optax.sgd(0.1), MODEL.units),
}


@pytest.mark.parametrize("name", WITHOUT_PARAMS)
def test_an_update_without_parameters_is_one_line(name: str) -> None:
    method = WITHOUT_PARAMS[name]
    with pytest.raises(
        ConfigError, match=rf"{name}: params: None is not allowed; call update\(updates, state, params\)"
    ):
        method.update(PARAMS, method.init(PARAMS))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("l2", "strength"),
        ("weight_decay", "rate"),
        ("spectral_norm", "target"),
        ("hare_tortoise", "mu"),
        ("l2_init", "delta"),
    ],
)
def test_a_schedule_goes_through_optax(name: str, setting: str) -> None:
    schedule = optax.linear_schedule(1e-2, 0.0, 10)
    with pytest.raises(
        ConfigError, match=rf"{name}\.{setting}: a schedule .* optax.inject_hyperparams\(methods.{name}\)"
    ):
        getattr(methods, name)(**{setting: schedule})
    method = optax.inject_hyperparams(getattr(methods, name))(**{setting: schedule})
    method.update(PARAMS, method.init(PARAMS), PARAMS, clock=jnp.int32(0))


def test_adam_per_parameter_takes_a_schedule() -> None:
    schedule = optax.linear_schedule(1e-1, 1e-2, 3)
    ours, theirs = methods.adam_per_parameter(schedule), optax.adam(schedule)
    params = {"w": jnp.ones(2)}
    state, expected_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        got, state = ours.update(params, state, params)
        expected, expected_state = theirs.update(params, expected_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


WHOLE_NETWORK = {
    "effective_rank": lambda: methods.effective_rank(),
    "c_chain": lambda: methods.c_chain(batch_like=BATCH),
    "redo": lambda: methods.redo(optax.sgd(0.1), MODEL.units),
    "self_normalized_resets": lambda: methods.self_normalized_resets(optax.sgd(0.1), MODEL.units),
    "continual_backprop": lambda: methods.continual_backprop(optax.sgd(0.1), MODEL.units),
    "shrink_and_perturb": lambda: methods.shrink_and_perturb(),
    "l2_init": lambda: methods.l2_init(variant="resampled"),
}


@pytest.mark.parametrize("name", WHOLE_NETWORK)
def test_what_looks_at_the_network_cannot_stand_inside_a_mask(name: str) -> None:
    method = optax.masked(WHOLE_NETWORK[name](), {"dense_0": True, "output": False})

    def call() -> Any:
        extra: dict[str, Any] = {"clock": jnp.int32(0), "key": jax.random.key(0), "batch": BATCH, "value": jnp.ones(())}
        extra |= {"init_fn": MODEL.init, "features_fn": None, "outputs_fn": None}
        return method.update(PARAMS, method.init(PARAMS), PARAMS, **extra)

    with pytest.raises(ConfigError, match=f"{name}: it looks at the whole network, .* around"):
        call()


class Zero(nn.Module):
    """A head that starts at zero."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1, name="head", kernel_init=nn.initializers.zeros)(nn.relu(nn.Dense(8, name="hidden")(x)))


@pytest.mark.parametrize("method", [methods.weight_clipping(2.0), methods.project(1)], ids=["clipping", "project"])
def test_a_layer_that_starts_at_zero_learns(method: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (32, 3))
    y = x[:, :1] * 2 + 1
    tx = optax.with_extra_args_support(optax.chain(optax.adam(3e-2), method))

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(Zero().apply({"params": params}, x) - y))

    def step(carry: Any, clock: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, clock=clock)
        return (optax.apply_updates(params, updates), state), value

    params = Zero().init(jax.random.key(1), x)["params"]
    losses = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(200))[1])()
    assert losses[-1] < 0.1 * losses[0]


def test_the_spectrum_of_a_layer_that_starts_at_zero_is_held_once_it_has_one() -> None:
    tx = methods.spectral_norm(1.0)
    zero, grown = ({"head": {"kernel": jnp.full((4, 3), x)}} for x in (0.0, 2.0))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, zero), tx.init(zero), zero)
    assert not jnp.any(updates["head"]["kernel"])
    for _ in range(10):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, grown), state, grown)
    sigma = 2 * np.sqrt(12)
    np.testing.assert_allclose(updates["head"]["kernel"], 4 * (sigma**2 - 1) * 2 * np.ones((4, 3)), rtol=1e-4)
