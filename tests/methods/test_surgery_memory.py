"""What an optimiser, or a method inside, remembers of a replaced unit goes with it; all else stays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.methods import surgery
from tests.methods.test_surgery import jit, model_of, numpy_masks, random_like, shapes_of

MEMORIES = {
    "adan": optax.adan(0.1),
    "ema": optax.chain(optax.ema(0.9), optax.sgd(0.1)),
    "ademamix": optax.contrib.ademamix(0.1),
    "prodigy": optax.contrib.prodigy(),
    "rprop": optax.rprop(0.1),
    "optimistic": optax.optimistic_adam_v2(0.1),
    "schedule free": optax.contrib.schedule_free_adamw(0.1),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 4).gradient_transformation(),
    "tortoise": optax.chain(optax.sgd(0.1), methods.hare_tortoise()),
    "utility": methods.upgd(optax.sgd(0.1)),
    "looked at": methods.dash(optax.sgd(0.1)),
}


@pytest.mark.parametrize(
    "memory",
    [m if m in ("adan", "tortoise", "utility") else pytest.param(m, marks=pytest.mark.slow) for m in MEMORIES],
)
def test_nothing_is_remembered_of_a_replaced_unit(memory: str) -> None:
    """Whoever keeps it, and by whatever name; and of other units all is."""
    model, inner = model_of("mlp"), MEMORIES[memory]
    params, fresh = (random_like(shapes_of("mlp"), seed) for seed in range(2))
    state = random_like(jax.eval_shape(inner.init, params), 2)
    chosen = {layer: np.arange(units.width) == 1 for layer, units in model.units.items()}
    zeros = jax.tree.map(np.zeros_like, params)

    @jit
    def replaced(params: Any, state: Any) -> Any:
        args = model.units, chosen, tree.named_leaves(fresh), params, zeros, state, inner
        updates, moved = surgery.replace(*args)
        new = optax.apply_updates(params, updates)
        return inner.init(new), moved

    start, after = replaced(params, state)
    incoming, outgoing = numpy_masks(model, chosen, tree.named_leaves(params))
    start, before, after = (tree.named_leaves(x) for x in (start, state, after))
    found = 0
    for path, value in after.items():
        name = next((n for n in incoming if path.endswith(f"/{n}") and value.shape == incoming[n].shape), None)
        if name is None:
            np.testing.assert_array_equal(value, before[path])
            continue
        mask = incoming[name] | outgoing[name]
        np.testing.assert_array_equal(value[mask], np.asarray(start[path])[mask], err_msg=path)
        np.testing.assert_array_equal(value[~mask], np.asarray(before[path])[~mask], err_msg=path)
        found += 1
    assert found >= len(incoming)


@pytest.mark.parametrize("inner", [methods.l2_init(0.1), methods.trac(optax.sgd(0.1))])
def test_what_a_network_is_compared_with_stays(inner: Any) -> None:
    model = model_of("mlp")
    params, fresh = (random_like(shapes_of("mlp"), seed) for seed in range(2))
    chosen = {layer: np.ones(units.width, bool) for layer, units in model.units.items()}
    state = inner.init(params)
    _, moved = surgery.replace(model.units, chosen, tree.named_leaves(fresh), params, params, state, inner)
    jax.tree.map(np.testing.assert_array_equal, moved, state)
