"""The cache of compiled programs: a second process compiles nothing, whatever the first one had to suffer."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from plastax.runs import compilation

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import json, os, pathlib, signal, sys
import jax, jax.numpy as jnp
from plastax.runs import compilation
write = pathlib.Path.write_bytes
if "killed" in sys.argv:
    def torn(path, content):
        write(path, content[:len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.write_bytes = torn
if "nobody" in sys.argv:
    import pwd
    pwd.getpwuid = {}.__getitem__
compilation.use_cache()
value = float(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.arange(3.0)))
value += float(jax.jit(jnp.tanh)(value))
print(json.dumps({"value": value, "missed": compilation.counts.missed, "asked": compilation.counts.asked}))
"""


def start(folder: pathlib.Path | None, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that compiles a program or two, with ``folder`` as the user's cache directory."""
    variables = {"JAX_PLATFORMS": "cpu"} | variables
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")}
    if folder is not None:
        variables["XDG_CACHE_HOME"] = str(folder)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def counted(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing_whatever_the_first_ones_left(tmp_path):
    """One that was killed while it wrote, and one whose entries were damaged: that costs a single compilation."""
    assert start(tmp_path, "killed").returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".part"]
    first = counted(start(tmp_path))
    assert first["missed"] == first["asked"]
    entries = sorted(tmp_path.rglob("*-cache"))
    assert len(entries) == first["asked"] >= 3
    for i, entry in enumerate(entries):
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes([bytes(content), bytes(content[:-9]), b""][i % 3])
    assert counted(start(tmp_path)) == first
    assert counted(start(tmp_path)) == first | {"missed": 0}


def test_the_users_own_folder_is_taken(tmp_path):
    """And what others keep in it is left alone, however old and however large."""
    other = tmp_path / "own" / "jit_other-cache"
    other.parent.mkdir()
    other.write_bytes(bytes(1000))
    os.utime(other, (0, 0))
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_COMPILATION_CACHE_MAX_SIZE": "500000"}
    first = counted(start(tmp_path / "home", **own))
    assert counted(start(tmp_path / "home", **own)) == first | {"missed": 0}
    assert not (tmp_path / "home").exists()
    assert other.read_bytes() == bytes(1000)


def test_where_nothing_can_be_kept_a_line_says_so(tmp_path):
    """To a user without a home, such as a container's, which has a number and no name; and to one without a folder."""
    (tmp_path / "file").touch()
    for done, why in (
        (start(None, "nobody"), "Could not determine home directory."),
        (start(tmp_path / "file"), f"[Errno 20] Not a directory: '{tmp_path}/file/plastax/xla/"),
    ):
        assert json.loads(done.stdout)["value"]
        assert done.stderr.startswith(f"compiled programs are not cached: {why}")
        assert done.stderr.count("\n") == 1


def test_another_kind_of_processor_has_another_folder(cache, monkeypatch):
    here = cache().directory
    assert here == cache().directory
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert cache().directory != here


@pytest.fixture
def cache(tmp_path):
    """``cache(limit)``: one that JAX does not use."""
    return lambda limit=None: compilation.Cache(tmp_path / "cache", limit)


def test_what_was_used_longest_ago_makes_room(cache):
    kept = cache(1000)
    for age, name in ((300, "a"), (200, "b"), (100, "c")):
        kept.put(name, bytes(200))
        entry = kept.directory / f"{name}-cache"
        os.utime(entry, (entry.stat().st_mtime - age,) * 2)
    assert kept.get("a") == bytes(200)  # Now it is the newest.
    kept.put("d", bytes(400))
    assert {name: kept.get(name) is not None for name in "abcd"} == {"a": True, "b": False, "c": True, "d": True}
    kept.put("larger than all", bytes(1000))
    assert kept.get("larger than all") is None
    assert kept.get("d") is not None
    # A process that starts holds the limit whatever others left, in the folders of all machines.
    other = kept.directory.parent / "other"
    other.mkdir()
    (other / "x-cache").write_bytes(bytes(900))
    cache(1000)
    assert sum(path.stat().st_size for path in kept.directory.parent.rglob("*") if path.is_file()) <= 1000


def test_what_nobody_used_for_a_month_goes(cache):
    kept = cache()
    for name in ("old", "new"):
        kept.put(name, b"program")
    entry = kept.directory / "old-cache"
    os.utime(entry, (entry.stat().st_mtime - 40 * 86400,) * 2)
    part = kept.directory / "left.part"
    part.touch()
    os.utime(part, (entry.stat().st_mtime + 39 * 86400,) * 2)
    cache()
    assert [path.name for path in kept.directory.iterdir()] == ["new-cache"]


def test_a_full_disk_keeps_nothing_and_says_so_once(cache, monkeypatch, caplog):
    kept, write = cache(), pathlib.Path.write_bytes

    def full(path: pathlib.Path, content: bytes) -> None:
        write(path, content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    for name in ("a", "b"):
        kept.put(name, b"program")
        assert kept.get(name) is None
    assert not list(kept.directory.iterdir())
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.undo()
    kept.put("a", b"program")
    assert kept.get("a") == b"program"


@pytest.mark.parametrize(
    ("key", "count", "expected"),
    [
        ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_random_numbers_without_a_loop_are_those_of_the_published_vectors(key, count, expected):
    """Of the authors' library Random123, file ``kat_vectors``, threefry2x32 with 20 rounds."""
    program = jax.jit(compilation.threefry2x32).lower(*np.asarray([key, count], np.uint32).ravel()).compile()
    assert "while" not in program.as_text()
    assert tuple(int(x) for x in program(*np.asarray([key, count], np.uint32).ravel())) == expected


@pytest.mark.parametrize("quick", [False, True])
def test_they_compile_without_a_loop_unless_nothing_is_optimised(quick, monkeypatch):
    registered = []
    monkeypatch.setattr(compilation.mlir, "lower_fun", lambda fn, multiple_results: fn)
    monkeypatch.setattr(
        compilation.mlir, "register_lowering", lambda *rule, platform: registered.append((*rule, platform))
    )
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick)
    try:
        compilation.unroll_threefry.__wrapped__()
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert registered == ([] if quick else [(threefry2x32_p, compilation.threefry2x32, "cpu")])
