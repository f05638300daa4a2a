"""The cache of compiled programs: a second process compiles nothing, whatever the first one had to suffer."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from plastax import compilation

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import json, os, pathlib, signal, sys
import jax, jax.numpy as jnp
from plastax import compilation
compilation._cache = compilation.Cache(pathlib.Path(sys.argv[1]))
value = float(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.arange(3.0)))
own = compilation._cache._own
if "torn" in sys.argv:
    for entry in own.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:20])  # As JAX leaves one that it was killed over.
    os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({"value": value, "missed": compilation.counts.missed, "asked": compilation.counts.asked}))
"""


def start(folder: pathlib.Path, *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), *arguments],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (-9 if arguments else 0), done.stderr
    assert not done.stderr
    return json.loads(done.stdout) if done.stdout else {}


def test_a_second_process_compiles_nothing_even_after_one_that_was_killed(tmp_path):
    start(tmp_path, "torn")
    assert not list(tmp_path.glob("*/*-cache"))
    first, second = start(tmp_path), start(tmp_path)
    assert first["missed"] == first["asked"] > 0
    assert (second["missed"], second["asked"]) == (0, first["asked"])
    assert first["value"] == second["value"]
    # What the killed one left is swept away in a week, what the others had is gone.
    assert len(list(tmp_path.glob("*/process-*"))) == 1


def test_another_instruction_set_has_another_folder(tmp_path, monkeypatch):
    here = compilation._instruction_set()
    assert here == compilation._instruction_set()
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: "flags : fpu avx512f\nmodel name : other\n")
    assert compilation._instruction_set() != here


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "plastax").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "_cache", None)
    compilation.use_cache()
    assert "compiled programs are not kept" in caplog.text
    compilation.share()


@pytest.mark.parametrize("linked", [True, False])
def test_entries_appear_in_one_step(tmp_path, monkeypatch, linked):
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "entry").write_bytes(b"program")
    compilation._link(tmp_path / "entry", tmp_path / "shared")
    compilation._link(tmp_path / "entry", tmp_path / "shared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry", "shared"]
    assert (tmp_path / "shared").read_bytes() == b"program"
