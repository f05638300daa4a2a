"""A run that ends at any change that it makes on the disk is entered again by the same command."""

from __future__ import annotations

import pathlib
import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from plastax.records import files, lifecycle
from tests import hollow
from tests.test_survival import Server

SEGMENTS = hollow.PLAN.segments
BEGUN, GOING = 14, 30
"""Changes after which both files of the start are there, and the first record."""


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("states"))
    yield server
    server.process.communicate()


@pytest.fixture
def start(serve: Server, tmp_path: pathlib.Path):
    """Starts the study in a process: ``start("kill", 3)``; how it ended, and its ``trained`` segments."""

    def run(how: str = "", number: int = 0, **options: Any) -> dict[str, Any]:
        done = serve(tmp_path / "runs", "hollow", options=(how, number, options))
        assert "Traceback" not in done["log"], done["log"]
        return done | {"trained": re.findall("trained (.*)", done["log"])}

    return run


def changes(done: dict[str, Any]) -> int:
    return int(re.search(r"changes (\d+)", done["log"])[1])


def records(directory: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in directory.glob("tiny/*/records/*/*.npz")}


@pytest.mark.parametrize("how", ["kill", "full", "term"])
@pytest.mark.parametrize("shard", ["", "1/2"])
@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_ended_at_any_change_it_is_entered_again(start, tmp_path, how, shard, share):
    """One run directory, every segment trained once, nothing that was recorded ever written again."""
    root = tmp_path / "runs"
    options = {"shard": shard} if shard else {}

    def first() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if shard:
            assert start(shard="0/2")["status"] == 0

    first()
    whole = start(**options)
    assert whole["status"] == 0
    numbers, ends = range(1, changes(whole) + 1), set()
    assert len(numbers) > 30
    for number in sorted(random.Random(f"{how} {shard}").sample(numbers, round(share * len(numbers)))):
        first()
        done = start(how, number, **options)
        ends.add(done["status"])
        assert done["status"] == 0 or "error" in done["log"] or "stopped" in done["log"] or how != "full"
        before = records(root)
        again = start(**options)
        assert again["status"] == 0, again["log"]
        directory, *others = (root / "tiny").iterdir()
        assert not others, (number, done["log"], again["log"])
        assert lifecycle.status(directory)[:3] == ("finished", 2 * SEGMENTS, 2 * SEGMENTS)
        assert (directory / "report.html").read_text() == "<html></html>"
        assert files.read_json(directory / "config.json")["run_id"] == directory.name
        assert files.read_json(directory / "environment.json")["source"] == "abc"
        after = records(root)
        assert {path: after[path] for path in before} == before
        assert len(again["trained"]) == len(after) - len(before), (number, again["log"])
    assert ends <= {"kill": {-9}, "full": {0, 1, 2}, "term": {0, 75, -15}}[how]
    assert {"kill": -9, "full": 1, "term": 75}[how] in ends


DAMAGE = (
    b"",
    b"{",
    b"\xff\xfe{}",
    b"[]",
    b"3",
    b"null",
    b"\x00" * 50,
    b'{"settings": 3, "versions": [], "hash": {}}',
    None,
)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "status.json"])
def test_damage_of_a_small_file(start, tmp_path, name):
    """Where nothing is recorded, the run begins again; else it goes on, or one line names the file and a remedy."""
    root = tmp_path / "runs"
    start("kill", BEGUN)
    (directory,) = (root / "tiny").iterdir()
    assert lifecycle.blank(directory)
    begun = shutil.copytree(root, tmp_path / "begun")
    start("kill", GOING)
    assert not lifecycle.blank(directory)
    going = shutil.copytree(root, tmp_path / "going")
    for content in DAMAGE:
        for state in (begun, going):
            shutil.rmtree(root)
            shutil.copytree(state, root)
            (directory / name).unlink(missing_ok=True)
            if content is not None:
                (directory / name).write_bytes(content)
            lifecycle.status(directory)
            before = records(root)
            done = start()
            assert records(root).items() >= before.items()
            if state is begun or name == "status.json" or content is None:
                assert done["status"] == 0, (content, done["log"])
                assert [*(root / "tiny").iterdir()] == [directory]
                assert len(done["trained"]) == 2 * SEGMENTS - len(before)
                assert ("environment.json is missing" in done["log"]) == (
                    state is going and name == "environment.json" and content is None
                )
                continue
            assert done["status"] == 2, (content, done["log"])
            (line,) = done["log"].splitlines()
            assert f"{directory / name}" in line
            assert "--fresh" in line
            # What it says helps.
            (directory / name).rename(tmp_path / "away")
            assert start()["status"] == 0
            assert lifecycle.status(directory).state == "finished"


def test_the_report_is_part_of_a_run(start, tmp_path):
    """Without it, or with an empty one, the same command writes it again and trains nothing, whatever has changed."""
    start()
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    for harm in ((directory / "report.html").unlink, lambda: (directory / "report.html").write_bytes(b"")):
        harm()
        assert lifecycle.status(directory).state == "recorded"
        done = start(here={**hollow.HERE, "source": "other"})
        assert (done["status"], done["trained"]) == (0, [])
        assert "reported" in done["log"]
        assert lifecycle.status(directory).state == "finished"
    assert len(start()["trained"]) == 2 * SEGMENTS
    assert len([*(tmp_path / "runs" / "tiny").iterdir()]) == 2


