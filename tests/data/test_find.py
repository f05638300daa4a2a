"""Where a data set is found, in which order, and that nothing incomplete is ever used."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from plastax import __main__ as cli
from plastax.data import DATA, DataError, blank, find, idx, load
from plastax.data.base import Entry
from plastax.data.sources import mirror
from plastax.errors import ConfigError
from tests.data.answers import answering

NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
def tiny(idx_files, monkeypatch):
    """Registers the tiny files as data set ``tiny`` with these mirrors and installed folders."""
    digests = {name: hashlib.sha256(gzip.decompress(idx_files[f"{name}.gz"])).hexdigest() for name in idx.FILES}

    def register(*mirrors: str, installed: tuple[Path, ...] = (), **options: float) -> None:
        entry = Entry(
            description="tiny",
            source="a test",
            licence="none",
            notes="",
            read=idx.reader({name: f"sha256:{digest}" for name, digest in digests.items()}),
            files="the four files",
            present=idx.present,
            folders=("tiny", "Tiny/raw"),
            installed=tuple(map(str, installed)),
            sources=tuple(mirror(url, idx.COMPRESSED, timeout=0.3, backoff=0.01, **options) for url in mirrors),
        )
        monkeypatch.setitem(DATA, "tiny", entry)

    return register


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_the_order_is_path_variable_cache_installed_network(
    empty_cache, tiny, server, idx_files, tmp_path, monkeypatch
):
    server.files = idx_files
    installed = fill(tmp_path / "installed", idx_files)
    tiny(server.url, installed=(installed,))
    given, root = fill(tmp_path / "given", idx_files), tmp_path / "root"
    below = fill(root / "Tiny" / "raw", idx_files)
    kept = fill(empty_cache / "tiny", idx_files)
    monkeypatch.setenv("PLASTAX_DATA", str(root))
    assert load("tiny", given).card.origin == str(given)
    for origin in (below, kept, installed):
        assert load("tiny").card.origin == str(origin)
        assert not server.requests
        shutil.rmtree(origin)
    fetched = load("tiny")
    assert fetched.card.origin == str(kept)
    assert len(server.requests) == 4
    assert load("tiny").card.checksum == fetched.card.checksum == load("tiny", given).card.checksum
    assert len(server.requests) == 4


def test_the_card_is_json(empty_cache, tiny, idx_files, tmp_path):
    tiny()
    card = load("tiny", fill(tmp_path / "given", idx_files)).card
    assert json.loads(json.dumps(card.to_json())) == card.to_json()
    assert card.to_json()["shape"] == [28, 28, 1]
    assert (card.train, card.test, card.classes) == (20, 10, 10)


@pytest.mark.parametrize("fault", ["cut", "stall", "shifted", 503, 416])
def test_faults_on_the_way_do_not_show_in_the_data(empty_cache, tiny, server, idx_files, fault):
    tiny(server.url)
    server.files, server.faults = idx_files, {f"{idx.TRAIN_IMAGES}.gz": [fault]}
    images = np.frombuffer(gzip.decompress(idx_files[f"{idx.TRAIN_IMAGES}.gz"])[16:], np.uint8)
    assert load("tiny").train_images.tobytes() == images.tobytes()


def test_a_mirror_with_wrong_or_cut_content_is_passed_over(empty_cache, tiny, server, idx_files, capsys):
    good = dict(idx_files)
    name = f"{idx.TRAIN_IMAGES}.gz"
    other = bytearray(gzip.decompress(idx_files[name]))
    other[-1] ^= 1
    server.files = {f"{mirror}/{file}": content for mirror in "abcd" for file, content in good.items()}
    server.files |= {f"a/{name}": gzip.compress(bytes(other)), f"b/{name}": b"<html>moved</html>"}
    server.faults = {f"c/{name}": ["short"]}
    tiny(*(f"{server.url}{mirror}/" for mirror in "abcd"))
    assert load("tiny", verify=False).card.origin == str(empty_cache / "tiny")
    said = capsys.readouterr().err
    assert "not the published file" in said
    assert "not the published file, or a damaged one" in said
    assert "ended before the end-of-stream marker" in said
    assert [path.name for path in empty_cache.glob(".tiny-*")] == []
    assert sorted(path.name for path in (empty_cache / "tiny").iterdir()) == sorted(idx_files)


def test_a_resumed_part_of_something_else_is_fetched_again(empty_cache, tiny, server, idx_files):
    tiny(server.url)
    server.files, name = idx_files, f"{idx.TRAIN_IMAGES}.gz"
    server.faults = {name: ["cut"] * 5}
    with pytest.raises(DataError):
        load("tiny", download=True)
    (part,) = empty_cache.glob(f".tiny-*/{name}.part")
    part_size = part.stat().st_size
    part.write_bytes(bytes(part_size))
    assert len(load("tiny").train_images) == 20
    assert [asked for file, asked in server.requests if file == name][-2:] == [f"bytes={part_size}-", None]


def test_missing_data_lists_every_place_and_the_remedy(empty_cache, tiny, server, capsys):
    tiny(NOWHERE, server.url, installed=(Path("/no/such/folder"),))
    with pytest.raises(DataError) as raised:
        load("tiny")
    said = str(raised.value)
    for part in (
        NOWHERE,
        "refused",
        server.url,
        "404",
        "/no/such/folder",
        str(empty_cache / "tiny"),
        "make data NAME=tiny",
    ):
        assert part in said
    assert isinstance(raised.value, ConfigError)
    assert not (empty_cache / "tiny").exists()
    with pytest.raises(DataError, match="was not asked"):
        load("tiny", download=False)


def test_imagenet_says_that_it_needs_an_account(empty_cache):
    with pytest.raises(DataError, match=r"account(.|\n)*Imagenet32_train"):
        load("imagenet32")


def test_damage_in_the_cache_or_in_a_given_folder_is_not_passed_over(
    empty_cache, tiny, server, idx_files, monkeypatch, tmp_path
):
    tiny(server.url)
    server.files = idx_files
    name = f"{idx.TEST_LABELS}.gz"
    for root in (empty_cache, tmp_path / "root"):
        if root != empty_cache:
            monkeypatch.setenv("PLASTAX_DATA", str(root))
        fill(root / "tiny", idx_files | {name: idx_files[name][:-9]})
        with pytest.raises(DataError, match=f"{root}/tiny/{name}"):
            load("tiny")
    assert not server.requests


def test_the_cache_holds_published_files_only(empty_cache, tiny, idx_files):
    tiny()
    names = {idx.TRAIN_IMAGES: idx.TEST_IMAGES, idx.TRAIN_LABELS: idx.TEST_LABELS}
    fill(empty_cache / "tiny", idx_files | {f"{k}.gz": idx_files[f"{v}.gz"] for k, v in names.items()})
    with pytest.raises(DataError, match="not the published file"):
        load("tiny", verify=False)


def test_a_cache_that_cannot_be_written_says_so(empty_cache, tiny, server, idx_files, monkeypatch, tmp_path):
    tiny(server.url)
    server.files = idx_files
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written"):
        load("tiny")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so(empty_cache, tiny, server, idx_files):
    tiny(server.url)
    server.files, server.faults = idx_files, {f"{idx.TRAIN_IMAGES}.gz": ["cut"] * 5}
    with pytest.raises(DataError):
        load("tiny")
    (part,) = empty_cache.glob(".tiny-*/*.part")
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        load("tiny")
    assert not (empty_cache / "tiny").exists()


def test_what_else_lies_in_the_cache_stays_there(empty_cache, tiny, server, idx_files):
    tiny(server.url)
    server.files = idx_files
    (empty_cache / "tiny" / "notes").mkdir(parents=True)
    (empty_cache / "tiny" / "notes" / "mine").write_text("kept")
    assert load("tiny").card.train == 20
    assert (empty_cache / "tiny" / "notes" / "mine").read_text() == "kept"


def test_a_file_system_without_locks_is_no_obstacle(empty_cache, tiny, server, idx_files, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    tiny(server.url)
    server.files = idx_files
    assert load("tiny").card.train == 20


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n"]
)
def test_after_a_mirror_that_talks_nonsense_the_next_one_is_asked(empty_cache, tiny, server, idx_files, head):
    server.files = idx_files
    with answering([head + b"\r\n"]) as nonsense:
        tiny(nonsense, server.url)
        assert load("tiny").card.train == 20


def test_options_that_a_data_set_does_not_have_are_named(tmp_path):
    for name, known in (("mnist", ""), ("digits", ""), ("imagenet32", "classes"), ("synthetic", "classes")):
        with pytest.raises(ConfigError, match=rf"option of {name}: 'clases' is unknown.*{known}"):
            load(name, clases=3)


def test_two_at_once_fetch_once(empty_cache, tiny, server, idx_files):
    tiny(server.url)
    server.files, found = idx_files, []
    threads = [threading.Thread(target=lambda: found.append(load("tiny").card.checksum)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(server.requests) == 4


def test_folders_that_are_not_there_are_named(empty_cache, monkeypatch):
    with pytest.raises(ConfigError, match="path of mnist: /no/such"):
        load("mnist", "/no/such")
    monkeypatch.setenv("PLASTAX_DATA", "/no/such")
    with pytest.raises(ConfigError, match="PLASTAX_DATA: /no/such"):
        load("mnist")


@pytest.fixture
def homeless(monkeypatch):
    """A user without HOME and without an entry in the system's list of users, as in many containers."""
    for name in ("HOME", "XDG_CACHE_HOME", "PLASTAX_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)


def test_without_a_home_directory_data_are_found_elsewhere(homeless, tiny, server, idx_files, tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    tiny(server.url, installed=(installed,))
    assert find.cache() is None
    with pytest.raises(DataError, match=r"no home directory.*XDG_CACHE_HOME"):
        load("tiny")
    with pytest.raises(DataError, match="was not asked"):
        load("tiny", download=False)
    assert blank("tiny") is None
    assert not server.requests
    assert load("tiny", fill(installed, idx_files)).card.train == 20
    assert load("tiny").card.origin == str(installed)
    server.files = idx_files
    shutil.rmtree(installed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load("tiny").card.train == 20


@pytest.mark.parametrize("below", ["", "tiny", "Tiny/raw"])
def test_a_given_path_may_be_the_folder_of_all_data(empty_cache, tiny, idx_files, tmp_path, below):
    tiny()
    origin = tmp_path / "given" / below
    fill(origin, idx_files)
    assert load("tiny", tmp_path / "given").card.origin == str(origin)


def test_a_relative_path_is_said_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"path of mnist: {tmp_path}/images does not exist"):
        load("mnist", "images")


def test_a_folder_that_cannot_be_looked_into_is_one_line(empty_cache, tiny, monkeypatch, tmp_path):
    tiny()
    monkeypatch.setenv("PLASTAX_DATA", str(tmp_path))
    for name, find_it in (("tiny", load), ("mnist", blank)):
        (tmp_path / name).symlink_to("n" * 300)  # looking at it fails, for whatever user
        with pytest.raises(DataError, match=rf"{name}.*cannot be read"):
            find_it(name)


def test_files_that_are_not_the_published_ones_are_asked_for_on_the_command_line(tmp_path, idx_files, capsys):
    folder = str(fill(tmp_path / "given", idx_files))
    with pytest.raises(SystemExit):
        cli.main(["data", "mnist", "--path", folder])
    assert "--no-verify" in capsys.readouterr().err
    cli.main(["data", "mnist", "--path", folder, "--no-verify"])
    assert "NOT verified" in capsys.readouterr().out


def test_the_cache_is_below_the_home_directory_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert find.cache() == Path.home() / ".cache" / "plastax" / "data"


def test_digits_need_no_files():
    found = load("digits")
    assert found.train_images.shape == (1498, 8, 8, 1)
    assert found.test_images.shape == (299, 8, 8, 1)
    assert found.train_images.max() == 255
    assert set(np.bincount(found.train_labels)) <= set(range(140, 160))
    with pytest.raises(ConfigError, match="not read from files"):
        load("digits", "/some/where")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["data", "fashion_mist"], 2, "did you mean 'fashion_mnist'?"),
        (["data", "mnist", "--path", "/no/such"], 2, "/no/such does not exist"),
        (["data", "digits"], None, "CC BY 4.0"),
        (["data", "synthetic"], None, "*** SYNTHETIC"),
    ],
)
def test_the_command_prints_the_card_or_ends_with_code_2(args, code, said, capsys):
    if code is None:
        cli.main(args)
        assert said in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as stopped:
            cli.main(args)
        assert stopped.value.code == code
        assert said in capsys.readouterr().err
