"""The benchmark of supervised training: the plain loop is the same mathematics, and the data set is there once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bench import supervised
from experiments.bench._measure import Roofline, Times


def test_bound_is_the_slower_of_products_and_memory():
    weights = [(np.zeros((8, 4), np.float32), np.zeros(4, np.float32)), (np.zeros((4, 2), np.float32), np.zeros(2))]
    size = 4 * (32 + 4 + 8) + 8 * 2
    assert supervised.bound(weights, 1, Roofline(1e30, 1.0)) == (3 * size, "memory")
    # Two kernels forward, two gradients of kernels, one of inputs: 32 + 8 + 32 + 8 + 8 products an example.
    assert supervised.bound(weights, 5, Roofline(1.0, 1e30)) == (2 * 5 * 88, "matmul")


def test_bars_miss_what_is_slow_differs_or_copies_the_data():
    def measured(seeds: int, seconds: float, off: float, arguments: int, temporary: int) -> supervised.Measured:
        memory = supervised.Memory(1000, 10 * seeds, arguments, temporary)
        mine, theirs = Times([seconds], [seconds]), Times([1.0], [1.0])
        return supervised.Measured(1, seeds, mine, theirs, off, 0.5, "memory", memory)

    good = supervised.bars([measured(1, 1.0, 1e-6, 1010, 50), measured(4, 1.04, 1e-6, 1040, 200)])
    assert [bar.ok for bar in good] == [True] * 7
    bad = supervised.bars([measured(1, 1.1, 0.1, 1010, 50), measured(4, 1.1, np.nan, 4040, 4050)])
    assert [bar.ok for bar in bad] == [False, False, True, False, False, False, False]
    assert supervised.row(measured(4, 2.0, 0.0, 1040, 0))["steps_per_s"] == 2.0
    assert supervised.row(measured(4, 2.0, 0.0, 1040, 0))["wall_ratio"] == 0.5


def test_more_steps_than_images_are_refused():
    with pytest.raises(SystemExit, match="takes 960 images, there are 640; give fewer"):
        supervised.main(supervised.Config(batches=(1, 64), quick=True))


@pytest.mark.slow
def test_quick_run_agrees_with_the_plain_loop(tmp_path):
    out = tmp_path / "numbers.json"
    done, held = supervised.main(supervised.Config(batches=(1, 4), seeds=(1, 3), quick=True, out=out))
    assert [(m.batch, m.seeds) for m in done] == [(1, 1), (1, 3), (4, 1), (4, 3)]
    assert all(m.off < 1e-4 for m in done)
    assert all(bar.ok for bar in held if "copies" in bar.text)
    numbers = json.loads(out.read_text())
    assert len(numbers["bars"]) == len(held)
    assert all(r["steps_per_s"] > 0 and np.isfinite(r["cpu_ratio"]) for r in numbers["rows"])
