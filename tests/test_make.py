"""`make` and the set-up of .venv: what a name contains is not run, and what is installed has the lock's hashes."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NAMES = (
    "`touch pwned`", "$(touch pwned)", "$(shell touch pwned)", "$$(touch pwned)", "${HOME}", "x\";touch pwned;\"",
    "x';touch pwned;'", "x; touch pwned #", "two words", "line\ntouch pwned", "*", "\\",
)  # fmt: skip


HANDED_ON = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKEOVERRIDES",
    "MAKELEVEL",
    "ARGS",
    "EXP",
    "BENCH",
    "ACCEL",
    "RUN",
    "NAME",
    "PYTHON",
)
OUTSIDE = {name: value for name, value in os.environ.items() if name not in HANDED_ON}
"""The environment without what `make test ARGS=...` hands on to a make inside it."""
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize(
    ("goal", "said"),
    [("run EXP=random_labels", "random_label"), ("bench BENCH=supervise", "supervised")],
)
def test_make_names_the_nearest_before_it_installs_anything(goal: str, said: str):
    environment = OUTSIDE | {"PYTHON": sys.executable}
    done = subprocess.run(["make", "-s", *goal.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"did you mean '{said}'?" in done.stderr
    assert "allowed: " in done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tree that is set up, whose Python prints its arguments."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, place)
    (place / "experiments" / "bench").mkdir(parents=True)
    (place / "experiments" / "random_label.py").touch()
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    python.chmod(0o755)
    for stamp in (".plastax-cpu", ".plastax-cpu-docs"):
        (place / ".venv" / stamp).touch()
    return place


def make(checkout: pathlib.Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    line = ["make", *words]
    done = subprocess.run(
        line, cwd=checkout, env=OUTSIDE | {"ACCEL": "cpu"} | variables, capture_output=True, text=True, check=False
    )
    assert not list(checkout.rglob("pwned"))
    return done


@needs_make
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_handed_on_as_it_is_written(name: str, checkout: pathlib.Path) -> None:
    assert make(checkout, "report", f"RUN={name}").stdout == f"<-m><plastax><report><{name}>"
    assert make(checkout, "report", RUN=name).stdout == f"<-m><plastax><report><{name}>"
    assert make(checkout, "data", f"NAME={name}", "ARGS=--path 'a b'").stdout == (
        f"<-m><plastax><data><{name}><--path><a b>"
    )


@needs_make
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_make_refuses_is_not_run_either(name: str, checkout: pathlib.Path) -> None:
    for words in (["run", f"EXP={name}"], ["bench", f"BENCH={name}"], ["help", f"ACCEL={name}"]):
        assert make(checkout, *words, f"PYTHON={name}").returncode == 2
    assert make(checkout, "run", "EXP=random_label", f"PYTHON={name}").stdout == "<-m><plastax><run><random_label>"


@needs_make
def test_docs_are_of_the_public_names_and_outside_of_the_tree(checkout: pathlib.Path) -> None:
    said = make(checkout, "docs").stdout
    assert said.startswith("<-W><ignore><-m><pdoc><--docformat><google><--output-directory><build/docs><plastax>")
    assert "/build/" in (ROOT / ".gitignore").read_text().splitlines()
    script = [sys.executable, ".ci/locked.py", "docs"]
    if importlib.util.find_spec("pip"):
        assert "\npdoc==" in subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_what_pip_installs_has_the_hashes_of_the_lock() -> None:
    pytest.importorskip("pip")
    script = [sys.executable, ".ci/locked.py", "bench"]
    lines = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( --hash=sha256:[0-9a-f]{64})+", line)
    names = {line.partition("==")[0] for line in lines}
    # What builds plastax itself comes from the lock too.
    assert {"jax", "wandb", "rejax", "hatchling", "pytest"} <= names
