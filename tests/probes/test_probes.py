"""Every probe against NumPy in float64, and what all of them keep to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import tree
from plastax.curvature import running
from plastax.curvature.kronecker import Factors, factors
from plastax.models import ActorCritic
from plastax.probes import (
    GGN,
    PROBES,
    FeatureProbe,
    GradientProbe,
    Hessian,
    KroneckerSpectrum,
    NTKProbe,
    TrainabilityProbe,
    activity,
    monitor,
    ranks,
)
from plastax.probes.features import participation_ratio
from plastax.probes.gradient import gradient_covariance, off_diagonal_mean
from plastax.probes.weights import root_mean_square, spectral_norm
from plastax.types import ConfigError, Loss, Probe, ProbeInput
from tests.probes.layers import KINDS, entropy_rank, features_of, orthogonal

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES = 10
MODEL = ActorCritic(hidden=(5, 4)).build((3,), 2, continuous=False)
# As an experiment has them: with a budget.
CONFIGS = {**PROBES, "trainability": PROBES["trainability"].within(0.1, 20)}
every_probe = pytest.mark.parametrize("name", [name for name in PROBES if name != "spectrum"])


def numpy_participation_ratio(h: np.ndarray) -> float:
    s = np.linalg.svd(h.reshape(-1, h.shape[-1]), compute_uv=False)
    return float((s**2).sum() ** 2 / (s**4).sum()) if s.any() else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_participation_ratio_equals_numpy(kind: str) -> None:
    h = features_of(kind)
    got = jit(participation_ratio)(jnp.asarray(h, jnp.float32))
    assert (got.shape, got.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(got, numpy_participation_ratio(h), rtol=2e-5, atol=1e-6)


def test_participation_ratio_knows_no_basis_and_no_scale() -> None:
    measure = jit(participation_ratio)
    h = features_of("random")
    before = float(measure(jnp.asarray(h, jnp.float32)))
    assert 1.0 < before < 6.0
    for other in (h @ orthogonal(6, 1), orthogonal(12, 2) @ h, 1e12 * h, 1e-12 * h, -h, h[::-1]):
        np.testing.assert_allclose(measure(jnp.asarray(other, jnp.float32)), before, rtol=1e-4)
    np.testing.assert_allclose(measure(jnp.asarray(orthogonal(6, 3), jnp.float32)), 6.0, rtol=1e-5)
    assert np.isnan(measure(jnp.asarray(h, jnp.float32).at[2, 3].set(jnp.nan)))


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
        initial=lambda: jax.tree.map(jnp.ones_like, params),
        previous=jax.tree.map(jnp.zeros_like, params),
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
    config = FeatureProbe(taus=(0.0, 0.1))
    values = measure_of(config)(live_and_dead(), make_batch(), jnp.arange(2))
    features = jit(MODEL.apply)(make_params(), make_batch()["x"])[1]
    hidden = [features[layer] for layer in MODEL.hidden]

    @jit
    def parts_of(h: jax.Array) -> dict[str, jax.Array]:
        s = ranks.singular_values(h)
        return {
            "effective_rank": ranks.effective_rank(s), "effective_rank_2": ranks.effective_rank(s, 2),
            "srank": ranks.srank(s), "pca_rank": ranks.pca_rank(s), "stable_rank": ranks.stable_rank(s),
            "numerical_rank": ranks.numerical_rank(s, EXAMPLES), "pyoi_rank": ranks.pyoi_rank(s, EXAMPLES),
            "dormant_fraction": activity.dormant_fraction(h), "dead_units": activity.dead_units(h),
            "active_fraction": activity.active_fraction(h), "linearised": activity.linearised_units(h),
            "sign_entropy": activity.sign_entropy(h), "norm": activity.feature_norm(h), "rows": EXAMPLES,
        }  # fmt: skip

    for i, h in enumerate(hidden):
        for name, part in parts_of(h).items():
            np.testing.assert_allclose(values[name][0, i], part, rtol=2e-5, err_msg=name)
    dormant = np.array([[activity.dormant_fraction(h, tau) for tau in config.taus] for h in hidden])
    np.testing.assert_allclose(values["dormant"][0], dormant, rtol=1e-6)
    np.testing.assert_allclose(values["dormant_mean"][0], dormant.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(values["dormant_pooled"][0], np.array([5, 4, 5, 4]) @ dormant / 18, rtol=1e-6)
    for name, expected in {"dormant_fraction": 1.0, "dead_units": [5, 4, 5, 4], "rows": EXAMPLES, "dormant": 1.0,
                           "dormant_pooled": 1.0, "dormant_mean": 1.0}.items():  # fmt: skip
        np.testing.assert_array_equal(values[name][1], np.broadcast_to(expected, values[name][1].shape), err_msg=name)
        values.pop(name)
    assert all((value[1] == 0.0).all() for value in values.values())


def test_feature_probe_takes_the_named_variants() -> None:
    configs = (FeatureProbe(), FeatureProbe(srank="l2_init", centred=True))
    measures = [config.build(MODEL).measure for config in configs]
    seen = look(make_params(), make_batch(), no_factors())
    kumar, other = jit(lambda p: [measure(seen._replace(params=p)) for measure in measures])(seen.params)
    assert (other["srank"] < kumar["srank"]).all()
    assert (other["effective_rank"] != kumar["effective_rank"]).all()


def test_weight_probe_equals_numpy() -> None:
    leaves = {k: np.float64(v) for k, v in tree.named_leaves(make_params()).items()}
    values = measure_of(PROBES["weights"])(live_and_dead(), make_batch(), jnp.arange(2))
    kernels = [leaves[f"{layer}/kernel"] for layer in MODEL.layers]
    np.testing.assert_allclose(values["norm"][0], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["mean_magnitude"][0], [np.abs(k).mean() for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["spectral_norm"][0], [np.linalg.norm(k, 2) for k in kernels], rtol=1e-5)
    flat = np.concatenate([x.ravel() for x in leaves.values()])
    np.testing.assert_allclose(values["total_norm"][0], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(values["total_mean_magnitude"][0], np.abs(flat).mean(), rtol=1e-5)
    # Plasticine's magnitude is another number than everybody else's.
    np.testing.assert_allclose(root_mean_square(make_params()), np.sqrt((flat**2).mean()), rtol=1e-5)
    assert root_mean_square(make_params()) > 1.1 * values["total_mean_magnitude"][0]


@pytest.mark.parametrize("scale", [1.0, 1e15, 1e-15])
def test_spectral_norm_of_any_kernel(scale: float) -> None:
    rng = np.random.default_rng(0)
    for kernel in (rng.standard_normal((3, 2, 2, 4)), np.outer(np.arange(1.0, 4.0), np.ones(5)), np.zeros((3, 2))):
        expected = np.linalg.norm(scale * kernel.reshape(-1, kernel.shape[-1]), 2)
        np.testing.assert_allclose(spectral_norm(jnp.asarray(scale * kernel, jnp.float32)), expected, rtol=1e-5)


def test_movement_is_measured_from_both_origins() -> None:
    params, initial = make_params(), jax.tree.map(lambda x: x + 0.5, make_params(dead=True))
    previous = jax.tree.map(lambda x: 2.0 * x, params)
    seen = look(params, make_batch(), no_factors())._replace(initial=lambda: initial, previous=previous)
    probe = PROBES["movement"].build(MODEL)
    assert probe.needs_previous
    values = jit(lambda seen_params: probe.measure(seen._replace(params=seen_params)))(params)
    for name, origin in (("from_init", initial), ("change", previous)):
        moved = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), params, origin)
        kernels = [tree.named_leaves(moved)[f"{layer}/kernel"] for layer in MODEL.layers]
        np.testing.assert_allclose(values[name], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(moved)])
        for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
            np.testing.assert_allclose(values[f"{name}_{norm}"], np.linalg.norm(flat, order), rtol=1e-5)


def numpy_gradients(params: Any, batch: Any) -> list[np.ndarray]:
    return [np.float64(g) for g in jax.tree.leaves(jit(jax.grad(loss_fn))(params, batch))]


def test_gradient_probe_equals_numpy() -> None:
    params, batch = make_params(), make_batch()
    values = measure_of(PROBES["gradient"])(live_and_dead(), batch, jnp.arange(2))
    # Of a network without a live unit only the output biases have a gradient: mean output minus mean target.
    dead = tree.named_leaves(make_params(dead=True))
    policy = np.float64(dead["actor/output/bias"]) - np.float64(batch["y"]).mean(axis=0)
    value = np.float64(dead["critic/output/bias"]) - np.float64(batch["v"]).mean()
    np.testing.assert_allclose(values["norm"][1], np.linalg.norm([*policy, *value]), rtol=1e-5)
    np.testing.assert_allclose(values["l1"][1], np.abs([*policy, *value]).sum(), rtol=1e-5)
    size = tree.size(params)
    np.testing.assert_allclose(values["zero_fraction"][1], (size - 3) / size, rtol=1e-6)
    np.testing.assert_array_equal(values["layer_zero_fraction"][1], 1.0)
    np.testing.assert_array_equal(values["dormant"][1], 1.0)

    grads = jit(jax.grad(loss_fn))(params, batch)
    flat = np.concatenate([np.float64(g).ravel() for g in jax.tree.leaves(grads)])
    np.testing.assert_allclose(values["norm"][0], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(values["l1"][0], np.abs(flat).sum(), rtol=1e-5)
    np.testing.assert_allclose(values["zero_fraction"][0], np.mean(flat == 0), rtol=1e-6)
    kernels = [np.float64(tree.named_leaves(grads)[f"{layer}/kernel"]) for layer in MODEL.layers]
    np.testing.assert_allclose(values["layer_norm"][0], [np.linalg.norm(k) for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["layer_l1"][0], [np.abs(k).sum() for k in kernels], rtol=1e-5)
    np.testing.assert_allclose(values["layer_zero_fraction"][0], [np.mean(k == 0) for k in kernels], rtol=1e-6)

    # A unit's bias gradient, of one example alone, is the gradient of its pre-activation.
    single = example_gradients(params, jax.tree.map(lambda x: x[:, None], batch))
    shares = []
    for layer in MODEL.hidden:
        score = np.abs(np.float64(tree.named_leaves(single)[f"{layer}/bias"])).mean(axis=0)
        shares.append([np.mean(score <= tau * score.mean()) for tau in PROBES["gradient"].taus])
    np.testing.assert_allclose(values["dormant"][0], shares, rtol=1e-6)
    np.testing.assert_allclose(values["dormant_mean"][0], np.mean(shares, axis=0), rtol=1e-6)
    np.testing.assert_allclose(values["dormant_pooled"][0], np.array([5, 4, 5, 4]) @ shares / 18, rtol=1e-6)


@pytest.mark.parametrize("parts", [3, 64])
def test_gradient_covariance_equals_numpy(parts: int) -> None:
    batch = make_batch()
    probe = GradientProbe(minibatches=parts).build(MODEL)
    values = jit(lambda p, b: probe.measure(look(p, b, no_factors())))(make_params(), batch)
    parts = min(parts, EXAMPLES)
    size = EXAMPLES // parts
    rows = []
    for i in range(parts):
        part = {name: x[i::parts][:size] for name, x in batch.items()}
        rows.append(np.concatenate([g.ravel() for g in numpy_gradients(make_params(), part)]))
    unit = np.array([row / np.linalg.norm(row) for row in rows])
    expected = unit @ unit.T
    np.testing.assert_allclose(values["covariance"], expected, atol=2e-5)
    others = expected[~np.eye(parts, dtype=bool)]
    np.testing.assert_allclose(values["cosine"], others.mean(), atol=2e-5)
    np.testing.assert_allclose(values["cosine_magnitude"], np.abs(others).mean(), atol=2e-5)


def test_gradient_covariance_of_zero_and_of_parallel_gradients() -> None:
    rng = np.random.default_rng(0)
    line = rng.standard_normal(7)
    grads = np.array([line, -2 * line, 0 * line, 1e-12 * line])
    cosines = gradient_covariance(
        {"a": jnp.asarray(grads[:, :3], jnp.float32), "b": jnp.asarray(grads[:, 3:], jnp.float32)}
    )
    signs = np.array([1.0, -1.0, 0.0, 1.0])
    np.testing.assert_allclose(cosines, np.outer(signs, signs), atol=1e-6)
    assert np.isnan(off_diagonal_mean(cosines[:1, :1]))


def test_ntk_probe_equals_the_jacobian() -> None:
    params, batch = make_params(), make_batch()
    config = NTKProbe(examples=5, delta=0.1)
    values = jit(lambda p, b: config.build(MODEL).measure(look(p, b, no_factors())))(params, batch)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def outputs(w: jax.Array) -> jax.Array:
        out = MODEL.apply(unravel(w), batch["x"][::2])[0]
        return jnp.concatenate([out["policy"].ravel(), out["value"]])

    singular = np.linalg.svd(np.float64(jit(jax.jacrev(outputs))(flat)), compute_uv=False)
    np.testing.assert_allclose(values["eigenvalues"], singular**2, atol=1e-5 * singular[0] ** 2)
    np.testing.assert_allclose(values["trace"], (singular**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(values["effective_rank"], entropy_rank(singular**2), rtol=1e-4)
    assert values["numerical_rank"] == 15
    # The kernel's srank is the Jacobian's PCA rank, and not the Jacobian's own srank.
    s = jnp.asarray(singular, jnp.float32)
    assert values["srank"] == ranks.pca_rank(s, 0.9) < ranks.srank(s, 0.1)
    # Of a dead network the outputs are their biases, the same for every example: one eigenvalue n an output.
    dead = {name: value[1] for name, value in measure_of(PROBES["ntk"])(live_and_dead(), batch, jnp.arange(2)).items()}
    np.testing.assert_allclose(dead["eigenvalues"], [EXAMPLES] * 3 + [0] * 27, atol=1e-5 * EXAMPLES)
    for name in ("srank", "effective_rank", "numerical_rank"):
        np.testing.assert_allclose(dead[name], 3.0, rtol=1e-4)
    with pytest.raises(ConfigError, match="batch normalisation"):
        config.build(MODEL._replace(train=lambda *a: a))


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
        for name, one in (
            ("participation_ratio", numpy_participation_ratio),
            ("dormant_fraction", lambda h: np.mean(np.abs(h).mean(axis=0) <= 0.025 * np.abs(h).mean())),
            ("feature_norm", lambda h: np.linalg.norm(h, axis=1).mean()),
        ):
            expected = np.mean([one(h) for h in hidden])
            np.testing.assert_allclose(values[f"{name}/{network}"], expected, rtol=2e-5)
    assert all(np.shape(value) == () for value in values.values())
    np.testing.assert_allclose(values["weight_norm"], tree.norm(params))


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: FeatureProbe(tau=1.0), "features.tau"),
        (lambda: FeatureProbe(tau=-0.1), "features.tau"),
        (lambda: FeatureProbe(taus=(0.0, 2.0)), "features.taus"),
        (lambda: FeatureProbe(srank="dohare"), "features.srank"),
        (lambda: FeatureProbe(every=0), "features.every"),
        (lambda: GradientProbe(minibatches=1), "gradient.minibatches"),
        (lambda: GradientProbe(taus=(1.0,)), "gradient.taus"),
        (lambda: NTKProbe(examples=0), "ntk.examples"),
        (lambda: NTKProbe(delta=0.0), "ntk.delta"),
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
