"""Readiness, noise, churn, duplicates, isometry and robustness of one small network, against NumPy in float64."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import probes, tree
from plastax.errors import ConfigError
from plastax.models import ActorCritic
from plastax.probes import ChurnProbe, DuplicateProbe, IsometryGapProbe, NoiseProbe, ReadinessProbe, RobustnessProbe
from plastax.probes.duplicates import nearest
from plastax.probes.isometry_gap import deviations
from plastax.probes.noise import noise_scale
from plastax.probes.readiness import readiness
from plastax.testing import probes as shown
from tests.probes.network import look, make_batch, make_params, no_factors

EXAMPLES, PARTS, ITERATIONS, RATE = 12, 4, 3, 0.5
SHAPES = {"hidden": {"kernel": (4, 5), "bias": (5,)}, "output": {"kernel": (5, 3), "bias": (3,)}}
LAYERS = ("hidden", "output")
CHOSEN = (
    ReadinessProbe(minibatches=PARTS, order=64), NoiseProbe(minibatches=PARTS, iterations=ITERATIONS),
    ChurnProbe(minibatches=PARTS, learning_rate=RATE), DuplicateProbe(threshold=0.6), IsometryGapProbe(),
    RobustnessProbe(noise=1.0, epsilon=0.5),
)  # fmt: skip


def make(seed: int = 0) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda shape: rng.standard_normal(shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return params, (rng.standard_normal((EXAMPLES, 4)), rng.integers(0, 3, EXAMPLES))


def apply(params: dict, x: jax.Array) -> tuple[jax.Array, dict]:
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"][None], {"hidden": hidden}


class Pass(NamedTuple):
    """A network in NumPy, by hand: works for complex parameters as well."""

    hidden: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict
    slope: np.ndarray


def forward_and_back(params: dict, x: np.ndarray, y: np.ndarray) -> Pass:
    first, last = params["hidden"], params["output"]
    h = np.tanh(x @ first["kernel"] + first["bias"])
    z = h @ last["kernel"] + last["bias"]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    dz = (p - np.eye(3)[y]) / len(y)
    dh = (dz @ last["kernel"].T) * (1 - h**2)
    grads = {
        "hidden": {"kernel": x.T @ dh, "bias": dh.sum(axis=0)},
        "output": {"kernel": h.T @ dz, "bias": dz.sum(axis=0)},
    }
    return Pass(h, z, -np.log(p[np.arange(len(y)), y]).mean(), grads, dh @ first["kernel"].T)


def flat(params: dict) -> np.ndarray:
    return np.concatenate([x.ravel() for x in jax.tree.leaves(params)])


def unflat(vector: np.ndarray) -> dict:
    leaves, structure = jax.tree.flatten(make()[0])
    ends = np.cumsum([x.size for x in leaves])[:-1]
    return jax.tree.unflatten(structure, [v.reshape(x.shape) for v, x in zip(np.split(vector, ends), leaves)])


def hessian(params: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By complex steps through the gradient: exact to rounding."""
    w, step = flat(params), 1e-30
    columns = [flat(forward_and_back(unflat(w + 1j * step * e), x, y).grads).imag / step for e in np.eye(w.size)]
    return np.stack(columns, axis=1)


def minibatches() -> list[tuple[np.ndarray, np.ndarray]]:
    _, (x, y) = make()
    return [(x[b::PARTS], y[b::PARTS]) for b in range(PARTS)]


@functools.cache
def measured(dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """All of them in one compiled program."""
    with jax.enable_x64(dtype == np.float64):
        params, (x, y) = make()
        params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, x))
        return jax.tree.map(np.asarray, probes.measure(CHOSEN, params, apply, (x, jnp.asarray(y)), jax.random.key(0)))


def test_readiness_equals_numpy() -> None:
    params, (x, y) = make()
    grads = np.stack([flat(forward_and_back(params, *part).grads) for part in minibatches()])
    whole = flat(forward_and_back(params, x, y).grads)
    smoothness = np.abs(np.linalg.eigvalsh(hessian(params, x, y))).max()
    strength, reliability = whole @ whole / smoothness, whole @ whole / (grads**2).sum(axis=1).mean()
    expected = {"strength": strength, "reliability": reliability, "readiness": strength * reliability}
    assert 0.05 < reliability < 0.95
    for name, value in (expected | {"smoothness": smoothness}).items():
        np.testing.assert_allclose(measured()[f"readiness/{name}"], value, rtol=1e-6, err_msg=name)
    assert measured()["readiness/smoothness_residual"] < 1e-6 * smoothness
    single = readiness(jnp.asarray(grads, jnp.float32), jnp.float32(smoothness))
    for name, value in expected.items():
        np.testing.assert_allclose(single[name], value, rtol=1e-6, err_msg=name)


