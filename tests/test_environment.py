"""What a run depends on besides its settings: noted where it begins, compared where it goes on."""

from __future__ import annotations

import copy
import importlib
import json
import linecache
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from plastax.methods import METHODS
from plastax.records import environment

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return json.loads(json.dumps(environment.environment(devices=2)))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("source", "other", ["the code"]),
        ("own", {"my_study": "12345678"}, ["the code of my_study"]),
        ("versions.jax", "0.1", ["jax 0.1"]),
        ("devices", [{"kind": "H100", "id": 0}], ["the device"]),
        ("cpu.model", "8086", ["the CPU"]),
        ("cpu.vectors", "", ["the CPU"]),
        ("devices_used", 1, ["the number of devices"]),
        ("devices_used", None, []),
        ("x64", True, ["x64"]),
        ("matmul_precision", "float32", ["matmul_precision"]),
        ("xla_flags", "--xla_cpu_max_isa=AVX2", ["xla_flags"]),
        ("jax.threefry_partitionable", "False", ["jax_threefry_partitionable"]),
        ("jax.default_prng_impl", "rbg", ["jax_default_prng_impl"]),
        ("variables.NVIDIA_TF32_OVERRIDE", "0", ["NVIDIA_TF32_OVERRIDE"]),
        ("jax", {}, []),
        ("time", "2020-01-01T00:00:00+00:00", []),
        ("git_revision", "abc", []),
        ("cpus_usable", 99, []),
    ],
)
def test_what_may_change_a_number_is_named(here, path, value, words):
    then = copy.deepcopy(here)
    *parents, last = path.split(".")
    part = then
    for parent in parents:
        part = part[parent]
    part[last] = value
    assert environment.changes(then, here) == words


def test_what_an_earlier_version_did_not_note_has_not_changed(here):
    noted = ("source", "versions", "devices", "x64", "matmul_precision", "xla_flags")
    assert environment.changes({name: here[name] for name in noted}, here) == []


@pytest.mark.parametrize(
    ("name", "other"),
    [("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg"), ("jax_enable_x64", True)],
)
def test_jax_itself_is_asked(here, name, other):
    old = jax.config.values[name]
    jax.config.update(name, other)
    try:
        assert environment.changes(here, environment.environment(devices=2)) == [
            "x64" if name == "jax_enable_x64" else name
        ]
    finally:
        jax.config.update(name, old)


@pytest.fixture
def package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A folder of own modules: ``own_method`` uses ``own_part``; nobody uses ``own_other``."""
    (tmp_path / "own_method.py").write_text("import own_part\nclass Method: ...\ndef read(): ...\n")
    for name in ("own_part", "own_other"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("own_method", "own_part", "own_other"):
        sys.modules.pop(name, None)


def test_own_code_counts(package):
    """Of what is used, and of what that has imported from beside it; by a class, an object of it or a function."""
    own = importlib.import_module("own_method")
    before = environment.own_sources([own.Method])
    assert before.keys() & {"own_method", "own_part", "own_other"} == {"own_method", "own_part"}
    assert before == environment.own_sources([own.Method()]) == environment.own_sources([own.read])
    (package / "own_other.py").write_text("changed")
    assert environment.own_sources([own.Method]) == before
    for name in ("own_method", "own_part"):
        (package / f"{name}.py").write_text("changed")
        after = environment.own_sources([own.Method])
        assert {key for key in after if after[key] != before[key]} == {name}
        before = after


def test_what_is_installed_does_not_count():
    """Versions, and plastax's own source, are noted already."""
    alone = environment.own_sources()
    assert environment.own_sources([*METHODS.values(), np.float32(1), pathlib.Path, 3, json.loads]) == alone


def test_what_was_typed_in_counts_by_its_text():
    """A class of a notebook has no file; Python finds its lines as it does those of a notebook's cell."""

    def typed(cell: int, number: int) -> str:
        text, name = f"class Typed:\n    def update(self): return {number}\n", f"<cell {cell}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {"__name__": "nowhere"}
        exec(compile(text, name, "exec"), namespace)
        return environment.own_sources([namespace["Typed"]])["nowhere.Typed"]

    assert typed(1, 7) == typed(2, 7) != typed(3, 8)


def test_the_program_counts(package):
    """Its own file and what it imported from beside it; however it is started."""
    (package / "study.py").write_text(
        "import json, own_part\nfrom plastax.records import environment\nclass Config: ...\n"
        "print(json.dumps(environment.own_sources([Config])))\n"
    )
    there = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    found = [
        json.loads(subprocess.run(
            [sys.executable, *command], cwd=package, env=there, capture_output=True, check=False
        ).stdout)
        for command in ([str(package / "study.py")], ["-m", "study"], ["-m", "plastax", "run", "study.py"])
    ]  # fmt: skip
    assert found[0].keys() == {"study", "own_part"}
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="plastax lies in no checkout here")
def test_a_revision_whoever_owns_the_checkout(here, monkeypatch):
    """In a container, say, whose root user has mounted it: git calls that dubious."""
    assert here["git_revision"]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "status"], cwd=ROOT, capture_output=True, check=False)
    assert refused.returncode
    now = environment.environment(devices=2)
    assert (now["git_revision"], now["git_dirty"]) == (here["git_revision"], here["git_dirty"])


def test_reading_needs_no_file_locks(tmp_path):
    """Where there is no fcntl, on Windows, records can be read and the library be used."""
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / "format-1.zip") as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import plastax, plastax.report, plastax.records.lifecycle, plastax.study.listing, plastax.data\n"
        "from plastax import probes, curvature\n"
        "from pathlib import Path\n"
        "print(plastax.load(sys.argv[1]).sizes['seed'], plastax.records.lifecycle.status(Path(sys.argv[1])).state)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2"
