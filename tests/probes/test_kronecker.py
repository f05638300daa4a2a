"""The probe of Kronecker factors against sums over examples in float64."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plastax import models, probes, tree
from plastax.curvature import running
from plastax.probes import PROBES, KroneckerSpectrum
from tests.probes.layers import entropy_rank
from tests.probes.network import (
    EXAMPLES,
    MODEL,
    example_gradients,
    fresh_factors,
    jit,
    live_and_dead,
    look,
    make_batch,
    make_params,
    measure_of,
    no_factors,
)


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


class Tokens(nn.Module):
    """An embedding that is the output layer, too, a normalisation, and parameters that are in no factor."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        table, places = nn.Embed(5, 4, name="table"), self.param("places", nn.initializers.normal(1.0), (3, 4))
        h = nn.LayerNorm(name="norm")(table(jnp.maximum(tokens, 0)) + places[None])
        return jnp.where((tokens >= 0)[..., None], table.attend(h), 0)


def test_layers_of_every_form_are_measured_and_what_is_left_out_is_named() -> None:
    tokens = jnp.asarray([[1, 2, 0], [4, 1, -1]])
    data = tokens, jnp.where(tokens < 0, -1, 3)
    params = Tokens().init(jax.random.key(0), tokens)["params"]
    found = probes.measure(
        ("kronecker",), params, models.tapped(Tokens()), data, jax.random.key(0), loss="token_cross_entropy",
        counted=lambda x: x >= 0,
    )  # fmt: skip
    values = {name.removeprefix("kronecker/"): np.asarray(value) for name, value in found.items()}
    np.testing.assert_allclose(values["left_out"], [12 / 40])
    assert values["other_a_largest"].shape == (3,)  # table, norm, table.attend
    np.testing.assert_allclose(values["other_a_eigenvalues"][0], [0, 0.2, 0.2, 0.2, 0.4], atol=1e-7)
    np.testing.assert_array_equal(values["other_a_effective_rank"][1], 1)
    np.testing.assert_array_equal(np.isfinite(values["other_g_eigenvalues"]).sum(1), [4, 4 + 4, 5])


def test_normalisations_leave_the_axis_of_kernels_as_it_is() -> None:
    """Other probes have the same axis, and arms with and without normalisations stand side by side."""
    plain, normed = (models.MLP(hidden=(5,), layer_norm=norm).build((3,), 2) for norm in (False, True))
    bare, probe = KroneckerSpectrum().build(plain), KroneckerSpectrum().build(normed)
    assert probe.coords["layer"] == bare.coords["layer"] == PROBES["weights"].build(normed).coords["layer"]
    assert probe.coords["other_layer"] == ("norm_dense_0",)
    assert {name for name in probe.dims if not name.startswith("other_")} == set(bare.dims)