def test_no_gradient_is_no_readiness_and_a_sure_step_gains_half_of_it() -> None:
    assert set(map(float, readiness(jnp.zeros((3, 2)), jnp.float32(0)).values())) == {0.0}
    # Of the loss |w|^2 at w = (3, 0), with exact gradients: the best step reaches the minimum and gains 9.
    sure = readiness(jnp.asarray([[6.0, 0.0]] * 2), jnp.float32(2))
    assert float(sure["reliability"]) == 1
    assert float(sure["readiness"]) / 2 == 9


def test_noise_and_curvature_of_layers_equal_numpy() -> None:
    params, _ = make()
    names = [name for name, _ in tree.named_leaves(params).items()]
    leaves = np.repeat(names, [x.size for x in jax.tree.leaves(params)])
    for i, layer in enumerate(LAYERS):
        mine = leaves == f"{layer}/kernel"
        grads = np.stack([flat(forward_and_back(params, *part).grads)[mine] for part in minibatches()])
        scale = EXAMPLES / PARTS * grads.var(axis=0, ddof=1).sum() / (grads.mean(axis=0) ** 2).sum()
        np.testing.assert_allclose(measured()["noise/noise_scale"][i], scale, rtol=1e-6)
        sharpness = []
        for part, v in zip(minibatches(), grads):
            block = hessian(params, *part)[np.ix_(mine, mine)]
            for _ in range(ITERATIONS + 1):
                v = block @ (v / np.linalg.norm(v))
            sharpness.append(np.linalg.norm(v))
            assert 0.3 < sharpness[-1] / np.abs(np.linalg.eigvalsh(block)).max() <= 1 + 1e-9
        np.testing.assert_allclose(measured()["noise/sharpness"][i], np.mean(sharpness), rtol=1e-6)
        np.testing.assert_allclose(measured()["noise/volatility"][i], np.std(sharpness) / np.mean(sharpness), rtol=1e-6)


def test_noise_scale_estimates_that_of_examples_at_any_size_of_minibatches() -> None:
    draws = np.random.default_rng(0).standard_normal((4096, 3)) * np.array([1.0, 2.0, 0.0]) + 4.0
    for size in (1, 8):
        grads = draws.reshape(-1, size, 3).mean(axis=1)
        np.testing.assert_allclose(noise_scale(jnp.asarray(grads, jnp.float32), size), 5 / 48, rtol=0.15)
    assert float(noise_scale(jnp.zeros((4, 2)), 3)) == 0


def test_churn_equals_steps_in_numpy() -> None:
    params, _ = make()
    parts = minibatches()
    before = [forward_and_back(params, *part).logits for part in parts]
    on, off, switched = [], [], []
    for b, part in enumerate(parts):
        moved = unflat(flat(params) - RATE * flat(forward_and_back(params, *part).grads))
        for c, other in enumerate(parts):
            after = forward_and_back(moved, *other).logits
            (on if b == c else off).append((np.square(after - before[c]).sum(axis=1)).mean())
            if b != c:
                switched.append((after.argmax(axis=1) != before[c].argmax(axis=1)).mean())
    expected = {"on": np.sqrt(np.mean(on)), "off": np.sqrt(np.mean(off)), "switched": np.mean(switched)}
    assert 0 < expected["switched"] < 1
    for name, value in (expected | {"ratio": expected["off"] / expected["on"]}).items():
        np.testing.assert_allclose(measured()[f"churn/{name}"], value, rtol=1e-6, err_msg=name)


def test_duplicates_equal_numpy_and_are_found_among_copies() -> None:
    params, (x, y) = make()
    h = forward_and_back(params, x, y).hidden
    cosines = (h / np.linalg.norm(h, axis=0)).T @ (h / np.linalg.norm(h, axis=0)) - 2 * np.eye(5)
    np.testing.assert_allclose(measured()["duplicates/cosine"], [cosines.max(axis=1).mean()], rtol=1e-6)
    share = (cosines.max(axis=1) >= 0.6).mean()
    assert 0 < share < 1
    np.testing.assert_allclose(measured()["duplicates/fraction"], [share], rtol=1e-6)
    np.testing.assert_allclose(measured()["duplicates/pooled"], share, rtol=1e-6)
    # A copy at another scale, one of the other sign, two silent units; of maps a channel is a unit.
    unit = np.array([1.0, 2.0, -1.0, 0.5])
    other = np.array([2.0, -1.0, 0.0, 0.0])
    features = jnp.asarray(np.stack([unit, 3 * unit, other, -other, 0 * unit, 0 * unit], axis=1), jnp.float32)
    np.testing.assert_allclose(nearest(features), [1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(nearest(features.reshape(2, 2, 1, 6)), nearest(features))


def test_isometry_equals_singular_values() -> None:
    params, _ = make()
    for i, layer in enumerate(LAYERS):
        squares = np.linalg.svd(params[layer]["kernel"], compute_uv=False) ** 2
        relative = squares / squares.mean()
        found = measured()["isometry_gap/deviation"][i], measured()["isometry_gap/relative_deviation"][i]
        np.testing.assert_allclose(found, [np.sqrt(np.mean((s - 1) ** 2)) for s in (squares, relative)], rtol=1e-6)
    for gain, both in ((1.0, (0, 0)), (np.sqrt(2), (1, 0)), (0.0, (1, 0))):
        np.testing.assert_allclose(deviations(gain * jnp.eye(5)[:3]), both, atol=1e-6)


def test_robustness_equals_numpy() -> None:
    params, (x, y) = make()
    clean = forward_and_back(params, x, y)
    with jax.enable_x64(True):
        drawn = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), len(CHOSEN) - 1), x.shape))
    shifts = {"clean": 0 * x, "noise": x.std() * drawn, "adversarial": 0.5 * x.std() * np.sign(clean.slope)}
    found = {name: forward_and_back(params, x + shift, y) for name, shift in shifts.items()}
    accuracy = {name: (of.logits.argmax(axis=1) == y).mean() for name, of in found.items()}
    assert accuracy["adversarial"] < accuracy["clean"]
    for name, of in found.items():
        np.testing.assert_allclose(measured()[f"robustness/{name}_loss"], of.loss, rtol=1e-6)
        np.testing.assert_allclose(measured()[f"robustness/{name}_accuracy"], accuracy[name], rtol=1e-6)
        changed = (of.logits.argmax(axis=1) != clean.logits.argmax(axis=1)).mean()
        np.testing.assert_allclose(measured().get(f"robustness/{name}_changed", 0.0), changed, rtol=1e-6)


