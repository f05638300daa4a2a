"""Layers that do more than their Kronecker factors would say have none, and are named."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from plastax import curvature, models, tree

EXAMPLES = 3


class Doubled(nn.Dense):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * super().__call__(x)


class Changed(nn.Module):
    """Layers whose parameters another module changes first, and one in a plain loop."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.SpectralNorm(nn.Dense(4, name="spectral"))(x, update_stats=True)
        x = nn.WeightNorm(nn.Dense(4, name="weight"))(x)
        looped = nn.Dense(4, name="looped")
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(looped(x)), None), looped(x), None, length=2)
        return nn.Dense(2, name="output")(x)


def test_layers_that_another_module_changes_or_a_plain_loop_calls_have_no_factors() -> None:
    x = jnp.ones((EXAMPLES, 3))
    variables = jax.jit(Changed().init)(jax.random.key(0), x)
    network = models.tapped(Changed(), mutable=["batch_stats"])
    assert tuple(network.taps(x)) == ("output",)
    assert list(jax.eval_shape(lambda v: network.apply(v, network.taps(x), x)[1], variables)) == ["output"]


class Elsewhere(nn.Module):
    """Layers whose factors would miss a part of what their parameters do, and one beside them that has factors."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        queries = self.param("queries", nn.initializers.ones, (2 * EXAMPLES, 4))
        tied, both = nn.Dense(3, name="tied"), nn.Dense(3, name="both")
        h = jnp.tanh(tied(x)) @ tied.variables["params"]["kernel"].T
        h = h @ nn.Dense(4, name="keys")(queries).T @ both(queries) + both(x)
        turned = nn.Dense(3, name="turned")(x.swapaxes(0, 1)).swapaxes(0, 1)
        return nn.Dense(2, name="output")(h + turned + Doubled(3, name="own")(x))


class NnxElsewhere(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.queries = nnx.Param(jnp.ones((2 * EXAMPLES, 4)))
        self.tied, self.both, self.turned = (nnx.Linear(4, 3, rngs=rngs) for _ in range(3))
        self.keys = nnx.Linear(4, 4, rngs=rngs)
        self.one, self.two = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        self.two.kernel = self.one.kernel
        self.scaled = nnx.WeightNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)
        self.output = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.tanh(self.tied(x)) @ self.tied.kernel[...].T
        h = h @ self.keys(self.queries[...]).T @ self.both(self.queries[...]) + self.both(x)
        turned = self.turned(x.swapaxes(0, 1)).swapaxes(0, 1)
        return self.output(self.two(self.one(h + turned + self.scaled(x))))


@pytest.mark.parametrize("form", ["linen", "nnx"])
def test_layers_that_do_more_than_their_factors_say_have_none(form: str) -> None:
    """Whatever their sizes: the first axis of some inputs is as long as the batch, or twice as long, and is another."""
    x = jnp.ones((EXAMPLES, 2 * EXAMPLES, 4))
    module: Any = Elsewhere() if form == "linen" else NnxElsewhere()
    if form == "linen":
        params: Any = jax.jit(module.init)(jax.random.key(0), x)["params"]
        own = ["own/bias", "own/kernel"]
    else:
        params = nnx.state(module, nnx.Param)
        own = [name for name in tree.named_leaves(nnx.to_pure_dict(params)) if name[:3] in ("one", "two", "sca")]
    network = models.tapped(module)
    assert tuple(network.taps(x)) == ("output",)
    assert list(jax.eval_shape(lambda p: network.apply(p, {}, x)[1], params)) == ["output"]
    layers = [f"{name}/{part}" for name in ("both", "keys", "tied", "turned") for part in ("bias", "kernel")]
    assert sorted(curvature.left_out(network, params, x)) == sorted([*layers, *own, "queries"])


class OneSize(nn.Module):
    """Written for one size of the batch."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="output")(nn.Dense(3, name="hidden")(x) + jnp.ones((EXAMPLES, 3)))


def test_networks_for_one_size_of_the_batch_are_tapped() -> None:
    assert tuple(models.tapped(OneSize()).taps(jnp.ones((EXAMPLES, 4)))) == ("hidden", "output")
