"""Every method on GPT and ViT keeps its promises, or says in one line why it cannot; padding changes nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods import METHODS, compose
from plastax.models import GPT, ViT
from plastax.testing.methods import INNER, PROMISES, STEPS, Trial
from plastax.testing.promises import close, difference, quick
from plastax.types import Examples, Model

from .test_contract import CONFIGS

VOCABULARY, LENGTH = 4, 5
SMALL: dict[str, Any] = {"width": 4, "depth": 1, "heads": 2, "mlp_ratio": 2}
MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "gpt": (GPT(**SMALL), (LENGTH,), VOCABULARY),
    "vit": (ViT(**SMALL, patch=2), (4, 4, 1), 1),
}
REFUSED = {
    "plasticity_injection": r"model\.injections: \d is not .* without dense hidden layers .*; give 0, or another model"
}
# The churn of token distributions is about their loss, so that the two settings are near one another.
OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("gpt", "c_chain"): {"target": 1.3e-2, "least": 1e-2},
    ("gpt", "l2_er"): {"max_step": 2e-3},
    ("vit", "l2_er"): {"max_step": 2e-3},
    ("gpt", "redo"): {"threshold": 0.9},
    ("vit", "redo"): {"threshold": 0.9},
}
"""Settings under which each field matters here, where those of the small MLP do not do."""
PAIRS = [(model, name) for model in MODELS for name in METHODS]
FAST = (
    "backprop",
    "redo",
    "continual_backprop",
    "effective_rank",
    "crelu",
    "layernorm",
    "muon",
    "plasticity_injection",
)
"""Methods that are tried on ViT in the fast tests; all are on GPT, whose blocks are the same."""


def sequences() -> Examples:
    """Tokens that count up by one or two, ``[STEPS, B, T]``; every other sequence is padded."""
    rng = np.random.default_rng(0)
    start, slope = rng.integers(VOCABULARY, size=(STEPS, 6, 1)), rng.integers(1, 3, size=(STEPS, 6, 1))
    text = ((start + slope * np.arange(LENGTH + 1)) % VOCABULARY).astype(np.int32)
    text[:, ::2, -2:] = -1
    return Examples(text[..., :-1], text[..., 1:])


def pictures() -> Examples:
    x: Any = np.random.default_rng(0).standard_normal((STEPS, 6, 4, 4, 1)).astype(np.float32)
    return Examples(x, np.tanh(x[:, :, 0, 0] + x[:, :, 1, 1] * x[:, :, 2, 2]))


BATCHES = {"gpt": sequences(), "vit": pictures()}


@functools.cache
def build(model: str, **options: Any) -> Model:
    config, shape, outputs = MODELS[model]
    return dataclasses.replace(config, **options).build(shape, outputs)


@functools.cache
def trial(model: str, name: str) -> Trial:
    config = dataclasses.replace(CONFIGS[name], **OWN.get((model, name), {}))  # type: ignore[type-var]
    network = build(model, **config.model_options)
    if name == "self_normalized_resets":  # Its units are silent for whole batches.
        drawn = network.init
        network = network._replace(
            init=lambda key: tree.map_named(lambda n, x: x - 2 * (n == "block_0/mlp/up/bias"), drawn(key))
        )
    return Trial(config, network, batches=BATCHES[model])


@functools.cache
def traced(model: str, **options: Any) -> tuple[Any, Any, Any]:
    """Shapes of the parameters of a network, of its gradient, and of what else a step has."""
    of = Trial(METHODS["backprop"], build(model, **options), batches=BATCHES[model])
    params = jax.eval_shape(of.model.init, tree.key_like())
    return params, *jax.eval_shape(of.seen, params, of.model.batch_like)


@pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(*p, marks=[pytest.mark.slow] * (p[0] == "vit" and p[1] not in FAST)) for p in PAIRS],
)
def test_a_method_takes_a_step_or_says_why_not(model: str, name: str) -> None:
    """Traced only: the updates are typed like the parameters, and the state keeps its structure."""
    if name in REFUSED:
        with pytest.raises(ConfigError, match=f"^{REFUSED[name]}$"):
            build(model, **CONFIGS[name].model_options)
        return
    of = trial(model, name)
    params, grads, seen = traced(model, **of.config.model_options)

    def step(params: Any, grads: Any, seen: Any, batch: Any, key: Any) -> Any:
        method = of.build(INNER)
        state = method.init(params)
        updates, later = method.update(grads, state, params, **of.args(key, jnp.int32(0), batch, seen))
        return optax.apply_updates(params, updates), state, later

    new, state, later = jax.eval_shape(step, params, grads, seen, of.model.batch_like, tree.key_like())
    same: Any = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)  # noqa: E731
    assert not difference(new, params, same)
    assert not difference(later, state, same)


@pytest.mark.slow
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_method_keeps(model: str, name: str, promise: Callable[[Trial], None]) -> None:
    if name not in REFUSED:
        promise(trial(model, name))


AVERAGING: dict[str, dict[str, Any]] = {
    "continual_backprop": {"replacement_rate": 0.3, "maturity": 0, "utility": "adaptable_contribution"},
    "redo": {"period": 1, "threshold": 0.4},
    "c_chain": {"target": 1.0},
    "effective_rank": {"er_lr": 0.1, "period": 1},
}
"""Methods that average or decompose features or outputs, under settings with which they act."""


@pytest.mark.parametrize("names", [["continual_backprop"], pytest.param([*AVERAGING], marks=pytest.mark.slow)], ids=len)
def test_padding_changes_no_step(names: list[str]) -> None:
    config: Any = compose([dataclasses.replace(METHODS[name], **AVERAGING[name]) for name in names])
    network = dataclasses.replace(MODELS["gpt"][0], initializer="lecun_normal").build((LENGTH + 2,), VOCABULARY)
    batches = jax.tree.map(lambda x: x[:3], BATCHES["gpt"])

    def trained(batches: Examples) -> Any:
        of = Trial(config, network, batches=batches)
        method, start = of.build(optax.sgd(0.5)), network.init(jax.random.key(0))

        def body(carry: Any, x: Any) -> Any:
            params, state = carry
            clock, batch = x
            grads, seen = of.seen(params, batch)
            updates, state = method.update(grads, state, params, **of.args(jax.random.key(clock), clock, batch, seen))
            return (optax.apply_updates(params, updates), state), seen[0]

        steps = (jnp.arange(3), jax.tree.map(jnp.asarray, batches))
        (params, _), losses = quick(lambda: jax.lax.scan(body, (start, method.init(start)), steps))()
        return params, losses, start

    plain_params, losses, start = trained(batches)
    padded = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 0), (0, 2)], constant_values=-1), batches)
    padded_params, padded_losses, _ = trained(padded)
    np.testing.assert_allclose(padded_losses, losses, rtol=1e-4)
    assert not difference(padded_params, plain_params, close(1e-3, 1e-4))
    assert difference(plain_params, start, close(1e-1, 1e-2))