def test_robustness_of_a_policy_is_that_of_its_likeliest_actions() -> None:
    sight, batch = shown.sight_of("reinforcement"), shown.make_batch("reinforcement")
    params = sight.model.init(jax.random.key(0))
    probe = RobustnessProbe(noise=1.0, epsilon=1.0).build(sight.model)
    key = jax.random.key(3)
    learned = sight.learner.start(key, params)
    found = jax.jit(lambda learned: probe.measure(sight.seen(learned, batch, key, previous=False)))(learned)

    def policy(x: jax.Array) -> jax.Array:
        return sight.model.apply(params, x)[0]["policy"]

    def confidence(x: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.max(jax.nn.log_softmax(policy(x)), axis=1))

    x = batch.observation
    scale = np.std(x)
    noisy, adversarial = (
        x + scale * jax.random.normal(jax.random.key(3), x.shape), x + scale * jnp.sign(jax.grad(confidence)(x)),
    )  # fmt: skip
    actions = np.argmax(policy(x), axis=1)
    np.testing.assert_allclose(found["clean_loss"], confidence(x), rtol=1e-5)
    for name, moved in (("noise", noisy), ("adversarial", adversarial)):
        changed = (np.argmax(policy(moved), axis=1) != actions).mean()
        assert changed > 0
        np.testing.assert_allclose(found[f"{name}_changed"], changed, rtol=1e-6)
    assert not [name for name in found if "accuracy" in name]


def test_regression_has_losses_and_no_choices() -> None:
    params, (x, _) = make()
    chosen = (RobustnessProbe(), ChurnProbe())
    batch = jnp.asarray(x), jnp.zeros((EXAMPLES, 3))
    names = jax.eval_shape(lambda: probes.measure(chosen, params, apply, batch, jax.random.key(0), loss="mse"))
    assert set(names) == {
        "robustness/clean_loss", "robustness/noise_loss", "robustness/adversarial_loss",
        "churn/on", "churn/off", "churn/ratio",
    }  # fmt: skip


def test_networks_that_robustness_does_not_fit_are_refused() -> None:
    probe = RobustnessProbe().build(ActorCritic(hidden=(4,)).build((3,), 2, continuous=True))
    seen = look(make_params(), make_batch(), no_factors())
    with pytest.raises(ConfigError, match="robustness: a batch of type dict"):
        probe.measure(seen)
    gaussian = seen._replace(
        batch=shown.make_batch("reinforcement"),
        outputs_fn=lambda params, batch: {"policy": batch.observation, "log_std": batch.observation},
    )
    with pytest.raises(ConfigError, match="robustness: a policy of continuous actions"):
        probe.measure(gaussian)


@pytest.mark.parametrize(
    ("config", "settings", "name"),
    [
        (ReadinessProbe, {"minibatches": 1}, "readiness.minibatches"),
        (ReadinessProbe, {"order": 0}, "readiness.order"),
        (NoiseProbe, {"minibatches": 1}, "noise.minibatches"),
        (NoiseProbe, {"iterations": -1}, "noise.iterations"),
        (ChurnProbe, {"learning_rate": 0.0}, "churn.learning_rate"),
        (DuplicateProbe, {"threshold": 1.5}, "duplicates.threshold"),
        (RobustnessProbe, {"noise": 0.0}, "robustness.noise"),
        (RobustnessProbe, {"epsilon": -0.1}, "robustness.epsilon"),
    ],
)
def test_settings_that_cannot_be_used(config: Any, settings: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config(**settings)
