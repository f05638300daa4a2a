"""`check_method` fails for methods that break a promise, and says which."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import testing
from plastax.methods import ReDo
from plastax.methods.base import AtBoundary, Settings, add_scaled
from plastax.models import MLP

RANDOM = np.random.default_rng(0)


def push(updates: Any, strength: Any) -> Any:
    return jax.tree.map(lambda u: u + strength, updates)


@dataclass(frozen=True)
class Pull(Settings):
    """A pull towards zero before the optimiser; the cases below break it in one place each."""

    off: ClassVar = {"strength": 0.0}
    strength: float = 0.5

    def build(self, inner: optax.GradientTransformation, model: Any = None) -> Any:
        return optax.chain(optax.GradientTransformationExtraArgs(self.init, self.update), inner)

    def init(self, params: Any) -> Any:
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return add_scaled(updates, self.strength, params), state


class Stubborn(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return add_scaled(updates, self.strength + 0.1, params), state


class Unkeyed(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return push(updates, self.strength * jax.random.normal(jax.random.key(0))), state


class Numpy(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return push(updates, self.strength * RANDOM.normal()), state


class Growing(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return updates, (state, jnp.zeros(3))


class Weak(Pull):
    def init(self, params: Any) -> Any:
        return {"count": jnp.asarray(0)}

    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return updates, {"count": state["count"] + jnp.ones((), jnp.float32)}


class Choosy(Pull):
    def update(self, updates: Any, state: Any, params: Any, *, key: Any, clock: Any) -> Any:
        return updates, state


class Deaf(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return add_scaled(updates, 0.5, params), state


class Python(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return (add_scaled(updates, self.strength, params) if self.strength else updates), state


class Exploding(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return push(updates, self.strength * jnp.inf), state


def mean_of_all(x: Any) -> Any:
    """Of all networks that are trained together."""
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    fn = lambda x: np.full_like(x, np.mean(x))  # noqa: E731
    return jax.pure_callback(fn, like, x, vmap_method="broadcast_all")


class Mixing(Pull):
    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> Any:
        return jax.tree.map(lambda u, p: u + self.strength * mean_of_all(p), updates, params), state


class Idle(Pull):
    needs_boundary: ClassVar = True


class Blind(Pull):
    """Sees a boundary only where it is a Python boolean."""

    needs_boundary: ClassVar = True

    def build(self, inner: optax.GradientTransformation, model: Any = None) -> Any:
        def update(updates: Any, state: Any, params: Any, *, boundary: Any, **_: Any) -> Any:
            if boundary is True:
                return jax.tree.map(lambda p: -self.strength * p, params), state
            return inner.update(updates, state, params)

        return AtBoundary(inner.init, update)


Mutable = make_dataclass("Mutable", [("strength", float, 0.5)])
Bare = make_dataclass("Bare", [("strength", float, 0.5)], frozen=True)


def test_a_good_method_passes_as_object_and_as_class() -> None:
    testing.check_method(Pull(0.1))
    testing.check_method(Pull)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Stubborn, r"Stubborn: with off = \{'strength': 0.0\} its updates are not .*MethodConfig.off: Settings under"),
        (Unkeyed, "Unkeyed: it draws random numbers, and they are the same under another key .*MethodArgs.key: PRNG"),
        (Numpy, "Numpy: the same call gives another program .*MethodArgs.key.*not with NumPy"),
        (Growing, "Growing: a step changes the state' structure or types: the structure"),
        (Weak, r"Weak: a step changes the state' .*float32\[\] in place of int32\[\]"),
        (Choosy, "Choosy: update raises TypeError.*unexpected keyword.*MethodArgs: The extra arguments.*ignore"),
        (Deaf, "Deaf: the setting strength changes nothing in 200 steps.*idle="),
        (Python, "Python: update raises TracerBoolConversionError"),
        (Exploding, "Exploding: 200 steps .* not finite"),
        (
            Idle,
            "Idle: it says needs_boundary, and at a task switch it does nothing.*MethodConfig.needs_boundary",
        ),
        (Blind, "Blind: a traced boundary and a Python one give different results.*MethodArgs.boundary: bool scalar"),
        (Mutable(), "Mutable: it is no frozen dataclass.*to do: decorate"),
        (Bare(), "Bare: it has no model_options, needs_boundary, .*derive it from plastax.methods.base.Settings"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_named(config: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        testing.check_method(config)


def test_settings_that_need_not_matter_are_given() -> None:
    with pytest.raises(AssertionError, match="off = "):  # the next promise
        testing.check_method(Deaf(), idle=("strength",))


def test_another_network_is_taken() -> None:
    model = MLP((4,)).build((3,), 1)._replace(units={})
    with pytest.raises(AssertionError, match=r"ReDo: build raises ConfigError: .*without hidden units"):
        testing.check_method(ReDo, model=model)
