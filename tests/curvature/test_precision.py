"""Sixteen bits, strict promotion and `jax_debug_nans`: sums in float32, and no rank that is one of rounding."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import curvature, linalg, models, probes
from plastax.curvature import operators
from plastax.probes import activity, ranks

FAST = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(0)
RANK, SIZE = 5, 24


def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, RANK)) @ rng.standard_normal((RANK, SIZE))


@pytest.mark.parametrize(
    ("parameters", "order"),
    [(jnp.float32, SIZE), (jnp.bfloat16, SIZE), pytest.param(jnp.bfloat16, 12, marks=pytest.mark.slow)],
)
def test_ranks_do_not_count_what_products_in_16_bits_round(parameters: Any, order: int) -> None:
    a = matrix()
    exact = np.linalg.eigvalsh(2 / len(a) * a.T @ a)[::-1]
    narrow = jnp.asarray(a, jnp.bfloat16)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square((narrow @ w.astype(jnp.bfloat16) - 1).astype(jnp.float32)))

    def measured(key: jax.Array) -> Any:
        s = curvature.spectrum(curvature.hessian(loss, jnp.zeros(SIZE, parameters)), key, order, 2)
        return s.rank(0.0), s.rank(1e-4, relative=True), s.condition_number(), s.effective_rank(), s.trace()

    *counts, condition, effective, trace = jax.jit(measured, compiler_options=FAST)(KEY)
    for count in counts:
        assert count.value == RANK
        assert count.standard_error == 0
    np.testing.assert_allclose(condition.value, exact[0] / exact[RANK - 1], rtol=0.02)
    p = exact[:RANK] / exact[:RANK].sum()
    np.testing.assert_allclose(effective.value, np.exp(-np.sum(p * np.log(p))), rtol=0.02)
    if order == SIZE:
        # Two probes that disagree: their spread is an error.
        assert trace.standard_error > 0


def test_probes_that_are_complete_and_agree_have_no_error() -> None:
    a = jnp.asarray(matrix().T @ matrix(), jnp.float32)

    def measured(key: jax.Array) -> tuple[curvature.Estimate, curvature.Estimate]:
        s = curvature.spectrum(operators.from_matrix(a), key, SIZE, 2)
        return s.rank(0.0), s.trace()

    rank, trace = jax.jit(measured, compiler_options=FAST)(KEY)
    assert rank.value == RANK
    assert trace.standard_error == 0


def test_decompositions_and_factors_are_in_32_bits() -> None:
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.standard_normal((6, 4)), jnp.bfloat16)
    wide = np.asarray(a, np.float64)
    np.testing.assert_allclose(linalg.svdvals(a), np.linalg.svd(wide, compute_uv=False), rtol=1e-5)
    np.testing.assert_allclose(linalg.eigvalsh(a.T[:, :4] * 0 + jnp.eye(4, dtype=jnp.bfloat16)), 1.0)
    rows = jnp.asarray(rng.standard_normal((2000, 3)), jnp.bfloat16)
    found = curvature.kronecker(
        models.tapped(nn.Dense(2, use_bias=False, dtype=jnp.bfloat16), inputs=lambda b: b[0]),
        {"kernel": jnp.ones((3, 2))}, (rows, jnp.zeros(2000, int)), "cross_entropy", kind="empirical",
    )  # fmt: skip
    (pair,) = found.values()
    x = np.asarray(rows, np.float64)
    assert pair.a.dtype == pair.g.dtype == jnp.float32
    np.testing.assert_allclose(pair.a, x.T @ x / len(x), rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """Computes in ``compute``; features as the probes want them."""

    compute: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = nn.tanh(nn.Dense(7, dtype=self.compute, name="hidden")(x))
        return nn.Dense(3, dtype=self.compute, name="output")(hidden), {"hidden": hidden}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compute", "parameters"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), (None, "bfloat16")]
)
def test_every_probe_of_a_network_in_16_bits_is_near_its_own_in_32(compute: Any, parameters: str) -> None:
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.standard_normal((12, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 12))
    full = Net(None).init(KEY, batch[0])["params"]
    narrow = jax.tree.map(lambda x: x.astype(parameters), full)
    chosen = ("features", "weights", "gradient", probes.Hessian(order=60), "ggn", "kronecker", "ntk", "movement",
              probes.TrainabilityProbe(learning_rate=0.1, steps=10))  # fmt: skip

    def measure(net: Net, params: Any) -> dict[str, jax.Array]:
        given = {"initial": jax.tree.map(jnp.zeros_like, params), "previous": params}
        return probes.measure(chosen, params, models.tapped(net), batch, KEY, **given)

    found, expected = measure(Net(compute), narrow), measure(Net(None), full)
    for name, value in found.items():
        assert value.dtype == jnp.float32, name
        if name.rpartition("/")[2] in ("trace", "norm", "largest", "effective_rank", "a_largest", "g_largest", "loss",
                                       "spectral_norm", "total_norm", "frobenius"):  # fmt: skip
            # Small eigenvalues, below the rounding of 16 bits, count as zero: the effective rank is less.
            rtol = 0.1 if "effective_rank" in name else 0.05
            np.testing.assert_allclose(value, expected[name], rtol=rtol, err_msg=name)


def test_numerical_rank_of_features_in_16_bits() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        features = jnp.asarray(matrix(), dtype)
        eps = float(jnp.finfo(dtype).eps)
        assert ranks.numerical_rank(ranks.singular_values(features), len(features), eps=eps) == RANK


def test_what_is_not_finite_has_no_counts() -> None:
    features = jnp.ones((4, 3)).at[0, 0].set(jnp.nan)
    assert np.isnan(activity.dead_units(features))
    assert np.isnan(activity.dormant_fraction(jnp.ones((4, 3)).at[0, 0].set(jnp.inf)))
    assert activity.dead_units(jnp.zeros((4, 3))) == 3


def test_no_step_leaves_the_loss_as_it_is() -> None:
    losses = curvature.linear_loss(jnp.eye(3), jnp.ones(3), 1.0, jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(losses, [1.0, 0.0, 0.0])


def everything(s: curvature.Spectrum) -> list[Any]:
    return [
        s.rank(0.0), s.rank(1e-3, relative=True), s.rank_curve(), s.trace(), s.frobenius(), s.stable_rank(),
        s.effective_rank(), s.negative_mass(), s.condition_number(), s.extreme(1), s.density(),
    ]  # fmt: skip


def test_spectra_under_strict_promotion() -> None:
    def run(key: jax.Array) -> Any:
        loss = lambda w: jnp.sum(jnp.square(w))  # noqa: E731
        return everything(curvature.spectrum(curvature.hessian(loss, jnp.ones(6)), key, 4, 2))

    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(run, KEY)


@pytest.mark.slow
def test_the_zero_operator_divides_by_nothing() -> None:
    zero = operators.from_matrix(jnp.zeros((4, 4)))
    with jax.debug_nans(True):
        s = curvature.spectrum(zero, KEY, 2, 1)
        assert s.rank(0.0).value == 0
        assert s.effective_rank().value == 0