def test_the_whole_and_its_shards_exclude_each_other(start, tmp_path):
    """However their numbers are written; and what is refused leaves nothing that is in the way of others."""
    root = tmp_path / "runs"
    assert start(shard="0/2")["status"] == 0
    (directory,) = (root / "tiny").iterdir()

    def files() -> set[pathlib.Path]:
        return {path for path in root.rglob("*") if path.name != ".begin.lock"}

    before = files()
    for shard in ("0/4", "0/1", "00/3"):
        done = start(shard=shard)
        assert done["status"] == 1
        assert "was begun in 2 shards; continue with --shard i/2" in done["log"]
        assert files() == before
    assert "was begun in 2 shards" in start(resume=str(directory))["log"]
    with lifecycle.hold(directory, {}, "1/2"):
        for shard in ("1/2", "01/2", "1/02", "\u0661/\u0662"):
            done = start(shard=shard)
            assert done["status"] == 1
            assert "is being worked on by process" in done["log"]
        assert files() == before | {directory / "shards" / "1-of-2", *(directory / "shards" / "1-of-2").iterdir()}
    assert start(shard="01/02")["trained"] == [f"momentum {index}" for index in range(SEGMENTS)]
    assert lifecycle.status(directory)[:3] == ("finished", 2 * SEGMENTS, 2 * SEGMENTS)
    assert start(shard="1/2")["trained"] == []

    start("kill", GOING)
    whole = next(path for path in (root / "tiny").iterdir() if path != directory)
    done = start(resume=str(whole), shard="0/2")
    assert done["status"] == 1
    assert "was begun as a whole" in done["log"]
    with lifecycle.hold(whole, {}):
        assert "is being worked on by" in start(resume=str(whole), shard="0/2")["log"]
        assert "is being worked on by" in start(resume=str(whole))["log"]
    assert not (whole / "shards").exists()


def test_what_a_refused_shard_of_an_earlier_version_left_is_not_in_the_way(start, tmp_path):
    start(shard="0/2")
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    (directory / "shards" / "0-of-4").mkdir()
    assert start(shard="1/2")["status"] == 0
    assert lifecycle.status(directory).state == "finished"


def test_shards_are_of_one_code(start, tmp_path):
    """And go on all the same where that is asked for."""
    start(shard="0/2")
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    other = {**hollow.HERE, "source": "other"}
    done = start(shard="1/2", here=other)
    assert done["status"] == 1
    assert "the code changed" in done["log"]
    assert f"--resume {directory} with this --shard" in done["log"]
    assert not lifecycle.begun(directory, "1/2")
    done = start(shard="1/2", resume=str(directory), here=other)
    assert "not what this run began with: the code" in done["log"]
    assert lifecycle.status(directory).state == "finished"


def test_a_fresh_shard(start, tmp_path):
    """Alone it starts a new run; beside others it may not wipe what they share, nor silently do nothing."""
    start("kill", GOING, shard="0/1")
    assert start(shard="0/1", fresh=True)["trained"] == [f"{arm} {i}" for arm in hollow.ARMS for i in range(SEGMENTS)]
    first, second = sorted((tmp_path / "runs" / "tiny").iterdir())
    assert second.name == f"{first.name}-2"
    assert (lifecycle.status(first).state, lifecycle.status(second).state) == ("killed", "finished")
    assert start(shard="0/1")["trained"] == []
    start("kill", GOING, shard="0/2", fresh=True, seeds=3)
    assert start(shard="1/2", fresh=True, seeds=3)["status"] == 0
    done = start(shard="0/2", fresh=True, seeds=3)
    assert done["status"] == 2
    assert "fresh: shard 0/2 has begun in" in done["log"]
    assert start(shard="0/2", seeds=3)["status"] == 0


@pytest.mark.parametrize("names", [("20260101-000000", "20270101-000000"), ("20270101-000000", "20260101-000000")])
def test_the_run_that_was_worked_on_last_goes_on(start, tmp_path, names):
    """Its name may be older than another one's, by a clock or a time zone that was ahead."""
    root = tmp_path / "runs"
    for name in names:
        start("kill", GOING, fresh=True)
        (made,) = (path for path in (root / "tiny").iterdir() if not path.name.startswith("x"))
        made.rename(made.with_name(f"x{name}-{made.name.rpartition('-')[2]}"))
    for time, name in zip(("2026-05-01T10:00:00+00:00", "2026-05-01T11:30:00+02:00"), names, strict=True):
        (directory,) = (root / "tiny").glob(f"x{name}-*")
        files.write_json(directory / "status.json", files.read_json(directory / "status.json") | {"started": time})
    done = start()
    assert f"continuing {next((root / 'tiny').glob(f'x{names[0]}-*'))}" in done["log"]
    # Once that one is finished, the other one is not forgotten.
    assert f"continuing {next((root / 'tiny').glob(f'x{names[1]}-*'))}" in start()["log"]


@pytest.mark.slow  # It starts processes.
def test_those_that_start_at_once_never_share(serve, tmp_path):
    """Four processes, of the whole run and of its shards in two numbers: who is not refused does its share once."""
    servers = [Server(serve.folder / f"{index}") for index in range(4)]
    for server in servers:
        server.folder.mkdir(exist_ok=True)
    shards = ("0/1", "00/1", "0/2", "1/2")
    for attempt in range(5):
        root = tmp_path / f"runs{attempt}"
        with ThreadPoolExecutor(4) as pool:
            started = [
                pool.submit(server, root, "hollow", options=("", 0, {"shard": shard}))
                for server, shard in zip(servers, shards, strict=True)
            ]
            done = [one.result() for one in started]
        assert not any("Traceback" in one["log"] for one in done)
        trained = [line for one in done for line in re.findall("trained (.*)", one["log"])]
        assert len(trained) == len(set(trained))
        (directory,) = (root / "tiny").iterdir()
        assert len({place.name.partition("-of-")[2] for place in (directory / "shards").iterdir()}) == 1
    for server in servers:
        server.process.communicate()
