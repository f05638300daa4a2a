"""What every registered method keeps to: `plastax.testing`, and that it learns and names bad settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.testing.methods import INNER, PROMISES, SWITCH, Trial, make_model, trains_many_seeds_at_once
from plastax.testing.promises import close, difference, quick

# Settings under which each of a method's fields matters to the small network; others stay as they are.
EXAGGERATED: dict[str, dict[str, Any]] = {
    "weight_clipping": {"kappa": 1.0},
    "hare_tortoise": {"period": 10, "mu": 0.9},
    "trac": {"start": 1e-2, "eps": 1e-3},
    "muon": {"learning_rate": 1e-2},
    "plasticity_injection": {"injections": 2},
    "l2_init": {"variant": "huber", "delta": 0.05},
    "c_chain": {"target": 5e-4},
    "effective_rank": {"max_step": 3e-4},
    "l2_er": {"max_step": 3e-4},
    "continual_backprop": {"replacement_rate": 2e-3, "maturity": 20},
    "redo": {"period": 50, "threshold": 0.3},
    "regrama": {"period": 50, "threshold": 0.7},
    "self_normalized_resets": {"level": 0.2, "decay": 0.8, "first_gap": 8.0, "patience": 2},
}
CONFIGS = {name: dataclasses.replace(config, **EXAGGERATED.get(name, {})) for name, config in METHODS.items()}
NUMBERS = [
    (name, field.name)
    for name, config in METHODS.items()
    for field in dataclasses.fields(config)
    if isinstance(value := getattr(config, field.name), int | float) and not isinstance(value, bool)
]
# Those that differ in the model alone are built as another is, which trains in the fast tests.
BUILDS = {type(config).build: name for name, config in reversed(METHODS.items())}
every_training = pytest.mark.parametrize(
    "name", [n if n in BUILDS.values() else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)


@functools.cache
def trial(name: str) -> Trial:
    """One compiled program a method, for all its tests."""
    silent = name == "self_normalized_resets"
    return Trial(CONFIGS[name], make_model(silent, **CONFIGS[name].model_options))


@pytest.mark.parametrize(
    "promise",
    # It compiles every method once more.
    [pytest.param(p, marks=pytest.mark.slow) if p is trains_many_seeds_at_once else p for p in PROMISES],
    ids=lambda promise: promise.__name__,
)
@every_training
def test_method_keeps(name: str, promise: Callable[[Trial], None]) -> None:
    promise(trial(name))


@every_training
def test_learns(name: str) -> None:
    losses = trial(name).run()[-1]
    assert losses[-20:].mean() < 0.7 * losses[:20].mean()


@pytest.mark.parametrize(("name", "field"), NUMBERS)
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan")])
def test_bad_settings_are_named(name: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"\.{field}: {value} .* give"):
        dataclasses.replace(METHODS[name], **{field: value})


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if hasattr(config, "period")])
def test_period_is_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match="period"):
        dataclasses.replace(METHODS[name], period=0)


@pytest.mark.parametrize("name", [name for name, config in METHODS.items() if config.restarts_statistics])
def test_boundary_starts_again(name: str) -> None:
    of, key = trial(name), jax.random.key(7)
    params, state, losses = of.run()
    yes, no = quick(lambda: [of.switch(of.build(), params, state, key, boundary) for boundary in (True, False)])()
    fresh = quick(of.model.init)(key)
    assert not difference(yes[0], fresh, close(1e-6, 2e-7))
    assert not difference(yes[1], INNER.init(fresh))
    # Without a boundary it is the optimiser; here on a zero gradient.
    updates, expected_state = INNER.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert not difference(no, (optax.apply_updates(params, updates), expected_state), close(1e-6, 2e-7))
    # What is learned before a switch and after it is learned by two networks that know nothing of one another.
    assert losses[SWITCH] > 2 * losses[SWITCH - 20 : SWITCH].mean()
