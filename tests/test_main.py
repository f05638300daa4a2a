"""The command line: what it lists comes from the registries, and what it cannot use ends it with code 2."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import plastax
from plastax import __main__ as cli
from plastax.records.files import write_json
from plastax.records.layout import write_segment
from plastax.study import settings
from plastax.types import Record
from tests.tracked import CONFIG, TASKS, segment

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("kind", cli.REGISTRIES)
def test_list_prints_one_described_line_for_every_entry(kind: str, capsys: pytest.CaptureFixture[str]):
    registries = [getattr(importlib.import_module(module), name) for module, name in cli.REGISTRIES[kind].values()]
    cli.main(["list", kind])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for registry in registries for name in registry]
    assert all(len(line.split()) > 2 for line in lines), "every entry has a docstring"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["list", "colours"], ["kind: 'colours'", "experiments, methods, streams, probes, models"]),
        (["report", "no/such/run"], ["'no/such/run'", "runs/<experiment>/<run id>"]),
        ([], ["run", "list"]),
        (["list"], ["experiments"]),
        (["run"], ["plastax list experiments"]),
        (["repotr", "x"], ["command: 'repotr' is unknown (did you mean 'report'?)"]),
        (["compare", "x", "--statistic", "median"], ["--statistic", "'median'", "iqm"]),
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


def test_list_fits_a_terminal_and_says_which_experiments_take_what(monkeypatch, capsys):
    cli.main(["list", "streams"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"cartpole_chain": "rl", "permuted": "permuted_mnist"}.items() <= {
        line[0]: line[1] for line in lines
    }.items()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(["list", "experiments"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "rl_gymnax                   rl          Continual" in printed


@pytest.mark.parametrize(
    "command", ["", "run", "sweep", "list", "compare", "predict", "report", "export", "runs", "data"]
)
def test_help_of_commands_fits_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    _, *lines = capsys.readouterr().out.splitlines()  # The first names all commands.
    assert max(map(len, lines)) <= 80


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"plastax {plastax.__version__}\n"


@pytest.fixture
def a_run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run that has nothing but records."""
    directory = tmp_path / "run"
    write_json(directory / "config.json", CONFIG)
    for task in range(TASKS):
        train, probe, host = segment(task)
        write_segment(directory / "records" / "l2_er", task, Record(train, probe), host)
    return directory


COMMANDS = """
import sys
import plastax
from plastax import __main__ as cli
for command in ("report", "export", "wandb-export"):
    try:
        cli.main([command, sys.argv[1]])
    except SystemExit as stopped:
        print("status", stopped.code, flush=True)
"""


@pytest.mark.slow  # It starts a process.
def test_a_run_that_cannot_be_written_is_one_line_with_a_remedy(a_run):
    # Nothing is closed to root, unless it gives that right away.
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    if rights and subprocess.run([*rights, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs setpriv, or another user than root")
    before = sorted(a_run.rglob("*"))
    a_run.chmod(0o555)
    script = [*rights, sys.executable, "-c", COMMANDS, str(a_run)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    a_run.chmod(0o755)
    assert sorted(a_run.rglob("*")) == before
    assert done.stdout == "status 2\n" * 3, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    for line in lines:
        assert line.startswith(f"error: {a_run}")
        assert line.endswith("Permission denied; --out names another place to write to")


@pytest.mark.slow  # Whole reports.
def test_reports_go_where_they_are_asked_to(a_run, tmp_path, capsys):
    before = sorted(a_run.rglob("*"))
    cli.main(["report", str(a_run), "--out", str(tmp_path / "mine" / "page.html")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "mine" / "page.html")
    assert {"page.html", "summary.csv", "figures"} <= {path.name for path in (tmp_path / "mine").iterdir()}
    other = pathlib.Path(shutil.copytree(a_run, tmp_path / "other"))
    cli.main(["report", str(a_run), str(other), "--out", str(tmp_path / "both.html")])
    printed = capsys.readouterr().out
    assert [name for name in "AB" if re.search(rf"^\s*{name}\s+l2_er\b", printed, re.MULTILINE)] == ["A", "B"]
    assert (tmp_path / "both.html").stat().st_size > 1000
    assert sorted(a_run.rglob("*")) == before


@pytest.mark.parametrize("start", [lambda run: cli.main(["export", "a"]), settings.main])
def test_an_interrupt_is_one_line(start, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.loading, "find", interrupted)
    with pytest.raises(SystemExit) as stopped:
        start(interrupted)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_errors_of_our_own_are_not_taken_for_the_users(monkeypatch):
    def broken(*args):
        raise OSError(errno.EBADF, "a bug")

    monkeypatch.setattr(cli.loading, "find", broken)
    with pytest.raises(OSError, match="a bug"):
        cli.main(["export", "a"])


NOTEBOOK = "module://matplotlib_inline.backend_inline"  # What its kernel tells the programs that it starts.


@pytest.mark.parametrize("backend", [NOTEBOOK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("", "svg"))])
def test_reports_are_drawn_whatever_backend_is_named(backend):
    code = (
        "from plastax.drawing import import_matplotlib as load; load(); load()\n"
        "import matplotlib, os, matplotlib.pyplot as p; p.figure()\n"
        "from plastax.report import figures; print(matplotlib.get_backend(), os.environ['MPLBACKEND'], sep=',')"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    script = [sys.executable, "-c", code]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    used, _, kept = done.stdout.strip().partition(",")
    assert kept == backend, done.stderr
    assert used == "svg" or backend != "svg"
    assert used


HEAVY = ["wandb", "plotly", "matplotlib", "submitit", "gymnax", "sklearn", "orbax", "xarray", "pandas"]


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("plastax.__main__", [*HEAVY, "jax"]),
        ("plastax.report, plastax.records.loading", [*HEAVY, "jax", "scipy"]),
        ("plastax.curvature", [*HEAVY, "flax"]),
        ("experiments.rl_gymnax", HEAVY),
    ],
)
def test_heavy_packages_are_imported_on_use(imported, absent):
    code = f"import sys, {imported}; print(*sys.modules.keys() & set({absent}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
