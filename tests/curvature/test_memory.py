"""The memory estimate against what XLA reserves, and what is said when it is too much."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from plastax import curvature
from plastax.curvature.memory import MEMORY_SHARE, at_once
from plastax.types import Operator

DIM, PROBES = 200_000, 4
MODES = {
    "full": {"order": 64},
    "bfloat16": {"order": 64, "basis_dtype": jnp.bfloat16},
    "none": {"order": 64, "reorthogonalise": "none"},
    "batch": {"order": 32, "batch": 8},
}


@pytest.mark.parametrize("name", MODES)
def test_estimate_is_what_xla_reserves(name: str) -> None:
    mode, seeds = MODES[name], 2 if name == "batch" else 1

    # No optimisation of the code, which is not run; buffers are assigned all the same.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def nodes(diagonal: jax.Array, keys: jax.Array) -> jax.Array:
        op = Operator(lambda v: diagonal * v, diagonal)
        return jax.vmap(lambda key: curvature.spectrum(op, key, probes=PROBES, **mode).nodes)(keys)

    diagonal = jax.ShapeDtypeStruct((DIM,), jnp.float32)
    compiled = nodes.lower(diagonal, jax.random.split(jax.random.key(0), seeds)).compile()
    reserved = compiled.memory_analysis().temp_size_in_bytes
    assert reserved > 4 * DIM
    assert curvature.memory(diagonal, probes=PROBES, seeds=seeds, **mode) == pytest.approx(reserved, rel=0.25)


def test_only_the_basis_scales_with_the_order() -> None:
    params = {"w": jax.ShapeDtypeStruct((30, 100), jnp.float32), "b": jax.ShapeDtypeStruct((100,), jnp.bfloat16)}
    assert curvature.memory(params, 320) - curvature.memory(params, 220) == 100 * 3100 * 4
    assert curvature.memory(params, 320, basis="host") == curvature.memory(params, reorthogonalise="none")
    # On CPU runs follow one another, whatever the memory; a batch is never larger than what is asked for.
    assert curvature.memory(params, probes=1) == curvature.memory(params, probes=8, seeds=8)
    assert curvature.memory(params, probes=2, seeds=3, batch=100) == 6 * curvature.memory(params, batch=1)
    # No vectors are kept beyond the dimension.
    assert curvature.memory(params, 5000) == curvature.memory(params, 3100)


def test_batches_have_as_many_runs_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_once(10, 10**6) == 1  # On CPU they run in turn.
    monkeypatch.setenv("PLASTAX_LANCZOS", "batch")
    assert at_once(10, int(1000 / MEMORY_SHARE)) == 100
    assert at_once(10, 1) == 1
    assert at_once(10, None) == 1


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ({}, ["order 64", "GiB", "basis_dtype", "reorthogonalise", "basis='host'"]),
        ({"basis": "host"}, ["order 64", "GiB", "basis='device'"]),
    ],
)
def test_what_cannot_fit_is_refused_before_it_runs(mode: dict[str, Any], words: list[str]) -> None:
    op = Operator(lambda v: v, {"w": jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)})
    with pytest.raises(MemoryError) as error:
        curvature.spectrum(op, jax.random.key(0), **mode)
    assert all(word in str(error.value) for word in [*words, "1,000,000,000,000"])
