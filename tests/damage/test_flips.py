"""Bytes flipped and files cut anywhere in a run: each is detected, or harmless bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import plastax
from plastax.errors import RecordError, RunError, Unreadable
from plastax.records import files, layout
from plastax.records.survey import Survey, survey
from plastax.runs import checkpoint
from plastax.study import listing
from tests.damage.common import (
    ARMS,
    SEGMENTS,
    likes,
)


class Fuzzed:
    """A run of which one file at a time is damaged, and what its readers make of that."""

    def __init__(self, directory: Path):
        self.directory, self.likes = directory, likes()
        self.files = {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
        self.config = layout.read_config(directory)
        self.data = plastax.load(directory)
        self.states = {arm: {} for arm in ARMS}  # arm -> segment -> leaves
        for arm in ARMS:
            for folder in (directory / "checkpoints" / arm).glob("[0-9]*"):
                found = checkpoint.restore(folder.parent, self.config, self.likes[arm], Survey(int(folder.name), "", 0))
                assert found
                self.states[arm][found.segment] = found.leaves

    def damage(self, draw: random.Random) -> Path:
        """Damages a file: a byte flipped or overwritten, or the end cut off."""
        path = draw.choice(list(self.files))
        raw = bytearray(self.files[path])
        if not raw or draw.random() < 0.2:
            raw = raw[: draw.randrange(len(raw) + 1)]
        else:
            raw[draw.randrange(len(raw))] ^= draw.choice([1 << draw.randrange(8), draw.randrange(1, 256)])
        path.write_bytes(raw)
        return path

    def detected(self, path: Path, every_reader: bool) -> bool:
        """Whether a damaged file is named; where it is not, asserts that nothing that is read from it has changed."""
        found = False
        top = path.relative_to(self.directory).parts[0]
        if top == "records" or every_reader:
            arm = path.parent.name
            found |= self.refused(lambda: self.check_survey(arm)) if top == "records" else False
            found |= self.refused(self.check_load)
        if top == "checkpoints" or every_reader:
            for arm in ARMS:
                found |= self.refused(lambda arm=arm: self.check_state(arm))
        if top.endswith(".json"):
            found |= self.refused(lambda: self.check_json(path))
        # No damage is an error here: it is shown.
        row = listing._row(self.directory)
        return found or row[0] == "damaged" or "corrupt" in row[3]

    def refused(self, read: Callable[[], None]) -> bool:
        try:
            read()
        except (RecordError, RunError) as caught:
            error = caught
        else:
            return False
        assert str(self.directory) in str(error)
        assert "\n" not in str(error)
        assert not isinstance(error, Unreadable)
        return True

    def check_survey(self, arm: str) -> None:
        there = survey(self.directory, self.config, [arm], SEGMENTS)
        if there.whole < SEGMENTS:
            raise RecordError(there.problem)

    def check_load(self) -> None:
        data = plastax.load(self.directory)
        assert data.identical(self.data)

    def check_state(self, arm: str) -> None:
        there = Survey(SEGMENTS, "", 0)
        found = checkpoint.restore(self.directory / "checkpoints" / arm, self.config, self.likes[arm], there)
        assert found
        for name, leaf in self.states[arm][found.segment].items():
            np.testing.assert_array_equal(found.leaves[name], leaf, err_msg=name)
        if found.notes:
            raise RecordError(found.notes[0])

    def check_json(self, path: Path) -> None:
        value, old = files.read_json(path), json.loads(self.files[path])
        value.pop("checksum", None)
        unknown = value.keys() - old.keys()  # the word "checksum" itself was hit
        assert {name: value[name] for name in value if name not in unknown} == {
            k: v for k, v in old.items() if k != "checksum"
        }
        assert len(unknown) <= 1


def fuzz(directory: Path, number: int, seed: int, every_reader: bool) -> int:
    """Damages a run this many times and returns how often it was detected. All other damage was harmless."""
    fuzzed, draw, detected = Fuzzed(directory), random.Random(seed), 0
    for _ in range(number):
        path = fuzzed.damage(draw)
        detected += fuzzed.detected(path, every_reader)
        path.write_bytes(fuzzed.files[path])
    return detected


def test_a_flipped_byte_is_detected_or_harmless(copy: Path) -> None:
    assert fuzz(copy, 150, 0, False) > 75


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_thousand_flipped_bytes_are_detected_or_harmless(
    killed: Path, whole: Path, tmp_path: Path, interrupted: bool
) -> None:
    directory = killed if interrupted else Path(shutil.copytree(whole, tmp_path / "finished"))
    detected = fuzz(directory, 1000, 1, True)
    kind = "an interrupted" if interrupted else "a finished"
    print(f"1000 damages to files of {kind} run: {detected} detected, the others harmless")
    assert detected > 500
