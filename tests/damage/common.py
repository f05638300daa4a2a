"""What the tests of damaged runs share: reading a run, comparing it, harming its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import plastax
from plastax.errors import RecordError, RunError
from plastax.program import parallel
from plastax.records import layout
from plastax.records.survey import survey
from plastax.runs import checkpoint
from tests import killing

SEGMENTS = killing.PLAN.segments
ARMS = tuple(killing.OPTIMIZERS)


def tree(directory: Path) -> dict[Path, bytes]:
    """Every file that holds what a run has computed."""
    found = (path for top in ("records", "checkpoints") for path in (directory / top).rglob("*"))
    return {
        path: path.read_bytes()
        for path in found
        if path.is_file() and os.access(path, os.R_OK) and not path.is_symlink()
    }


def likes() -> dict[str, Any]:
    start = parallel.seed_keys(range(killing.SEEDS))
    return {arm: jax.eval_shape(killing.program(killing.OPTIMIZERS[arm]).init, start, ()) for arm in ARMS}


def restored(directory: Path, arm: str, like: Any = None) -> checkpoint.Restored | None:
    like = likes()[arm] if like is None else like
    there = survey(directory, killing.config(), [arm], SEGMENTS)
    return checkpoint.restore(directory / "checkpoints" / arm, killing.config(), like, there)


def assert_same(directory: Path, whole: Path) -> None:
    """Every recorded number and every final state, bit for bit."""
    one, other = plastax.load(directory), plastax.load(whole)
    assert set(one.data_vars) == set(other.data_vars)
    for name in other.data_vars:
        if not name.startswith("host/"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for arm in ARMS:
        a, b = restored(directory, arm), restored(whole, arm)
        assert a
        assert b
        assert a.segment == b.segment == SEGMENTS
        for name, leaf in b.leaves.items():
            np.testing.assert_array_equal(a.leaves[name], leaf, err_msg=name)


def start(directory: Path) -> None:
    """What a start of a run looks at before it trains anything."""
    layout.read_config(directory)
    for arm in ARMS:
        restored(directory, arm)


def assert_refused(directory: Path, message: str, begin: Callable[[Path], None] = start) -> None:
    """The same line at every start, and nothing changes."""
    before = tree(directory)
    for _ in range(2):
        with pytest.raises((RunError, RecordError), match=message) as caught:
            begin(directory)
        assert "\n" not in str(caught.value)
        assert tree(directory) == before


def flip(path: Path, place: int = -30) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(raw)


def unreadable(path: Path) -> Callable[[], None]:
    """Makes reading a file an I/O error, for root too; what undoes it."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc")
    kept = path.rename(path.parent.parent / f"kept-{path.name}")
    path.symlink_to("/proc/self/mem")
    return lambda: void(kept.replace(path))


def void(_: Any) -> None: ...
