"""The best arm of a sweep: chosen on some seeds, reported on others, against the raw numbers."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
import rich.console

from plastax import report
from plastax.errors import ConfigError
from plastax.records.layout import write_json, write_segment
from plastax.report import arms, selection
from plastax.types import Record

SEEDS, TASKS, UPDATES = 6, 3, 2
ARMS = {
    "l2@l2=0": ("l2", {"method.l2": 0.0}),
    "l2@l2=0.1": ("l2", {"method.l2": 0.1}),
    "l2@l2=0.2": ("l2", {"method.l2": 0.2}),
    "reset": ("reset", {}),
}
# Of each seed. 0.1 is best on the first three seeds and worst on the others; 0.2 would be the best, but diverges.
RETURNS = {
    "l2@l2=0": [10, 11, 12, 20, 21, 22],
    "l2@l2=0.1": [30, 31, 32, 5, 6, 4],
    "l2@l2=0.2": [90, 91, np.nan, 90, 90, 90],
    "reset": [50, 51, 52, 53, 55, 54],
}


def make(directory: pathlib.Path, seeds: int = SEEDS) -> pathlib.Path:
    settings = {
        "methods": ["l2", "reset"],
        "seeds": seeds,
        "first_seed": 7,
        "tasks": TASKS,
        "updates_per_task": UPDATES,
    }
    arms = {label: {"method": method, "settings": swept} for label, (method, swept) in ARMS.items()}
    config = {"experiment": "demo", "run_id": "r", "hash": "h", "settings": settings, "arms": arms}
    write_json(directory / "config.json", config)
    for label, of_seeds in RETURNS.items():
        for task in range(TASKS):
            values = np.array(of_seeds, float)[:seeds, None] + task + np.array([-1.0, 1.0])
            host = {"clock": UPDATES * task, "length": UPDATES, "task": task}
            write_segment(directory / "records" / label, task, Record({"episode_return": values}, {}), host)
    return directory


def test_what_chooses_does_not_report(tmp_path):
    data = report.read(make(tmp_path))
    assert arms.is_sweep(data)
    frame = selection.select(data).set_index("method")
    best = frame.loc["l2"]
    assert (best["arm"], best["arms"], best["chosen_by"], best["reported_on"]) == ("l2@l2=0.1", 3, "7-9", "10-12")
    # The last third is the last task, whose number is added.
    assert (best["value_chosen_by"], best["value"], best["seeds"]) == (31 + 2, 5 + 2, 3)
    assert (best["against"], best["difference"], best["improves"]) == ("reset", 5 - 54, 0)
    assert best["value_low"] < best["value"] < best["value_high"]
    assert (frame.loc["reset", "arm"], frame.loc["reset", "arms"], frame.loc["reset", "value"]) == ("reset", 1, 56)


def test_the_tables_show_it(tmp_path):
    run = make(tmp_path)
    for show in (lambda console: report.print_table(run, console), lambda c: report.print_comparison([run], console=c)):
        console = rich.console.Console(file=io.StringIO(), width=120)
        show(console)
        printed = console.file.getvalue()
        for text in (
            "best arm",
            "chosen by seeds 7-9, reported on seeds 10-12",
            "task 2 (tasks are numbered from 0)",
            "difference to reset's best arm",
        ):
            assert text in printed


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_seeds_choose_nothing_and_it_is_said(tmp_path, seeds):
    data = report.read(make(tmp_path / "a", seeds=seeds))
    with pytest.raises(ConfigError, match=f"{seeds} are too few; give --seeds 4 or more"):
        selection.select(data)
    console = rich.console.Console(file=io.StringIO(), width=300)
    report.print_table(tmp_path / "a", console)
    assert "chosen by seeds" not in console.file.getvalue()
    assert "no best arms: best arms are chosen by half of a sweep's seeds" in console.file.getvalue()
    assert "No best arms" in report.write(tmp_path / "a").read_text()


def test_two_seeds_report_without_an_interval(tmp_path):
    frame = selection.select(report.read(make(tmp_path, seeds=4)))
    assert frame["value_low"].isna().all()
    assert "no intervals of fewer than 3 seeds" in selection.note(frame)[1]


def test_no_sweep_has_no_best(tmp_path):
    data = report.read(make(tmp_path))
    assert selection.best(data.isel(arm=slice(2, None))) == ""
    assert not arms.is_sweep(data.isel(arm=slice(2, None)))


def test_the_report_has_it(tmp_path):
    run = make(tmp_path)
    report.write(run)
    assert "7-9" in (run / "selection.csv").read_text()
    page = (run / "report.html").read_text()
    assert "Best arms" in page
    assert "chosen by seeds 7-9" in page
