"""Ranks of features against NumPy in float64, what leaves them unchanged, and where definitions differ."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax.probes import ranks
from tests.probes.layers import KINDS, entropy_rank, features_of, orthogonal

EPS32 = float(np.finfo(np.float32).eps)
SHAPE = (12, 6)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def measured(h: jax.Array) -> dict[str, jax.Array]:
    """Every definition, of features as they are."""
    rows = ranks.rows(h)
    values = ranks.singular_values(h)
    return {
        "effective_rank": ranks.effective_rank(values),
        "effective_rank_2": ranks.effective_rank(values, 2),
        "kumar": ranks.srank(values),
        "l2_init": ranks.srank(values, variant="l2_init"),
        "plasticine": ranks.srank(values, variant="plasticine"),
        "half": ranks.srank(values, 0.5),
        "pca_rank": ranks.pca_rank(values),
        "stable_rank": ranks.stable_rank(values),
        "numerical_rank": ranks.numerical_rank(values, max(rows.shape)),
        "dohare": ranks.numerical_rank(values, max(rows.shape), "dohare"),
        "pyoi_rank": ranks.pyoi_rank(values, len(rows)),
        "centred": ranks.effective_rank(ranks.singular_values(h, centred=True)),
    }


def fewest(values: np.ndarray, share: float) -> int:
    """How many of the descending values it takes, one by one, to have the share of their sum."""
    total, so_far = values.sum(), 0.0
    for count, value in enumerate(values, 1):
        so_far += value
        if so_far >= share * total:
            return count if total else 0
    return len(values)


def references(h: np.ndarray) -> dict[str, float]:
    h = h.reshape(-1, h.shape[-1])
    n, d = h.shape
    values = np.linalg.svd(h, compute_uv=False)
    values = np.where(values > 1e-12 * values[0], values, 0.0)
    centred = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    none = not values.any()
    return {
        "effective_rank": entropy_rank(values),
        "effective_rank_2": entropy_rank(values**2),
        "kumar": fewest(values, 0.99),
        "l2_init": max(fewest(values, 0.99) - 1, 0),
        "plasticine": 1 if none else fewest(values, 0.99),
        "half": fewest(values, 0.5),
        "pca_rank": fewest(values**2, 0.99),
        "stable_rank": 0.0 if none else float((h**2).sum() / np.linalg.norm(h, 2) ** 2),
        "numerical_rank": int(np.linalg.matrix_rank(h, tol=values[0] * max(n, d) * EPS32)),
        "pyoi_rank": int((np.linalg.svd(h / np.sqrt(n), compute_uv=False) > 0.01).sum()),
        "centred": entropy_rank(np.where(centred > 1e-12 * max(centred[0], 1e-300), centred, 0.0)),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_numpy(kind: str) -> None:
    h = features_of(kind)
    got = measured(jnp.asarray(h, jnp.float32))
    for name, expected in references(h).items():
        assert (got[name].shape, got[name].dtype) == ((), jnp.float32)
        # The entropy of what rounding leaves of zero singular values: a few times 1e-7 log 1e7 each.
        np.testing.assert_allclose(got[name], expected, rtol=3e-5, atol=1e-6, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**20), rank=st.integers(1, 6), exponent=st.integers(-15, 15))
def test_ranks_know_no_basis_and_no_scale(seed: int, rank: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((SHAPE[0], rank)) @ rng.standard_normal((rank, SHAPE[1]))
    before = measured(jnp.asarray(h, jnp.float32))
    values = {name: float(value) for name, value in before.items()}
    assert values["numerical_rank"] == rank
    assert 1 - 1e-5 <= values["stable_rank"] <= values["effective_rank_2"] + 1e-4
    assert values["effective_rank_2"] <= values["effective_rank"] + 1e-4 <= rank + 1e-3
    assert values["half"] <= values["pca_rank"] <= values["kumar"] <= rank <= values["dohare"]

    ties = [sum(fewest(s, x) for x in (1 - d, 1 - d - 1e-4, 1 - d + 1e-4)) % 3 for s, d in counted(h)]
    for other in (h @ orthogonal(6, seed), orthogonal(12, seed) @ h, -h, h[::-1], 10.0**exponent * h):
        after = measured(jnp.asarray(other, jnp.float32))
        for name in ("effective_rank", "effective_rank_2", "stable_rank", "numerical_rank"):
            np.testing.assert_allclose(after[name], values[name], rtol=1e-3, err_msg=name)
        if not any(ties):  # else rounding decides
            for name in ("kumar", "l2_init", "plasticine", "half", "pca_rank"):
                assert after[name] == values[name], name


def counted(h: np.ndarray) -> list[tuple[np.ndarray, float]]:
    values = np.linalg.svd(h, compute_uv=False)
    return [(values, 0.01), (values, 0.5), (values**2, 0.01)]


def test_definitions_that_differ_give_different_numbers() -> None:
    """One large direction and three small ones: each definition's answer, by hand."""
    values = jnp.asarray([1.0, 0.1, 0.01, 0.001], jnp.float32)  # 90, 9, 0.9 and 0.09 % of the sum
    assert ranks.srank(values, 0.05) == 2  # .900 .990: two reach 95 %
    assert ranks.srank(values, 0.05, "l2_init") == 1
    assert ranks.srank(values, 0.05, "plasticine") == 2
    assert ranks.srank(values, 0.005) == 3  # .900 .990 .999: three reach 99.5 %
    assert ranks.pca_rank(values, 0.995) == 2  # squares: .9900 .9999
    assert ranks.pca_rank(values, 0.95) == 1  # what srank says of the same share: 2
    np.testing.assert_allclose(ranks.stable_rank(values), 1.010101, rtol=1e-6)
    np.testing.assert_allclose(ranks.effective_rank(values), 1.43359, rtol=1e-5)
    np.testing.assert_allclose(ranks.effective_rank(values, 2), 1.05820, rtol=1e-5)
    assert ranks.numerical_rank(values, 100) == 4
    # 1/4, 1/40, 1/400 of 16 examples: the absolute threshold moves with the scale, as nothing else does.
    assert ranks.pyoi_rank(values, 16) == 2
    assert ranks.pyoi_rank(10 * values, 16) == 3
    silent = jnp.zeros(4)
    assert [float(ranks.srank(silent, variant=v)) for v in ("kumar", "l2_init", "plasticine")] == [0, 0, 1]


