"""Experiments by name, and the wheel that brings them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

from plastax import __main__ as cli
from plastax.errors import ConfigError
from plastax.study import catalogue
from tests import tiny_experiment

ROOT = pathlib.Path(__file__).parent.parent
STUDY = '''"""A study."""
import beside
from tests import tiny_experiment
EXPERIMENT = OTHER = tiny_experiment.EXPERIMENT
NUMBER = beside.NUMBER
'''


@pytest.fixture
def my_study(tmp_path, monkeypatch):
    """A file that imports another one of its folder."""
    (tmp_path / "my_study_of_labels.py").write_text(STUDY)
    (tmp_path / "beside.py").write_text("NUMBER = 3\n")
    monkeypatch.syspath_prepend(ROOT)  # It also restores the path.
    yield tmp_path / "my_study_of_labels.py"
    for name in ("my_study_of_labels", "beside"):
        sys.modules.pop(name, None)


def test_every_experiment_of_plastax_is_found_under_its_name():
    names = list(catalogue.described())
    assert names == sorted({path.stem for path in (ROOT / "experiments").glob("[!_]*.py")} - {"claims"})
    assert [catalogue.find(name).name for name in names] == names


@pytest.mark.parametrize("suffix", ["", ":OTHER"])
def test_an_experiment_in_a_file_or_a_module_of_ones_own(suffix, my_study, monkeypatch):
    assert catalogue.find(f"{my_study}{suffix}") is tiny_experiment.EXPERIMENT
    monkeypatch.chdir(my_study.parent)
    assert catalogue.find(f"my_study_of_labels.py{suffix}") is tiny_experiment.EXPERIMENT
    assert catalogue.find(f"tests.tiny_experiment{suffix.replace('OTHER', 'EXPERIMENT')}") is tiny_experiment.EXPERIMENT


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rl_gymnx", "'rl_gymnx' is unknown (did you mean 'rl_gymnax'?)"),
        ("no_file.py", "no file no_file.py"),
        ("mylab.studies:X", "no module 'mylab'"),
        ("json:loads", "json has an object of type function called loads"),
        ("json.decoder", "json.decoder has no object 'EXPERIMENT'"),
    ],
)
def test_what_is_no_experiment_is_one_line(name, said, capsys):
    with pytest.raises(ConfigError) as error:
        catalogue.find(name)
    assert said in str(error.value)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", name, "--seeds", "1"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"


def test_a_module_that_an_experiment_misses_is_not_taken_for_the_experiment(tmp_path, monkeypatch):
    (tmp_path / "lacks.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks cannot be imported.*lacks\.py, line 1 .*no_such_module"):
        catalogue.find("lacks:EXPERIMENT")


def test_run_hands_the_line_to_the_experiment(tmp_path, capsys):
    line = ["--dry-run", "--seeds", "3", "--runs-dir", str(tmp_path / "runs")]
    cli.main(["run", "tests.tiny_experiment", *line])
    assert "3 seeds" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return pathlib.Path(path)


def test_the_wheel_has_the_experiments_and_the_command_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {pathlib.PurePath(name) for name in archive.namelist()}
        (entry_points,) = (name for name in names if name.name == "entry_points.txt")
        assert "plastax = plastax.__main__:main" in archive.read(str(entry_points)).decode()
    inside = {path.relative_to("plastax/experiments").as_posix() for path in names if path.match("experiments/*")}
    assert inside == {path.name for path in (ROOT / "experiments").glob("*") if path.suffix in (".py", ".md")}
    assert {name.parts[0].partition("-")[0] for name in names} == {"plastax", "plastax_lab"}
    kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / "plastax").rglob("*.py")}
    assert kept <= {name.as_posix() for name in names}


@pytest.mark.slow  # It makes an environment and compiles a study.
def test_what_the_wheel_brings_runs_where_there_is_nothing_else(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "empty").mkdir()

    def run(*line: str) -> str:
        done = subprocess.run(
            line, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    # What plastax needs comes from the environment of this process; its own .pth files count in no other.
    site = pathlib.Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "needed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = str(python.parent / "plastax")
    assert str(site) in run(str(python), "-c", "import plastax; print(plastax.__file__)")
    assert "rl_gymnax" in run(command, "list", "experiments")
    line = "run rl_gymnax --preset smoke --methods backprop --seeds 1 --tasks 2 --probes none --wandb disabled"
    assert "Everything is in runs/rl_gymnax/" in run(command, *line.split())
    assert len(list((tmp_path / "empty" / "runs" / "rl_gymnax").glob("*/report.html"))) == 1
    assert "rl_gymnax" in run(str(python), "-m", "plastax", "runs")
