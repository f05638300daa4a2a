"""Discovery: the trace of a network shows its layers, units and roles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from plastax import discovery, roles, tree
from tests.models.test_units import CASES

OUTPUTS, EXAMPLES = 3, 4


@pytest.mark.parametrize("case", [case for case in CASES if "mlp" in case or case == "actor_critic"])
def test_the_trace_of_a_network_of_plastax_shows_what_it_declares(case: str) -> None:
    config, shape = CASES[case]
    model = config.build(shape, OUTPUTS)
    like = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((EXAMPLES, *shape), jnp.float32)
    found = discovery.discover(lambda params, x: (model.apply(params, x)[0], {}), like, x)
    assert (found.layers, found.hidden, found.activation) == (model.layers, model.hidden, model.activation)
    leaves = tree.named_leaves(like)

    def entries(units: Any) -> Any:
        sides = {layer: (unit.width, unit.copies, unit.incoming, unit.outgoing) for layer, unit in units.items()}
        return {
            layer: (width, copies, *({(e.name, e.axis % leaves[e.name].ndim) for e in side} for side in both))
            for layer, (width, copies, *both) in sides.items()
        }

    assert entries(found.units) == entries(model.units)
    declared, seen = roles.of_model(model).of(like), found.roles.of(like)
    for name, role in declared.items():
        assert seen[name]._replace(stacks=()) == role._replace(stacks=()), name
