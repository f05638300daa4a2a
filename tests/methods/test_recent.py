"""Examples of recent batches in a method's state: which they are, and that both programs make room for them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import random_label, rl_gymnax
from plastax import methods
from plastax.errors import ConfigError
from plastax.methods.base import Ring, empty_ring, push, recent
from plastax.program import parallel
from plastax.types import Array, Examples


@pytest.mark.parametrize("start", [0, 5])
def test_recent_are_the_last_and_only_those(start: int) -> None:
    """Also where the first batch comes late on the clock, as after a reset."""

    @jax.jit
    def run(clocks: Array) -> Any:
        def body(ring: Ring, clock: Array) -> Any:
            ring = push(ring, {"x": jnp.stack([10 * clock, 10 * clock + 1])}, clock)
            return ring, recent(ring, clock)

        return jax.lax.scan(body, empty_ring({"x": jax.ShapeDtypeStruct((2,), jnp.int32)}, 3), clocks)[1]

    examples, mask = run(jnp.arange(start, start + 7))
    for i in range(7):
        last = range(max(0, i - 2) + start, i + start + 1)
        assert sorted(examples["x"][i][mask[i]]) == [10 * clock + j for clock in last for j in (0, 1)]


def rings(state: Any) -> list[Ring]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Ring))
    return [leaf for leaf in leaves if isinstance(leaf, Ring)]


def traced(batch: parallel.Batch) -> tuple[Any, Any]:
    """The state before and after a segment, of two seeds, without compiling anything."""
    program = batch.program
    state = jax.eval_shape(program.init, batch.starts[0], program.data)
    later, _ = jax.eval_shape(lambda s, d, c: program.segment(s, d, c, 1), state, program.data, jnp.int32(0))
    return state, later


def test_a_supervised_study_keeps_its_last_batches() -> None:
    """Which lets batches of one example have a rank."""
    line = "--preset smoke --methods l2_er+reset --l2-er.window 4 --training.batch-size 1 --probes weights"
    config = random_label.EXPERIMENT.parse(line.split())
    (batch,) = random_label.EXPERIMENT.build(config).batches
    state, later = traced(batch)
    (ring,) = rings(state.opt_state)
    assert isinstance(ring.batches, Examples)
    assert ring.batches.x.shape == (2, 4, 1, 8, 8, 1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), later)


@pytest.mark.parametrize("stream", [pytest.param("cartpole_chain", marks=pytest.mark.slow), "pendulum_chain"])
def test_an_agent_keeps_its_last_minibatches(stream: str) -> None:
    line = f"--preset smoke --methods effective_rank --effective-rank.window 2 --probes weights --stream {stream}"
    config = rl_gymnax.EXPERIMENT.parse(line.split())
    (batch,) = rl_gymnax.EXPERIMENT.build(config).batches
    state, later = traced(batch)
    (ring,) = rings(state.opt_state)
    size = config.ppo.steps_per_update // config.ppo.minibatches
    assert {x.shape[:3] for x in jax.tree.leaves(ring.batches)} == {(2, 2, size)}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), later)


def test_examples_that_are_not_there_have_no_part_in_the_rank() -> None:
    h = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    there = jnp.array([True, False, True, True, False, True])
    rank = jax.jit(methods.mean_effective_rank)
    np.testing.assert_allclose(rank({"a": h}, there), rank({"a": h[np.asarray(there)]}), rtol=1e-5)


def test_a_window_needs_the_shape_of_a_batch_and_a_size() -> None:
    with pytest.raises(ConfigError, match="effective_rank with a window keeps examples"):
        methods.L2ER(window=2).build(optax.sgd(0.1))
    with pytest.raises(ConfigError, match=r"EffectiveRank.window: 0 .* 1 or more"):
        methods.EffectiveRank(window=0)
    with pytest.raises(ConfigError, match=r"L2ER.form: 'los' is unknown \(did you mean 'loss'\?\)"):
        methods.L2ER(form="los")  # type: ignore[arg-type]


def test_a_window_without_the_shapes_of_a_batch_is_refused() -> None:
    for method in (methods.c_chain(), methods.effective_rank(window=2)):
        with pytest.raises(ConfigError, match="batch_like: None is not allowed; give a minibatch"):
            method.init({"w": jnp.ones(2)})
