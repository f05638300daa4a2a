"""Objects of one's own in the place of names: on the command line, in Python, in records, and after an interruption."""

from __future__ import annotations

import dataclasses
import importlib
import json
import linecache
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import optax
import pytest

from experiments import random_label, rl_gymnax
from plastax import __main__ as cli
from plastax import methods
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import ACTOR_CRITICS, SUPERVISED
from plastax.records import environment, layout
from plastax.study import catalogue, configuration, names, settings, starting, sweep
from plastax.study.preparing import method_of, probes_of, transformation
from tests import tiny_experiment
from tests.own_objects import OWN

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A folder with a package ``mylab`` and a file ``loose.py``, where the process works."""
    folder = tmp_path / "lab"
    (folder / "mylab").mkdir(parents=True)
    (folder / "mylab" / "__init__.py").write_text("")
    (folder / "mylab" / "own.py").write_text(OWN)
    (folder / "mylab" / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "loose.py").write_text(OWN)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield folder
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("mylab", "loose"):
            del sys.modules[name]


@pytest.fixture
def installed(lab: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """``mylab`` as an installed package, with entry points."""
    info = lab / "my_lab-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("mylab\n")
    (info / "entry_points.txt").write_text(
        "[plastax.methods]\nshrinker = mylab.own:CPR\nl2 = mylab.own:L2\nbroken = mylab.broken:CPR\n"
        "[plastax.probes]\nmy_norm = mylab.own:MyNorm\n[plastax.environments]\nwindy = mylab.own:Windy\n"
        "[plastax.streams]\nrising = mylab.own:Rising\n"
    )
    monkeypatch.syspath_prepend(lab)
    return lab


def parse(line: str):
    return rl_gymnax.EXPERIMENT.parse(line.split())


def configure(study: ModuleType, values: dict[str, Any]):
    experiment = study.EXPERIMENT
    return configuration.configure(experiment.config, experiment.presets, experiment.choices, values)


@pytest.fixture
def own(lab: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What ``mylab.own`` holds."""
    monkeypatch.syspath_prepend(lab)
    return importlib.import_module("mylab.own")


def test_settings_of_own_objects(lab):
    config = parse(
        "--methods backprop mylab.own:CPR l2+loose.py:strong mylab.own:Nothing --cpr.rate 0.25 --strong.rate 0.75 "
        "--probes features mylab.own:MyNorm --my-norm.power 2"
    )
    assert config.methods == ("backprop", "mylab.own:CPR", "l2+loose.py:strong", "mylab.own:Nothing")
    assert (config.cpr.rate, config.strong.rate, config.my_norm.power) == (0.25, 0.75, 2.0)
    assert [arm.label for arm in sweep.arms(config)] == ["backprop", "cpr", "l2+strong", "nothing"]
    assert type(method_of(config, "cpr")).__name__ == "CPR"
    assert method_of(config, "l2+strong").parts == (METHODS["l2"], config.strong)
    model = ACTOR_CRITICS["mlp"].build((4,), 2, continuous=False)
    assert [probe.name for probe in probes_of(config, model, 1e-3, 1)] == ["features", "my_norm"]


def test_the_settings_of_the_only_method(lab):
    assert parse("--method mylab.own:CPR --method.rate 0.25").cpr.rate == 0.25


def test_own_settings_are_swept(lab):
    line = "--methods backprop mylab.own:CPR l2 --sweep cpr.rate=0.1,0.2 --sweep method.l2=1"
    assert [arm.label for arm in sweep.arms(parse(line))] == ["backprop", "cpr@rate=0.1", "cpr@rate=0.2", "l2@l2=1"]
    wide = parse("--methods l2 --model mylab.own:Net --sweep model.width=3,4")
    assert [arm.config.model_settings.width for arm in sweep.arms(wide)] == [3, 4]
    groups = sweep.together(sweep.arms(parse(line)))
    assert [len(group) for group in groups] == [1, 2, 1]
    with pytest.raises(ConfigError, match=r"'cpr.rat' is unknown \(did you mean 'cpr.rate'"):
        sweep.arms(parse("--methods mylab.own:CPR --sweep cpr.rat=1"))
    with pytest.raises(ConfigError, match=r"my_norm\.power"):
        sweep.arms(parse("--probes mylab.own:MyNorm --sweep my-norm.power=1"))


def test_all_are_those_of_plastax(installed):
    """So that the same line means the same on every machine."""
    assert parse("--methods all").methods == tuple(METHODS)


