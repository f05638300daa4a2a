"""Every probe against NumPy in float64, and what all of them keep to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import linalg, tree
from plastax.curvature import running
from plastax.curvature.kronecker import Factors, factors
from plastax.models import ActorCritic
from plastax.probes import (
    GGN,
    PROBES,
    FeatureProbe,
    Hessian,
    KroneckerSpectrum,
    TrainabilityProbe,
    dead_units,
    dormant_fraction,
    monitor,
)
from plastax.probes.features import feature_norm, participation_ratio
from plastax.types import ConfigError, Loss, Probe, ProbeInput

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES = 10
MODEL = ActorCritic(hidden=(5, 4)).build((3,), 2, continuous=False)
# As an experiment has them: with a budget.
CONFIGS = {**PROBES, "trainability": PROBES["trainability"].within(0.1, 20)}
every_probe = pytest.mark.parametrize("name", PROBES)


def features_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    random = rng.standard_normal((12, 6))
    return {
        "random": random,
        "wide": random.T,
        "rank_one": np.outer(random[:, 0], 1 + np.abs(random[0])),
        "relu": np.maximum(random, 0.0) * np.array([1.0, 0.0, 2.0, 1e-2, 1.0, 0.0]),
        "maps": rng.standard_normal((3, 2, 4, 5)),
        "zero": np.zeros((12, 6)),
        "dead_maps": np.maximum(-np.abs(rng.standard_normal((3, 2, 4, 5))), 0.0),
    }[kind]


KINDS = ("random", "wide", "rank_one", "relu", "maps", "zero", "dead_maps")


def entropy_rank(values: np.ndarray) -> float:
    """Exponential of the entropy of non-negative values; 0 if they are all zero."""
    if not values.sum():
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def numpy_effective_rank(h: np.ndarray) -> float:
    s = np.linalg.svd(h, compute_uv=False)
    return entropy_rank(np.where(s > 1e-12 * max(s[0], 1e-300), s, 0.0))


def numpy_participation_ratio(h: np.ndarray) -> float:
    s = np.linalg.svd(h, compute_uv=False)
    return float((s**2).sum() ** 2 / (s**4).sum()) if s.any() else 0.0


def numpy_dormant_fraction(h: np.ndarray) -> float:
    score = np.abs(h).mean(axis=0)
    return float(np.mean([s <= 0.025 * score.mean() for s in score]))


MEASUREMENTS: dict[str, tuple[Callable, Callable]] = {
    "effective_rank": (
        lambda h: linalg.effective_rank(h.reshape(-1, h.shape[-1])),
        numpy_effective_rank,
    ),
    "participation_ratio": (participation_ratio, numpy_participation_ratio),
    "dormant_fraction": (dormant_fraction, numpy_dormant_fraction),
    "dead_units": (dead_units, lambda h: float((np.abs(h).sum(axis=0) == 0).sum())),
    "feature_norm": (feature_norm, lambda h: float(np.mean([np.sqrt((row**2).sum()) for row in h]))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurement_equals_numpy(name: str, kind: str) -> None:
    measure, reference = MEASUREMENTS[name]
    h = features_of(kind)
    got = jit(measure)(jnp.asarray(h, jnp.float32))
    assert (got.shape, got.dtype) == ((), jnp.float32)
    # Small singular values come from a Gram matrix, with the root of its rounding.
    rtol = 2e-4 if (name, kind) == ("effective_rank", "relu") else 2e-5
    np.testing.assert_allclose(got, reference(h.reshape(-1, h.shape[-1])), rtol=rtol, atol=1e-6)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
def test_ranks_know_no_basis_and_no_scale(name: str) -> None:
    measure = jit(MEASUREMENTS[name][0])
    h = features_of("random")
    before = float(measure(jnp.asarray(h, jnp.float32)))
    assert 1.0 < before < 6.0
    for other in (h @ orthogonal(6, 1), orthogonal(12, 2) @ h, 1e12 * h, 1e-12 * h, -h, h[::-1]):
        np.testing.assert_allclose(measure(jnp.asarray(other, jnp.float32)), before, rtol=1e-4)
    np.testing.assert_allclose(measure(jnp.asarray(orthogonal(6, 3), jnp.float32)), 6.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["dormant_fraction", "dead_units"])
def test_dormancy_knows_no_order_and_no_scale(name: str) -> None:
    measure = jit(MEASUREMENTS[name][0])
    h = jnp.asarray(features_of("relu"), jnp.float32)
    before = float(measure(h))
    assert before in (3 / 6, 2.0)
    for other in (h[:, ::-1], h[::-1], 1e6 * h, 1e-6 * h, -h):
        assert float(measure(other)) == before
    assert float(dormant_fraction(h, 0.0)) == pytest.approx(2 / 6)


def test_measurements_of_nan_are_not_numbers() -> None:
    h = jnp.asarray(features_of("relu"), jnp.float32).at[2, 3].set(jnp.nan)
    for name in ("effective_rank", "participation_ratio", "dormant_fraction", "feature_norm"):
        assert np.isnan(MEASUREMENTS[name][0](h)), name


def loss_fn(params: Any, batch: dict) -> jax.Array:
    return tapped_loss_fn(params, {}, batch)[0]


def tapped_loss_fn(params: Any, taps: dict, batch: dict) -> tuple[jax.Array, tuple[dict, dict]]:
    outputs, features, inputs = MODEL.tapped(params, taps, batch["x"])
    error = jnp.square(outputs["policy"] - batch["y"]).sum(axis=1) + jnp.square(outputs["value"] - batch["v"])
    return 0.5 * jnp.mean(error), (features, inputs)


# Half the squared errors, summed over the outputs of an example.
OUTPUT_LOSS = Loss(
    lambda outputs, batch: jnp.zeros(()),
    lambda outputs, batch, tangent: jax.tree.map(lambda t: t / batch["x"].shape[0], tangent),
    lambda outputs, batch: {
        "policy": jnp.zeros((3, *outputs["policy"].shape)).at[[0, 1], :, [0, 1]].set(len(batch["x"]) ** -0.5),
        "value": jnp.zeros((3, *outputs["value"].shape)).at[2].set(len(batch["x"]) ** -0.5),
    },
)


def make_params(dead: bool = False, dtype: Any = np.float32) -> Any:
    """A network with nothing at zero; or one whose hidden units are all silent."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))

    def draw(name: str, like: Any) -> jax.Array:
        value = rng.standard_normal(like.shape) / 2
        return jnp.asarray(np.full(like.shape, -100.0) if dead and "dense" in name and "bias" in name else value, dtype)

    return tree.map_named(draw, shapes)


