"""The benchmark that looks for methods with the same program."""

from __future__ import annotations

from experiments.bench import alike as bench
from plastax.methods import L2, WeightDecay
from plastax.streams import Permuted


def test_programs_that_differ_in_numbers_are_told_from_others():
    config = bench.Config(hidden=(4,), updates=1)
    stream = Permuted(32).build(bench.mnist(quick=True))
    methods = {"weak": L2(1e-3), "strong": L2(2e-3), "other": WeightDecay(1e-3), "again": L2(1e-3)}
    texts = {name: bench.text(config, stream, method) for name, method in methods.items()}
    assert bench.alike(texts) == [["weak", "again"]]
    assert bench.alike({k: bench.without_numbers(v) for k, v in texts.items()}) == [["weak", "strong", "again"]]
