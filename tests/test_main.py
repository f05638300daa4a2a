"""The command line: what it lists comes from the registries, and what it cannot use ends it with code 2."""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from plastax import __main__ as cli

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("kind", cli.REGISTRIES)
def test_list_prints_one_described_line_for_every_entry(kind: str, capsys: pytest.CaptureFixture[str]):
    registries = [getattr(importlib.import_module(module), name) for module, name in cli.REGISTRIES[kind]]
    cli.main(["list", kind])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for registry in registries for name in registry]
    assert all(len(line.split()) > 2 for line in lines), "every entry has a docstring"


def test_list_experiments_reads_them_without_running_them(tmp_path, monkeypatch, capsys):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "__init__.py").touch()
    (experiments / "a_study.py").write_text('"""What it asks.\n\nMore."""\nraise RuntimeError\n')
    (experiments / "other.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    cli.main(["list", "experiments"])
    assert capsys.readouterr().out == "a_study  What it asks.\nother\n"


def test_list_experiments_finds_the_checkout_from_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["list", "experiments"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["list", "colours"], ["kind='colours'", "experiments, methods, streams, probes, models"]),
        (["report", "no/such/run"], ["'no/such/run'", "runs/<experiment>/<run id>"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert all(part in err for part in named)


@pytest.mark.parametrize("args", [[], ["list"], ["paint"]])
def test_an_incomplete_command_is_code_2(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_report_writes_and_prints(tmp_path, monkeypatch):
    calls = []
    report = importlib.import_module("plastax.report")
    monkeypatch.setattr(report, "write", lambda run: calls.append(("write", run)))
    monkeypatch.setattr(report, "print_table", lambda run: calls.append(("print", run)))
    monkeypatch.setattr(report, "write_side_by_side", lambda runs, out: calls.append((runs, out)))
    monkeypatch.setattr(report, "print_comparison", lambda runs: calls.append(("compare", runs)))
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        run.mkdir()
        (run / "config.json").touch()
    cli.main(["report", str(one)])
    assert calls == [("write", one), ("print", one)]
    calls.clear()
    cli.main(["report", str(one), str(two), "--out", "x.html"])
    assert calls == [([one, two], pathlib.Path("x.html")), ("compare", [one, two])]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("goal", "said"),
    [("run EXP=random_labels", "random_label"), ("bench BENCH=supervise", "supervised")],
)
def test_make_names_the_nearest_before_it_installs_anything(goal: str, said: str):
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(["make", "-s", *goal.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"did you mean '{said}'?" in done.stderr
    assert "allowed: " in done.stderr
