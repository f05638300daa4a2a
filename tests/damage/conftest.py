"""A run to be damaged: finished, and killed before its end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import killing
from tests.damage.common import ARMS, SEGMENTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with the checkpoints after all segments and after all but one."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    killing.study(directory)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def killed(copy: Path) -> Path:
    """One that was killed after all but one segment of each arm: it has one checkpoint, before its last record."""
    for arm in ARMS:
        shutil.rmtree(copy / "checkpoints" / arm / str(SEGMENTS))
    return copy