def make_batch(seed: int = 2, dtype: Any = np.float32) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (EXAMPLES, 3), "y": (EXAMPLES, 2), "v": (EXAMPLES,)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def look(params: Any, batch: Any, factors: Any, seed: Any = 0) -> ProbeInput:
    return ProbeInput(
        params=params,
        batch=batch,
        loss_fn=loss_fn,
        features_fn=lambda p, b: MODEL.apply(p, b["x"])[1],
        outputs_fn=lambda p, b: MODEL.apply(p, b["x"])[0],
        output_loss=OUTPUT_LOSS,
        tapped_loss_fn=tapped_loss_fn,
        taps_fn=lambda b: MODEL.taps(b["x"]),
        factors=factors,
        key=jax.random.key(seed),
    )


def no_factors() -> running.Running:
    return running.start({})


def fresh_factors(params: Any, batch: Any) -> dict[str, Factors]:
    """As the training step makes them."""
    taps = MODEL.taps(batch["x"])
    tap_grads, (_, inputs) = jax.grad(tapped_loss_fn, argnums=1, has_aux=True)(params, taps, batch)
    return factors(inputs, tap_grads)


@functools.cache
def measure_of(config: Any) -> Callable[..., dict[str, jax.Array]]:
    """One compiled program a probe: (parameters ``[2, ...]``, batch, key seeds ``[2]``) -> values."""
    probe = config.build(MODEL)

    def one(params: Any, batch: Any, seed: jax.Array) -> dict[str, jax.Array]:
        if not isinstance(config, KroneckerSpectrum):
            return probe.measure(look(params, batch, no_factors(), seed))
        value = fresh_factors(params, batch)
        factors = running.update(running.start(value), value, 0.9)
        return probe.measure(look(params, batch, factors, seed))

    return jit(jax.vmap(one, in_axes=(0, None, 0)))


