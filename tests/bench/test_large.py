"""The benchmark of large networks: it plans for the networks it names, and its numbers are those of spectra."""

from __future__ import annotations

import json
import pathlib

import pytest

from experiments.bench import large
from plastax import tree


def test_the_plan_is_for_gpt2() -> None:
    plan = large.plan(large.PLANNED["124M"], large.Config())
    assert plan["parameters"] == 124_439_808  # Radford et al. 2019, as released.
    assert plan["products"] == 64
    whole, host = plan["bytes"]["float32"], plan["bytes"]["host"]
    assert whole - host > 32 * 4 * plan["parameters"]
    assert 1 / 8 < plan["bytes"]["on each of 8"] / whole < 1.05 / 8


@pytest.mark.parametrize("name", large.MEASURED)
def test_networks_have_as_many_parameters_as_they_are_named(name: str) -> None:
    assert tree.size(large.shapes(large.MEASURED[name])) == pytest.approx(float(name), rel=0.25)


@pytest.mark.slow  # compiles a transformer
def test_a_toy_is_measured(tmp_path: pathlib.Path) -> None:
    large.main(large.Config(quick=True, out=tmp_path / "numbers.json"))
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["measured"]
    assert row["products"] == 4
    assert row["planned"] < row["bytes"]
    assert 0 < row["trace"]["apart"] < 10
    assert min(row["wall_s"], row["top"]["value"], row["effective_rank"]["error"]) > 0