def test_an_own_model_takes_no_settings_of_another(lab):
    """The preset is for a network with a setting ``hidden``."""
    config = random_label.EXPERIMENT.parse(["--preset", "smoke", "--model", "mylab.own:Net", "--model.width", "3"])
    assert dataclasses.asdict(config.model_settings) == {"width": 3}
    assert settings.to_json(config)["model"] == "mylab.own:Net"
    with pytest.raises(ConfigError, match=r"layernorm needs the option 'layer_norm' of the model, which .*Net"):
        settings.with_options(config.model_settings, config.model, "layernorm", METHODS["layernorm"].model_options)


def test_an_own_stream(lab):
    config = parse("--stream loose.py:Windy --stream.wind 3 --stream.sigma 1")
    assert (config.stream_settings.wind, config.stream_settings.sigma) == (3.0, 1.0)


def test_own_data(lab):
    np.savez("mine.npz", x=np.arange(120.0).reshape(30, 4), y=np.arange(30) % 3)
    checksums = set()
    for given in ("mine.npz", "mylab.own:images", "loose.py:images"):
        config = random_label.EXPERIMENT.parse(["--data", given])
        assert config.data == given
        checksums.add(random_label.EXPERIMENT.share(config).recorded["data_checksum"])
    assert len(checksums) == 1


def test_objects_in_python(own):
    given = {"preset": "smoke", "methods": ["backprop", own.CPR(0.25), methods.L2(0.5)], "probes": [own.MyNorm]}
    config = configure(rl_gymnax, given | {"stream": own.Windy(wind=2.0)})
    assert config.methods == ("backprop", "mylab.own:CPR", "l2")
    assert (config.cpr.rate, config.l2.l2, config.stream_settings.wind) == (0.25, 0.5, 2.0)
    line = "--preset smoke --methods backprop mylab.own:CPR l2 --cpr.rate 0.25 --l2.l2 0.5 --probes mylab.own:MyNorm"
    same = parse(f"{line} --stream mylab.own:Windy --stream.wind 2")
    assert settings.to_json(config) == settings.to_json(same)
    assert settings.fleeting(config) == []


def test_objects_win_over_a_preset_and_settings_over_objects(own):
    given = {"preset": "smoke", "model": SUPERVISED["mlp"], "methods": own.CPR(0.25), "cpr.rate": 0.75}
    config = configure(random_label, given)
    assert config.model_settings == SUPERVISED["mlp"]
    assert config.model_settings.hidden != random_label.PRESETS["smoke"]["model_settings.hidden"]
    assert config.cpr.rate == 0.75


def test_defaults_of_an_experiment_may_be_objects(own):
    presets = {"default": {"methods": ("l2", own.CPR(0.25)), "cpr.rate": 0.5}}
    config = dataclasses.replace(tiny_experiment.EXPERIMENT, presets=presets).parse([])
    assert (config.methods, config.cpr.rate) == (("l2", "mylab.own:CPR"), 0.5)


def test_what_nobody_else_can_find_is_said():
    """Neither what a function defines, nor what a notebook does, can be found by a command line."""

    @dataclasses.dataclass(frozen=True)
    class Local(methods.L2):
        """Defined in a function."""

    config = configure(tiny_experiment, {"methods": [Local(0.5)]})
    assert settings.label(config.methods[0]) == "local"
    assert config.local.l2 == 0.5
    (line,) = settings.fleeting(config)
    assert "only this program can continue the run" in line
    with pytest.raises(ConfigError, match="__main__:Local was made in a script or notebook; continue there"):
        parse("--methods __main__:Local")


def test_what_a_notebook_defines_counts_by_its_text(monkeypatch):
    """Python finds the lines of a cell; of what was typed without one, it finds none, and that is said."""

    def typed(cell: str, rate: float):
        text, name = f"class Typed(L2):\n    def build(self, inner, model=None): return {rate}\n", f"<{cell}>"
        if cell:
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {"__name__": "__main__", "L2": methods.L2}
        exec(compile(text, name, "exec"), namespace)
        config = configure(tiny_experiment, {"methods": [namespace["Typed"]()]})
        return settings.origins(config)["typed"]["source"], settings.fleeting(config)

    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    one, lines = typed("cell 1", 0.1)
    assert one == typed("cell 2", 0.1)[0] != typed("cell 3", 0.2)[0]
    assert len(lines) == 1
    unknown, lines = typed("", 0.1)
    assert unknown == ""
    assert lines[1] == "__main__:Typed: the source is not known, so no change of it will be noticed"


