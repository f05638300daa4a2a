"""The examples in docstrings print what they say; ``-k l2_er`` takes those of one module."""

from __future__ import annotations

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "plastax").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module: str) -> None:
    """Long output may be cut by ``...``, and lines may be broken anywhere."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, attempted = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert attempted, "doctest found no example where the source has one"
    assert not failed, "see the captured output; give as many digits as all machines agree on, or round"
