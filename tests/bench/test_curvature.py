"""The curvature benchmark: what it compares really computes the same, and what does not is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bench import _peers, curvature
from experiments.bench._groups import ITEMS


def test_objection_finds_what_is_wrong():
    ritz = np.array([-1.0, 0.5, 3.0])
    assert not curvature.objection("lanczos", ritz, np.array([-0.9, 0.6, 3.0]))
    assert "2 copies" in curvature.objection("lanczos", ritz, np.array([0.5, 3.0, 3.0]))
    assert "off by" in curvature.objection("lanczos", ritz, np.array([-1.0, 0.5, 3.3]))
    assert "not finite" in curvature.objection("lanczos", ritz, np.array([-1.0, 0.5, np.nan]))
    assert not curvature.objection("quadrature", np.array([10.0, 1.0]), np.array([14.0, 1.0]))
    assert "standard errors" in curvature.objection("quadrature", np.array([10.0, 1.0]), np.array([20.0, 1.0]))
    assert not curvature.objection("product", ritz, ritz + 1e-4)
    assert "differs" in curvature.objection("product", ritz, 1.01 * ritz)
    assert "shape" in curvature.objection("product", ritz, ritz[:2])


def test_missing_peers_are_skipped_with_a_message(monkeypatch):
    monkeypatch.setitem(_peers.PEERS, "matfree", lambda problem: __import__("no_such_library_at_all"))
    found, notes = curvature.peer_sides(None, ("matfree",))
    assert not found
    assert "matfree: skipped" in notes[0]
    assert "no_such_library_at_all" in notes[0]


@pytest.mark.slow
def test_quick_run_computes_everything_and_agrees_with_the_references(tmp_path):
    out = tmp_path / "numbers.json"
    done, held = curvature.main(curvature.Config(problems=("a",), peers=(), quick=True, out=out))
    assert [m.group for m in done] == [group.__name__ for groups in ITEMS.values() for group in groups]
    assert [note for m in done for note in m.notes] == []
    assert len(held) == 5
    numbers = json.loads(out.read_text())
    assert len(numbers["rows"]) == sum(len(m.sides) for m in done)
    assert all(row["cpu_s"] > 0 and np.isfinite(row["cpu_ratio"]) for row in numbers["rows"])
