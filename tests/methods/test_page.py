"""The page beside the methods lists all of them, and the method that it adds works."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import pathlib
import re
import sys

import pytest

from plastax import methods
from plastax.methods import METHODS
from tests.methods import references
from tests.methods.test_reference import assert_steps_equal

PAGE = pathlib.Path(methods.__file__).with_name("README.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
ROWS = {name: cells for name, *cells in TABLE}
METHOD, REFERENCE = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_the_method_says(name: str) -> None:
    config = METHODS[name]
    line = inspect.getdoc(type(config)).partition("\n")[0]
    assert name in ROWS, f"add to the table in plastax/methods/README.md: | `{name}` | {line} | <acts on> | <source> |"
    description, acts, source = ROWS[name]
    assert description == line, "plastax/methods/README.md and the configuration's docstring differ"
    flags = {"switch": config.needs_boundary, "units": config.replaces_units, "network": bool(config.model_options)}
    kinds = set(acts.split(", "))
    assert kinds <= {"loss", "step", "optimiser", "-", *flags}
    assert {kind for kind in flags if kind in kinds} == {kind for kind, set_ in flags.items() if set_}
    docs = inspect.getsource(sys.modules[type(config).__module__])
    assert all(number in docs for number in re.findall(r"arXiv (\d+\.\d+)", source)), "not in the method's docstring"


def test_rows_stand_in_the_order_of_the_registry() -> None:
    assert list(ROWS) == list(METHODS)


@pytest.mark.parametrize("name", [name for name, x in vars(methods).items() if inspect.isfunction(x)])
def test_every_function_has_an_example(name: str) -> None:
    assert ">>> " in getattr(methods, name).__doc__, f"add Examples to the docstring of {name}; tests run them"


@pytest.mark.usefixtures("x64")
def test_the_method_that_the_page_adds_equals_its_reference(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "l1.py").write_text(METHOD, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("l1", tmp_path / "l1.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "l1", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(methods, "L1", module.L1, raising=False)
    monkeypatch.setattr(methods, "l1", module.l1, raising=False)
    scope = vars(references) | {"CASES": {}}
    exec(REFERENCE, scope)
    assert_steps_equal(*scope["CASES"]["l1"])
    assert doctest.testmod(module) == (0, 5)
