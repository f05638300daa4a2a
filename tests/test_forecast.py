"""What a run says before it compiles, and while it does."""

from __future__ import annotations

import io
import os

import pytest

from plastax import output
from plastax.records.files import write_json
from plastax.study import forecast
from tests import tiny_experiment

SWEEP = ["--methods", "l2", "--sweep", "method.l2=0,1", "--seeds", "3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "2 methods, 2 seeds each: 4 networks in 2 programs, 3 tasks"),
        (["--methods", "l2", "--seeds", "1"], "1 method, 1 seed each: 1 network in 1 program, 3 tasks"),
        (SWEEP, "2 arms of 1 method, 3 seeds each: 6 networks in 1 program, 3 tasks"),
        (
            [*SWEEP, "--shard", "1/2"],
            "2 arms of 1 method, 1 of them in shard 1/2, 3 seeds each: 3 networks in 1 program, 3 tasks",
        ),
    ],
)
def test_it_says_what_will_be_trained(line, said, capsys):
    tiny_experiment.EXPERIMENT.main([*line, "--dry-run"])
    assert capsys.readouterr().out.splitlines()[0] == said


def test_it_says_what_and_where_before_it_compiles(tmp_path, capsys):
    # One of two shards: it writes no report.
    line = ["--shard", "0/2", "--tasks", "1", "--wandb", "disabled", "--runs-dir", str(tmp_path)]
    tiny_experiment.EXPERIMENT.main(line)
    *first, compiling = (lines := capsys.readouterr().out.splitlines())[:5]
    (directory,) = (tmp_path / "tiny").iterdir()
    assert first == [
        "2 methods, 1 of them in shard 0/2, 2 seeds each: 2 networks in 1 program, 1 task",
        "no probe measures anything",
        "the time left is shown once a first part is trained",
        f"run directory: {directory}",
    ]
    assert compiling == "compiling l2"
    assert any(line.startswith("l2: compiled in ") for line in lines[5:])


def test_the_time_is_that_of_the_newest_run_that_was_never_interrupted(tmp_path):
    def finished(name: str, seconds: float, **changes: object) -> None:
        place = tmp_path / name / "status.json"
        began = "2030-01-0" + name[0] + "T00:00:00+00:00"
        write_json(place, {"state": "finished", "started": began, "segments": {}, "done": 0} | changes)
        ended = 1893456000 + 86400 * (int(name[0]) - 1) + seconds
        os.utime(place, (ended, ended))

    finished("1-abc", 3.0)
    finished("2-abc", 167.0)
    finished("3-other", 5.0)
    finished("4-abc", 7.0, done=2)
    finished("5-abc", 9.0, state="failed")
    assert forecast.duration(tmp_path, "abc") == "an earlier run of these settings took 0:02:47"
    assert "time left" in forecast.duration(tmp_path / "nothing", "abc")


def test_waiting_has_a_clock_on_a_terminal_and_is_a_line_elsewhere():
    terminal = output.Console(file=io.StringIO(), force_terminal=True, width=80)
    with output.waiting(terminal, "compiling l2"):
        pass
    assert "compiling l2" in terminal.file.getvalue()
    assert "0:00:00" in terminal.file.getvalue()
    file = output.Console(file=io.StringIO(), force_terminal=False)
    with output.waiting(file, "compiling l2"):
        assert file.file.getvalue() == "compiling l2\n"
    assert file.file.getvalue() == "compiling l2\n"
