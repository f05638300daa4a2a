"""The norm of the gradient, of few rows: that of all its entries; and what methods have to say in the record."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.models import CNN, MLP
from plastax.program import learner, passes
from plastax.program.passes import Aside


@pytest.mark.parametrize(
    ("config", "batch"),
    [(MLP((30, 50)), 1), (MLP((30, 50)), 3), (MLP((30,), layer_norm=True), 40), (CNN((3,), (3,), (40, 20)), 3)],
    ids=["one row", "few rows", "many rows, normalised", "convolution"],
)
def test_the_norm_is_that_of_all_entries(config: Any, batch: int) -> None:
    """Few rows and many, beside layers and parameters that are not taken by rows."""
    shape = (6, 6, 2)
    model, rng = config.build(shape, 4), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32)
    target = jnp.asarray(rng.standard_normal((batch, 4)), jnp.float32)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params: Any, x: jax.Array, target: jax.Array) -> Any:
        def forward(params: Any, taps: Any) -> Any:
            outputs, features, inputs = model.tapped(params, taps, x)
            return outputs, Aside(features, inputs)

        seen = passes.backward(forward, lambda z: (jnp.mean((z - target) ** 2), {}), params, model.taps(x))
        return passes.grad_norm(seen), seen.grads

    found, grads = both(model.init(jax.random.key(0)), x, target)
    every = [np.asarray(g, np.float64) for g in tree.named_leaves(grads).values()]
    np.testing.assert_allclose(found, np.sqrt(sum(np.sum(g**2) for g in every)), rtol=1e-5)


def test_what_methods_have_to_say_is_found_wherever_they_are() -> None:
    method = optax.chain(methods.hare_tortoise(), methods.trac(optax.adam(0.1)))
    assert learner.recorded(method.init({"w": jnp.ones(3)})) == {"trac/scale": 0}