def test_the_zeros_of_a_float32_matrix_are_not_exact() -> None:
    """What counts as zero decides: the rank that NumPy gives, and Dohare et al.'s count."""
    h = np.outer(np.linspace(0.3, 1.7, 40), np.linspace(-1.1, 0.9, 20)).astype(np.float32)
    values = ranks.singular_values(jnp.asarray(h))
    assert ranks.numerical_rank(values, 40) == np.linalg.matrix_rank(h) == 1
    assert ranks.numerical_rank(values, 40, "dohare") > 5


def test_relu_features_are_mostly_their_mean() -> None:
    h = np.maximum(np.random.default_rng(0).standard_normal((64, 16)), 0.0)
    values = ranks.singular_values(jnp.asarray(h, jnp.float32))
    centred = ranks.singular_values(jnp.asarray(h, jnp.float32), centred=True)
    assert ranks.stable_rank(values) < 3 < 6 < ranks.stable_rank(centred)


def test_ranks_of_nan_are_not_numbers() -> None:
    got = measured(jnp.asarray(features_of("random"), jnp.float32).at[2, 3].set(jnp.nan))
    assert all(np.isnan(value) for value in got.values())


def test_unknown_variants_are_refused() -> None:
    values = jnp.ones(3)
    with pytest.raises(ValueError, match="kumar, l2_init, plasticine"):
        ranks.srank(values, variant="dohare")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numpy, dohare"):
        ranks.numerical_rank(values, 3, "kumar")  # type: ignore[arg-type]