def live_and_dead() -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), make_params(), make_params(dead=True))


def assert_declared(probe: Probe, values: dict[str, Any]) -> None:
    """Names and lengths of all axes are as the probe says; ``values`` are arrays or shape structs of one network."""
    assert set(probe.dims) <= set(values)
    lengths = {axis: len(labels) for axis, labels in probe.coords.items()}
    for name, value in values.items():
        axes = probe.dims.get(name, ())
        assert len(axes) == value.ndim, name
        assert jnp.issubdtype(value.dtype, jnp.floating), name
        for axis, size in zip(axes, value.shape, strict=True):
            assert lengths.setdefault(axis, size) == size, (name, axis)
    assert set(probe.coords) <= set(lengths)


@every_probe
def test_registered_probe(name: str, assert_no_retrace: Callable) -> None:
    probe = CONFIGS[name].build(MODEL)
    assert probe.name == name
    shapes = jax.eval_shape(lambda p, b: probe.measure(look(p, b, no_factors())), make_params(), make_batch())
    assert_declared(probe, shapes)

    params, batch, seeds = live_and_dead(), make_batch(), jnp.arange(2)
    values = measure_of(CONFIGS[name])(params, batch, seeds)
    assert {k: v.shape[1:] for k, v in values.items()} == {k: v.shape for k, v in shapes.items()}
    for key, value in values.items():
        padding = np.isnan(value[0]) if key.endswith("_eigenvalues") else np.zeros_like(value[0], bool)
        for network in range(2):
            np.testing.assert_array_equal(np.isfinite(value[network]), ~padding, err_msg=key)

    # The other network's neighbour, and the order, change nothing; nor does the other batch compile.
    other = make_batch(3)
    with assert_no_retrace():
        measure_of(CONFIGS[name])(params, other, seeds)
    flipped = measure_of(CONFIGS[name])(jax.tree.map(lambda x: x[::-1], params), batch, seeds[::-1])
    for key, value in values.items():
        np.testing.assert_allclose(flipped[key][1], value[0], rtol=1e-5, atol=1e-6, err_msg=key)


def test_feature_probe_is_its_parts() -> None:
    values = measure_of(FeatureProbe())(live_and_dead(), make_batch(), jnp.arange(2))
    features = jit(MODEL.apply)(make_params(), make_batch()["x"])[1]
    for name in ("effective_rank", "dormant_fraction", "dead_units", "norm"):
        reference = MEASUREMENTS["feature_norm" if name == "norm" else name][1]
        expected = [reference(np.float64(features[layer])) for layer in MODEL.hidden]
        np.testing.assert_allclose(values[name][0], expected, rtol=2e-5)
    np.testing.assert_array_equal(values["effective_rank"][1], 0.0)
    np.testing.assert_array_equal(values["norm"][1], 0.0)
    np.testing.assert_array_equal(values["dormant_fraction"][1], 1.0)
    np.testing.assert_array_equal(values["dead_units"][1], [5, 4, 5, 4])