def test_entry_points_of_installed_packages(installed):
    config = parse("--methods shrinker --shrinker.rate 0.5 --probes my_norm --stream windy --stream.wind 2")
    assert (config.methods, config.shrinker.rate, config.stream_settings.wind) == (("shrinker",), 0.5, 2.0)
    origin = settings.origins(config)["shrinker"]
    assert (origin["name"], origin["module"], origin["object"]) == ("shrinker", "mylab.own", "CPR")
    assert origin["version"] == "1.2"


def test_entry_points_are_listed(installed, capsys):
    cli.main(["list", "methods"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["shrinker"] == "Takes a part of the parameters away."
    assert "mylab.broken cannot be imported" in lines["broken"]
    assert lines["reset"]


def test_a_broken_entry_point_is_named_and_others_work(installed):
    found = names.of_packages("methods", METHODS)
    assert found["shrinker"].rate == 0.001
    assert "broken of my-lab 1.2: mylab.broken cannot be imported: ModuleNotFoundError" in str(found["broken"])
    assert "l2 is plastax's; give mylab.own:L2" in str(found["l2"])
    with pytest.raises(ConfigError, match=r"my-lab 1\.2"):
        parse("--methods broken")
    assert parse("--methods l2").methods == ("l2",)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("--methods nolab.own:CPR", ("there is no module 'nolab'", "PYTHONPATH")),
        ("--methods mylab.out:CPR", ("there is no module 'mylab.out'",)),
        (
            "--methods mylab.broken:CPR",
            ("mylab.broken cannot be imported", "broken.py, line 1", "nothing_of_this_name"),
        ),
        ("--methods nothing.py:CPR", ("there is no file nothing.py",)),
        ("--methods mylab.own:CRP", ("has no object 'CRP'", "did you mean 'CPR'")),
        ("--methods mylab.own:function", ("is a function", "build(inner, model)")),
        ("--methods mylab.own:images", ("is an object of tuple",)),
        ("--methods mylab.own:MyNorm", ("has no", "needs_boundary", "build(inner, model)")),
        ("--probes mylab.own:CPR", ("has no name, every", "build(model)")),
        ("--methods mylab.own:Narrow", ("build(inner)", "build(inner, model)")),
        ("--methods mylab.own:Bare", ("no @dataclass(frozen=True)", "strength")),
        ("--methods mylab.own:Lambda", ("the name 'lambda' is taken",)),
        ("--methods mylab.own:Needy", ("give every field a default", "rate")),
        ("--model mylab.own:CPR", ("build(inner, model)", "continuous")),
        ("--stream mylab.own:Net", ("has no spaces",)),
        ("--methods mylab.own:L2", ("the name 'l2' is taken", "rename")),
        ("--methods mylab.own:CPR mylab.own:Cpr", ("are both called 'cpr'",)),
        ("--methods mylab.own:CPR loose.py:CPR", ("are both called 'cpr'",)),
        ("--methods mylab.own:CPR mylab.own:CPR", ("twice", "sweep")),
        ("--methods crp", ("'crp' is unknown", "module:object")),
    ],
)
def test_refusals_name_the_object_what_it_has_and_what_is_needed(lab, line, parts, assert_nothing_compiles):
    with assert_nothing_compiles(), pytest.raises(ConfigError) as error:
        parse(line)
    assert "\n" not in str(error.value)
    for part in (line.partition(" ")[0].strip("-"), line.split()[-1], *parts):
        assert part in str(error.value)


def test_an_object_that_can_change_is_refused(own):
    with pytest.raises(ConfigError, match="needed is a frozen dataclass"):
        configure(rl_gymnax, {"methods": [own.Changing([1])]})
    with pytest.raises(ConfigError, match=r"can change.*frozen=True"):
        configure(rl_gymnax, {"methods": [own.CPR([1])]})


def test_a_file_called_as_another_module_is_refused(lab):
    (lab / "json.py").write_text(OWN)
    with pytest.raises(ConfigError, match=r"another module is called json .*rename the file"):
        parse("--methods json.py:CPR")


def test_what_an_own_probe_builds_is_looked_at(lab):
    model = ACTOR_CRITICS["mlp"].build((4,), 2, continuous=False)
    for name, said in (
        ("Hidden", r"hidden records its values as features/\.\.\., as another probe"),
        ("Empty", "empty.build gives NoneType"),
    ):
        with pytest.raises(ConfigError, match=said):
            probes_of(parse(f"--probes features loose.py:{name}"), model, 1e-3, 1)


