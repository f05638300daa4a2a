"""The benchmark of the effective rank: its float64 reference, and which bars hold."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from experiments.bench import effective_rank as bench
from experiments.bench._measure import Times
from plastax.methods import L2ER


def test_reference_is_the_gradient_of_the_peer():
    x = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    peer = jax.jit(jax.grad(bench.through_svdvals))(x)
    np.testing.assert_allclose(bench.exact_gradient(x), peer, atol=1e-4)


def test_bars_miss_what_is_slow():
    def times(seconds: float) -> Times:
        return Times([seconds], [seconds])

    ranks = [bench.Ranked("2 x 3", times(1.0), times(through), times(9.0), 0.0, 0.0) for through in (4.5, 3.5)]
    for er, expected in ((1.2, True), (1.4, False)):
        held = bench.bars(ranks, {"a step": bench.Trained(times(1.0), times(1.0), times(er), times(0.1))})
        assert [bar.ok for bar in held] == [True, False, expected]


@pytest.mark.slow
def test_agents_of_the_default_study_train():
    program = bench.reinforcement(1, L2ER())
    record = jax.eval_shape(lambda key: program.segment(program.init(key, ()), (), 0, 1)[1], jax.random.key(0))
    assert record["episode_return"].shape == (1,)


@pytest.mark.slow
def test_quick_run(tmp_path):
    out = tmp_path / "numbers.json"
    ranks, training, held = bench.main(bench.Config(quick=True, out=out))
    assert all(r.error < 1e-4 for r in ranks)
    assert all(np.isfinite(times.median()).all() for done in training.values() for times in done)
    assert len(json.loads(out.read_text())["bars"]) == len(held)