def test_weight_and_gradient_probes_equal_numpy() -> None:
    params = make_params()
    leaves = {k: np.float64(v) for k, v in tree.named_leaves(params).items()}
    values = measure_of(PROBES["weights"])(live_and_dead(), make_batch(), jnp.arange(2))
    kernels = [leaves[f"{layer}/kernel"] for layer in MODEL.layers]
    np.testing.assert_allclose(values["norm"][0], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["mean_magnitude"][0], [np.abs(k).mean() for k in kernels], rtol=1e-5)
    total = np.linalg.norm(np.concatenate([x.ravel() for x in leaves.values()]))
    np.testing.assert_allclose(values["total_norm"][0], total, rtol=1e-5)

    values = measure_of(PROBES["gradient"])(live_and_dead(), make_batch(), jnp.arange(2))
    # Of a network without a live unit only the output biases have a gradient: mean output minus mean target.
    batch, dead = make_batch(), tree.named_leaves(make_params(dead=True))
    policy = np.float64(dead["actor/output/bias"]) - np.float64(batch["y"]).mean(axis=0)
    value = np.float64(dead["critic/output/bias"]) - np.float64(batch["v"]).mean()
    np.testing.assert_allclose(values["norm"][1], np.linalg.norm([*policy, *value]), rtol=1e-5)
    size = sum(x.size for x in leaves.values())
    np.testing.assert_allclose(values["zero_fraction"][1], (size - 3) / size, rtol=1e-6)
    grads = jit(jax.grad(loss_fn))(params, make_batch())
    flat = np.concatenate([np.float64(g).ravel() for g in jax.tree.leaves(grads)])
    np.testing.assert_allclose(values["norm"][0], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(values["zero_fraction"][0], np.mean(flat == 0), rtol=1e-6)


example_gradients = jit(jax.vmap(jax.grad(loss_fn), in_axes=(None, 0)))


def brute_force_factors(params: Any, batch: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums over examples, each from the weight gradient of its own loss alone: ``A`` and ``G``."""
    single = example_gradients(params, jax.tree.map(lambda x: x[:, None], batch))
    grads = {name: np.float64(g) for name, g in tree.named_leaves(single).items()}
    features = jit(MODEL.apply)(params, batch["x"])[1]
    out = {}
    for layer in MODEL.layers:
        network, own = layer.split("/")
        before = {"dense_0": None, "dense_1": "dense_0", "output": "dense_1"}[own]
        inputs = np.float64(batch["x"] if before is None else features[f"{network}/{before}"])
        a, g = 0.0, 0.0
        for i in range(EXAMPLES):
            extended, slope = np.append(inputs[i], 1.0), grads[f"{layer}/bias"][i]
            np.testing.assert_allclose(grads[f"{layer}/kernel"][i], np.outer(inputs[i], slope), atol=1e-5)
            a, g = a + np.outer(extended, extended) / EXAMPLES, g + np.outer(slope, slope) / EXAMPLES
        out[layer] = a, g
    return out


def kronecker_reference(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values = tuple(np.linalg.eigvalsh(x) for x in pair)
    return tuple(np.where(v > 1e-10 * v[-1], v, 0.0) for v in values)


def test_kronecker_probe_equals_sums_over_examples() -> None:
    eps = PROBES["kronecker"].eps
    values = measure_of(PROBES["kronecker"])(live_and_dead(), make_batch(), jnp.arange(2))
    values = {name: value[0] for name, value in values.items()}
    factors = brute_force_factors(make_params(), make_batch())
    for i, layer in enumerate(MODEL.layers):
        for side, expected in zip("ag", kronecker_reference(factors[layer]), strict=True):
            got = np.float64(values[f"{side}_eigenvalues"][i])
            assert np.isnan(got[len(expected) :]).all()
            np.testing.assert_allclose(got[: len(expected)], expected, atol=2e-6 * expected[-1], rtol=1e-4)
            for prefix in ("", "running_"):
                np.testing.assert_allclose(values[f"{prefix}{side}_largest"][i], expected[-1], rtol=1e-4)
                np.testing.assert_allclose(
                    values[f"{prefix}{side}_effective_rank"][i], entropy_rank(expected), rtol=1e-3
                )
        products = np.linalg.eigvalsh(np.kron(*factors[layer]))
        assert not any(np.any(np.abs(products / e - 1) < 1e-4) for e in eps), "choose another seed"
        np.testing.assert_array_equal(values["rank"][i], [(products > e).sum() for e in eps])


def test_running_factors_are_an_average_over_steps() -> None:
    probe, params, decay = KroneckerSpectrum().build(MODEL), make_params(), 0.7
    batches = [make_batch(seed) for seed in (5, 6, 7)]
    factors = running.start(jax.eval_shape(fresh_factors, params, batches[0]))
    make = jit(fresh_factors)
    measure = jit(lambda factors: probe.measure(look(params, batches[0], factors)))

    before = measure(factors)
    for name in ("a_effective_rank", "g_effective_rank", "a_largest", "g_largest"):
        assert np.isnan(before[f"running_{name}"]).all()
        assert np.isfinite(before[name]).all()

    for batch in batches:
        factors = running.update(factors, make(params, batch), decay)
    np.testing.assert_allclose(factors.weight, 1 - decay**3, rtol=1e-6)
    after = measure(factors)

    single = [brute_force_factors(params, batch) for batch in batches]
    weights = np.array([decay**2, decay, 1.0]) / (1 + decay + decay**2)
    for i, layer in enumerate(MODEL.layers):
        mean = tuple(sum(w * s[layer][side] for w, s in zip(weights, single, strict=True)) for side in range(2))
        for side, got, expected in zip("ag", factors.mean()[layer], mean, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
            largest = np.linalg.eigvalsh(expected)[-1]
            np.testing.assert_allclose(after[f"running_{side}_largest"][i], largest, rtol=1e-4)
        for side, expected in zip("ag", kronecker_reference(mean), strict=True):
            got = after[f"running_{side}_effective_rank"][i]
            np.testing.assert_allclose(got, entropy_rank(expected), rtol=1e-3)


def test_without_running_factors_there_is_nan() -> None:
    probe = KroneckerSpectrum().build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    for name, value in values.items():
        assert np.isnan(value).all() == name.startswith("running_"), name


def dense_spectrum(gauss_newton: bool) -> np.ndarray:
    """Eigenvalues of the dense matrix, in float64."""
    with jax.enable_x64(True):
        params, batch = make_params(dtype=np.float64), make_batch(dtype=np.float64)
        # The network that the probe sees, which is rounded to float32.
        params, batch = jax.tree.map(lambda x: x.astype(jnp.float32).astype(jnp.float64), (params, batch))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        if gauss_newton:

            def outputs(w: jax.Array) -> jax.Array:
                out = MODEL.apply(unravel(w), batch["x"])[0]
                return jnp.concatenate([out["policy"].ravel(), out["value"]])

            jacobian = np.asarray(jit(jax.jacrev(outputs))(flat))
            return np.linalg.eigvalsh(jacobian.T @ jacobian / EXAMPLES)
        return np.linalg.eigvalsh(np.asarray(jit(jax.hessian(lambda w: loss_fn(unravel(w), batch)))(flat)))


@pytest.mark.parametrize("config", [Hessian, GGN])
def test_complete_spectra_equal_the_dense_matrix(config: Any) -> None:
    eps = (1e-4, 1e-3, 1e-2, 1e-1)
    expected = dense_spectrum(config is GGN)
    size, norm = np.abs(expected), np.abs(expected).max()
    assert not any(np.any(np.abs(size - e * f) < 2e-5) for e in eps for f in (1.0, norm)), "choose another seed"
    probe = config(order=200, probes=1, eps=eps, **({"method": "lanczos"} if config is GGN else {})).build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    assert_declared(probe, values)
    assert values["dim"] == len(expected)
    np.testing.assert_array_equal(values["rank"], [(size > e).sum() for e in eps])
    np.testing.assert_array_equal(values["relative_rank"], [(size > e * norm).sum() for e in eps])
    np.testing.assert_array_equal(values["rank_se"], 0.0)
    np.testing.assert_allclose(values["nodes"][0], expected, atol=1e-5 * norm)
    np.testing.assert_allclose(values["largest"], expected[-1], rtol=1e-5)
    np.testing.assert_allclose(values["smallest"], expected[0], atol=1e-5 * norm)
    np.testing.assert_allclose(values["trace"], expected.sum(), rtol=1e-4)
    np.testing.assert_allclose(values["effective_rank"], entropy_rank(size), rtol=1e-3)
    np.testing.assert_allclose(values["negative_mass"], size[expected < 0].sum() / size.sum(), atol=1e-5)

    # Few Lanczos steps are enough for the edge.
    short = measure_of(PROBES[probe.name])(live_and_dead(), make_batch(), jnp.arange(2))
    np.testing.assert_allclose(short["largest"][0], expected[-1], rtol=1e-4)
    assert np.abs(short["trace"][0] - expected.sum()) < 5 * short["trace_se"][0] + 1e-4


def test_the_gram_matrix_gives_the_whole_spectrum() -> None:
    expected = dense_spectrum(gauss_newton=True)
    probe = GGN(eps=(1e-3, 1e-2), method="gram").build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    assert_declared(probe, values)
    assert values["complete"]
    largest = expected[-values["nodes"].size :]
    np.testing.assert_allclose(values["nodes"][0], largest, atol=1e-5 * expected[-1])
    np.testing.assert_array_equal(values["rank"], [(expected > e).sum() for e in (1e-3, 1e-2)])
    np.testing.assert_allclose(values["frobenius"], np.sqrt((expected**2).sum()), rtol=1e-4)
    np.testing.assert_allclose(values["stable_rank"], (expected**2).sum() / expected[-1] ** 2, rtol=1e-4)
    for name in ("rank_se", "effective_rank_se", "stable_rank_se", "trace_se", "frobenius_se"):
        np.testing.assert_array_equal(values[name], 0.0)


def test_trainability_is_linear_descent_on_random_targets() -> None:
    """One number by hand: what gradient descent on the linearised outputs leaves of targets of variance one."""
    lr, steps = 0.3, 40
    # The outputs' mean squared error over 3 numbers an example: twice the matrix of half the squared errors, over 3.
    values = 2.0 / 3.0 * dense_spectrum(gauss_newton=True)
    size = 3 * EXAMPLES
    probe = TrainabilityProbe(tau=0.9).within(lr, steps).build(MODEL)
    found = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), make_batch())
    assert_declared(probe, found)
    kept = (1.0 - lr * np.sort(values)[-size:]) ** (2 * steps)
    np.testing.assert_allclose(found["loss"], kept.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["eps_star"], 1.0 / (lr * steps), rtol=1e-6)
    np.testing.assert_array_equal(found["rank"], (values > 1.0 / (lr * steps)).sum())
    np.testing.assert_allclose(found["reachable"], found["rank"] / size, rtol=1e-6)
    assert found["trainable"] == (found["rank"] >= found["required"])
    assert TrainabilityProbe(steps=7).within(lr, steps).steps == 7


class Taken(Exception):
    """Carries the batch that an operator was asked for."""


class Spy(Hessian):
    def spectrum(self, seen: ProbeInput) -> Any:
        raise Taken(seen.batch)


@pytest.mark.parametrize(("examples", "stride"), [(1, 10), (4, 3), (5, 2), (6, 2), (10, 1), (256, 1)])
def test_spectra_are_taken_on_a_spread_part_of_the_batch(examples: int, stride: int) -> None:
    seen = look(make_params(), make_batch(), no_factors())
    with pytest.raises(Taken) as taken:
        Spy(examples=examples).build(MODEL).measure(seen)
    (batch,) = taken.value.args
    for name, expected in make_batch().items():
        assert len(batch[name]) <= examples
        np.testing.assert_array_equal(batch[name], expected[::stride])


def test_monitor_averages_each_network_on_its_own() -> None:
    params, x = make_params(), make_batch()["x"]
    features = jit(MODEL.apply)(params, x)[1]
    # A name that only begins like another network's is another network.
    values = jit(monitor)(params, features | {"actor_target/dense_0": jnp.zeros((EXAMPLES, 3))})
    for network in ("actor", "critic"):
        hidden = [np.float64(h) for name, h in features.items() if name.startswith(f"{network}/")]
        for name in ("participation_ratio", "dormant_fraction", "feature_norm"):
            expected = np.mean([MEASUREMENTS[name][1](h) for h in hidden])
            np.testing.assert_allclose(values[f"{name}/{network}"], expected, rtol=2e-5)
    assert all(np.shape(value) == () for value in values.values())
    np.testing.assert_allclose(values["weight_norm"], tree.norm(params))


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: FeatureProbe(tau=1.0), "features.tau"),
        (lambda: FeatureProbe(tau=-0.1), "features.tau"),
        (lambda: KroneckerSpectrum(eps=()), "kronecker.eps"),
        (lambda: KroneckerSpectrum(eps=(-1e-3,)), "kronecker.eps"),
        (lambda: Hessian(order=0), "hessian.order"),
        (lambda: GGN(probes=0), "ggn.probes"),
        (lambda: GGN(examples=0), "ggn.examples"),
        (lambda: GGN(method="dense"), "ggn.method"),
        (lambda: TrainabilityProbe(tau=0.0), "trainability.tau"),
        (lambda: TrainabilityProbe(order=0), "trainability.order"),
        (lambda: TrainabilityProbe(learning_rate=-1.0), "trainability.learning_rate"),
        (lambda: TrainabilityProbe(learning_rate=0.1).build(MODEL), "trainability.steps"),
        (lambda: Hessian(eps=(1e-3, -1e-3)), "hessian.eps"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        make()
