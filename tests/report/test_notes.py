"""What is said below the numbers of a study: why some are not there, and what they are means of."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import resource
import types

import numpy as np
import pytest

from plastax import output, report
from plastax.probes import PROBES
from plastax.records.files import read_json, write_json
from plastax.records.layout import write_segment
from plastax.report import html as pages
from plastax.report import notes, table
from plastax.study.forecast import measurements, rare
from plastax.types import Record
from tests.report import test_figures as study
from tests.report import test_score as supervised


def printed(run: pathlib.Path) -> str:
    """The table and what is said below, in one line."""
    console = output.Console(file=io.StringIO(), width=200)
    report.print_table(run, console)
    return " ".join(console.file.getvalue().split())


def short_tasks(run: pathlib.Path, ended: tuple[int, ...]) -> pathlib.Path:
    """Two seeds and three tasks of two updates; episodes end in some tasks only."""
    settings = {"methods": ["backprop"], "seeds": 2, "tasks": 3, "updates_per_task": 2}
    write_json(run / "config.json", {"experiment": "e", "run_id": "r", "hash": "h", "settings": settings})
    for task in range(3):
        returns = np.full((2, 2), 1.0 if task in ended else np.nan)
        host = {"clock": 2 * task, "length": 2, "task": task}
        write_segment(run / "records" / "backprop", task, Record({"episode_return": returns}, {}), host)
    return run


@pytest.mark.parametrize(
    ("ended", "said"),
    [((), "no return: no episode ended in any task"), ((1,), "no episode ended: backprop tasks 0, 2"), ((0, 1, 2), "")],
)
def test_tasks_without_an_episode_are_named(tmp_path: pathlib.Path, ended: tuple[int, ...], said: str) -> None:
    run = short_tasks(tmp_path, ended)
    assert said in printed(run)
    assert ("no episode" in printed(run)) == bool(said)
    page = pages.page(*pages.side_by_side([report.load_run(run)]))
    assert "task is finished yet" not in page
    assert said[1:] in page


def test_what_is_hardly_measured_is_said_at_the_start() -> None:
    hessian = dataclasses.replace(PROBES["hessian"], every=8)
    config = types.SimpleNamespace(probes=("features", "hessian"), probe_every=1, tasks=8, hessian=hessian)
    assert rare(config) == ["hessian will be measured in 1 of 8 tasks, every 8 (--hessian.every)"]
    config.tasks = 40
    assert rare(config) == []
    config.probe_every, config.probes = 20, ("features",)
    assert rare(config) == ["features will be measured in 2 of 40 tasks, every 20 (--probe-every)"]
    config.tasks, config.probe_every, config.probes = 2, 1, ("features", "hessian")
    assert measurements(config) == [
        "measured at the start and the end of tasks: features in 2 tasks; hessian in 1 task",
        "hessian will be measured in 1 of 2 tasks, every 8 (--hessian.every)",
    ]


def every_third(run: pathlib.Path) -> pathlib.Path:
    """A study of fifteen tasks whose probes are due in the first only."""
    supervised.make_study(run)
    for path in sorted(run.glob("records/*/*.npz")):
        with np.load(path) as file:
            host = {k.removeprefix("host/"): float(v) for k, v in file.items() if k.startswith("host/")}
            train = {k.removeprefix("train/"): v for k, v in file.items() if k.startswith("train/")}
            probe = {k.removeprefix("probe/"): v for k, v in file.items() if k.startswith("probe/")}
        due = 1.0 if host["task"] == 0 else np.nan
        seeds = len(train["loss"])
        probe |= {"hessian/rank": np.full((seeds, 2), 300.0 * due), "hessian/rank_se": np.full((seeds, 2), 200.0 * due)}
        del host["segment"]
        write_segment(path.parent, int(path.stem), Record(train, probe), host)
    return run


def test_an_empty_column_says_when_its_probe_was_due(tmp_path: pathlib.Path) -> None:
    run = every_third(tmp_path)
    text = printed(run)
    assert "hessian was measured in task 0 only, so the last third of tasks has no value; --hessian" in text
    assert notes.NUMBERED in text
    # How well it was measured stands beside how much seeds differ.
    assert table.summary(report.read(run))["rank_first_third_se"].tolist() == [200.0] * 3
    assert "± 200" in text
    assert "± standard error of one measurement" in text


@pytest.mark.parametrize(("order", "advice"), [(64, "(--hessian.order 256)"), (None, "(--hessian.order)")])
def test_the_advice_is_never_what_the_run_has(tmp_path: pathlib.Path, order: int | None, advice: str) -> None:
    run = every_third(tmp_path)
    config = read_json(run / "config.json")
    hessian = {"order": order} if order else {}
    write_json(run / "config.json", config | {"settings": config["settings"] | {"hessian": hessian}})
    text = pages.page(*pages.side_by_side([report.load_run(run)]))
    assert "has a standard error above half its value" in text
    assert advice in text


def test_an_unfinished_arm_is_named(tmp_path: pathlib.Path) -> None:
    run = study.make_study(tmp_path, {"reset": 4})
    assert f"unfinished (finished of {study.TASKS} tasks): reset 2" in printed(run)


@pytest.mark.parametrize("tasks", [([3], "task 3"), ([3, 4, 5], "tasks 3 to 5"), ([0, 8], "tasks 0, 8")])
def test_tasks_in_words(tasks: tuple[list[int], str]) -> None:
    assert notes.task_numbers(tasks[0]) == tasks[1]


def test_a_report_that_cannot_be_written_leaves_the_old_files_whole(tmp_path: pathlib.Path) -> None:
    run = short_tasks(tmp_path, (0, 1))
    report.write(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    short_tasks(tmp_path, (0, 1, 2))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (20, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="large"):
                report.write(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if hard < 0 else hard, hard))
    for path, content in before.items():
        now = path.read_bytes()
        endings = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n", ".csv": b"\n", ".html": b"</html>"}
        assert now == content or now.endswith(endings.get(path.suffix, b""))
    assert (run / "report.html").read_bytes() == before[run / "report.html"]
    assert not list(run.rglob("*.tmp"))
