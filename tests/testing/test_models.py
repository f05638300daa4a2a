"""`check_model` fails for networks that break a promise, and says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import testing
from plastax.layers import Entries
from plastax.models import MLP
from plastax.types import Model

GOOD = MLP(hidden=(5, 4)).build((4,), 3)
FIRST = GOOD.units["dense_0"]
RANDOM = np.random.default_rng(0)


def units(**fields: Any) -> Callable[[], Model]:
    """The model with other units in its first layer."""
    return lambda: GOOD._replace(units={**GOOD.units, "dense_0": FIRST._replace(**fields)})


def noisy(key: Any) -> Any:
    return jax.tree.map(lambda x: x + RANDOM.normal(), GOOD.init(key))


def untapped(params: Any, taps: Any, x: Any) -> Any:
    """Adds every tap twice."""
    return GOOD.tapped(params, jax.tree.map(lambda t: 2 * t, taps), x)


def shifted(params: Any, taps: Any, x: Any) -> Any:
    z, features, inputs = GOOD.tapped(params, taps, x)
    return z + 1, features, inputs


def test_good_models_pass_as_objects_as_classes_and_built() -> None:
    testing.check_model(GOOD)
    testing.check_model(MLP(hidden=(5,), layer_norm=True, activation="crelu"), (2, 2))


@pytest.mark.parametrize(
    "module",
    [
        lambda outputs: nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(outputs)]),
        lambda outputs, rngs: nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), nnx.relu, nnx.Linear(5, outputs, rngs=rngs)),
    ],
    ids=["linen", "nnx"],
)
def test_modules_of_other_makes_pass(module: Any) -> None:
    testing.check_model(module)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (units(incoming=FIRST.incoming[:0]), "unit 1 of dense_0: its features do not move.*Units.incoming: parameters"),
        (
            units(incoming=GOOD.units["dense_1"].incoming, width=4),
            "dense_0 has 5 features, and 1 x 4 units.*Units: T",
        ),
        (units(incoming=(Entries("dense_1/kernel", 0),)), "unit 1 of dense_0: its features do not move"),
        (units(incoming=(Entries("dense_0/kernel", 0),)), "dense_0 has Entries.*this parameter has the shape .4, 5."),
        (
            units(incoming=(*FIRST.incoming, Entries("output/bias", 0))),
            r"dense_0 has Entries\(name='output/bias', axis=0\)",
        ),
        (units(outgoing=()), "unit 1 of dense_0: it still moves the outputs.*Units.outgoing: parameters that read it"),
        (units(outgoing=(Entries("dense_0/kernel", 1),)), "unit 1 of dense_0: it still moves the outputs"),
        (units(outgoing=(Entries("nothing", 0),)), "dense_0 has Entries.name='nothing'"),
        (
            lambda: GOOD._replace(hidden=GOOD.hidden[::-1]),
            "the features are of dense_0, dense_1, and hidden of d",
        ),
        (lambda: GOOD._replace(layers=GOOD.layers[:-1]), "the kernels are of dense_0, dense_1, output, and"),
        (lambda: GOOD._replace(init=noisy), "the same call gives another program.*Model.init: ``.key. -> params``"),
        (lambda: GOOD._replace(init=lambda key: GOOD.init(jax.random.key(0))), "another key draws the same network"),
        (lambda: GOOD._replace(tapped=untapped), "of dense_0 do not make up the gradient of its kernel.*Model.tapped"),
        (lambda: GOOD._replace(tapped=shifted), "with zeros as taps it gives something else than `apply`"),
        (lambda: GOOD._replace(stats={"mean": jnp.zeros(3)}), "it has some of train, evaluate and stats"),
        (lambda: MLP(hidden=(5,)).build((4,), 2), r"for 4 examples and 3 outputs it gives \[4, 2\]"),
        (lambda: 7, "build raises ConfigError: model: int"),
    ],
)
def test_a_broken_promise_is_named(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        testing.check_model(make())
