"""The benchmark of the default probes: both sides are one training, and what is printed is a ratio."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.bench import probes
from experiments.bench._measure import Times


def test_percent_is_paired_by_round() -> None:
    text = probes.percent(Times([2.2, 1.2, 3.6], [1.1, 2.1, 4.2]), Times([2.0, 1.0, 3.0], [1.0, 2.0, 4.0]))
    assert text == "+20.0% wall, +5.0% processor [+5.0%, +10.0%]"


@pytest.mark.slow
def test_both_sides_train_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    base, build = probes.built("random_label", ["--preset", "smoke", "--methods", "backprop"])
    sides = [probes.Tasks(config, build) for config in (base, probes.dataclasses.replace(base, probes=()))]
    for side in sides:
        side.call(~0)
        side.next()
    for a, b in zip(*(jax.tree.leaves(side.state.params) for side in sides), strict=True):
        np.testing.assert_array_equal(a, b)
    probes.main(probes.Config(("random_label",), rounds=1, settings=("--preset", "smoke")))
    assert "processor" in capsys.readouterr().out
