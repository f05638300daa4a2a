"""What a test does where the machine lacks something that a fresh clone does not bring."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skips the test; fails it where ``PLASTAX_TEST_COMPLETE`` is set, which promises that nothing is lacking."""
    if os.environ.get("PLASTAX_TEST_COMPLETE"):
        pytest.fail(f"PLASTAX_TEST_COMPLETE is set, but this test {what}", pytrace=False)
    pytest.skip(what)