def test_what_an_own_method_builds_is_looked_at(own):
    """A plain optax transformation will do: it need not take what methods are told."""
    model = ACTOR_CRITICS["mlp"].build((4,), 2, continuous=False)
    decay = transformation(own.Decay(), optax.sgd(1.0), model)
    assert decay.update(2.0, decay.init(1.0), 1.0, clock=0)[0] == -2.0
    with pytest.raises(ConfigError, match=r"Void.build gives NoneType; an optax transformation is needed"):
        transformation(own.Void(), optax.sgd(1.0), model)


@pytest.mark.parametrize("name", ["mylab.own:Rising", "rising"])
def test_an_own_stream_of_images_is_an_experiment(installed, name):
    experiment = catalogue.find(name)
    config = experiment.parse(["--stream.examples", "7", "--methods", "mylab.own:CPR"])
    assert (experiment.name, config.stream.examples) == ("rising", 7)
    assert settings.origins(config).keys() == {"stream", "cpr"}


def test_help_shows_own_settings(lab, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse("--methods mylab.own:CPR --probes mylab.own:MyNorm --help")
    text = capsys.readouterr().out
    for part in ("--cpr.rate", "The part that a step takes", "--my-norm.power", "An exponent"):
        assert part in text


def test_records_say_where_objects_come_from(lab):
    config = parse("--methods l2 mylab.own:CPR --model loose.py:Net")
    origins = settings.origins(config)
    assert origins.keys() == {"cpr", "model"}
    assert origins["model"] | {"source": ""} == {
        "name": "loose.py:Net", "module": "loose", "object": "Net", "source": "", "version": "",
    }  # fmt: skip
    assert origins["cpr"]["source"] == origins["model"]["source"]
    assert len(origins["cpr"]["source"]) == 64
    assert settings.origins(parse("--methods l2")) == {}


def test_a_changed_source_is_another_run(lab, tmp_path):
    """It is not continued by itself, and refused by --resume; a change elsewhere is none."""
    experiment = tiny_experiment.EXPERIMENT.parse(["--methods", "l2", "mylab.own:CPR", "--runs-dir", str(tmp_path)])
    chosen = settings.to_json(experiment)

    def here():
        code = [one for named in experiment.own["methods"].values() for one in named.code]
        return environment.environment(code)

    directory, run_id, _ = starting.run_directory(experiment, "tiny", chosen, here())
    described = {"experiment": "tiny", "run_id": run_id, "hash": settings.identity(chosen), "settings": chosen}
    layout.start_run(directory, described | {"own": settings.origins(experiment)}, here())
    (lab / "loose.py").write_text("changed")
    assert starting.run_directory(experiment, "tiny", chosen, here())[0] == directory
    resumed = dataclasses.replace(experiment, resume=directory)
    assert starting.run_directory(resumed, "tiny", chosen, here())[2] == ""
    (lab / "mylab" / "own.py").write_text(OWN + "\n# changed\n")
    other, _, note = starting.run_directory(experiment, "tiny", chosen, here())
    assert other != directory
    assert "since then the code of mylab.own changed" in note
    with pytest.raises(ConfigError, match=r"resume: the source of mylab.own has changed since .*mylab.own:CPR"):
        starting.run_directory(resumed, "tiny", chosen, here())


def run(lab: pathlib.Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in the folder of the own package, which is no part of Python's path."""
    there = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"} | variables
    start = [sys.executable, "-m", "tests.tiny_experiment", "--runs-dir", "runs", "--wandb", "disabled", "--no-report"]
    return subprocess.run([*start, *words], cwd=lab, env=there, capture_output=True, text=True, check=False)


def test_killed_refused_with_another_source_and_resumed(lab, capsys):
    line = "--methods mylab.own:CPR --seeds 1 --checkpoint-every 1 --sweep cpr.rate=0.1,0.2"
    assert run(lab, *line.split(), DIE_AT="5").returncode == -9
    (directory,) = (lab / "runs" / "tiny").iterdir()
    (lab / "mylab" / "own.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(SystemExit) as stopped:
        tiny_experiment.EXPERIMENT.main(["--resume", str(directory)])
    refused = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "the source of mylab.own has changed" in refused
    assert refused.count("\n") == 1
    (lab / "mylab" / "own.py").write_text(OWN)
    done = run(lab, "--resume", str(directory))
    assert done.returncode == 0, done.stderr
    described = json.loads((directory / "config.json").read_text())
    assert described["own"]["cpr"]["name"] == "mylab.own:CPR"
    assert described["settings"]["methods"] == ["mylab.own:CPR"]
    assert [*described["arms"]] == ["cpr@rate=0.1", "cpr@rate=0.2"]
    assert {path.name for path in (directory / "records").iterdir()} == {*described["arms"]}
