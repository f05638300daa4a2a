"""A study from Python: the same run as by the command line, and what can be read from it afterwards."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

import plastax
from plastax.errors import ConfigError, RecordError
from plastax.methods import L2
from plastax.records import layout
from plastax.rl.ppo import PPO
from plastax.runs import signals
from plastax.runs.networks import TaskEnd
from plastax.streams import RandomLabel
from plastax.study import settings
from tests import tiny_experiment

ROOT = pathlib.Path(__file__).parent.parent
SWEEP = {"sweep": ["training.learning_rate=0.1,0.01"], "methods": ["l2"]}


def tiny(runs: pathlib.Path, **options: Any) -> plastax.Study:
    options = {"report": False} | options
    return plastax.Study(tiny_experiment.EXPERIMENT, runs_dir=runs, wandb="disabled", **options)


def numbers(run: str | os.PathLike[str]) -> dict[str, bytes]:
    """All that a run has recorded, without the host's seconds."""
    config, found = layout.read_config(run), {}
    for arm in layout.arm_labels(config):
        for i, segment in enumerate(layout.read_arm(run, config, arm)):
            found |= {f"{arm}/{i}/{name}": value.tobytes() for name, value in (segment.train | segment.probe).items()}
    return found


@pytest.fixture(scope="module")
def seen() -> list[TaskEnd]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, seen: list[TaskEnd]) -> plastax.Run:
    return tiny(tmp_path_factory.mktemp("runs"), keep_params=2, report=True).run(seen.append)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> plastax.Run:
    return tiny(tmp_path_factory.mktemp("runs"), **SWEEP).run()


def test_the_run_is_that_of_the_command_line(run: plastax.Run, tmp_path: pathlib.Path):
    tiny_experiment.EXPERIMENT.main(["--runs-dir", str(tmp_path), "--wandb", "disabled", "--no-report"])
    (other,) = tmp_path.glob("tiny/*")
    assert numbers(run) == numbers(other)
    assert plastax.open(other).status.state == run.status.state == "finished"
    assert [(path / "report.html").exists() for path in (run.directory, other)] == [True, False]
    mine, its = run.config, layout.read_config(other)
    assert mine["hash"] == its["hash"]
    assert run.directory.name.endswith(other.name.rpartition("-")[2])
    asides = {"run_id", "settings"}
    assert {k: v for k, v in mine.items() if k not in asides} == {k: v for k, v in its.items() if k not in asides}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"stream": "random_label", "preset": "smoke"}, "--preset smoke"),
        ({"stream": RandomLabel(examples=70), "tasks": 3}, "--stream.examples 70 --tasks 3"),
        ({"experiment": "random_label", "training": {"learning_rate": 1}}, "--training.learning-rate 1"),
        # With 10 updates, training refuses 9 epochs.
        (
            {"stream": "random_label", "training": {"epochs": 4, "updates": 2}},
            "--training.epochs 4 --training.updates 2",
        ),
        (
            {"stream": "random_label", "methods": ["l2", "er"], "l2.l2": 1, "er": {"er_lr": 2}},
            "--methods l2 er --l2.l2 1 --er.er-lr 2",
        ),
        ({"stream": "random_label", "model": {"hidden": [8, 8]}, "lr": 0.1}, "--model.hidden 8 8 --lr 0.1"),
        ({"stream": "random_label", "methods": ["l2+redo", L2(0.5)]}, "--methods l2+redo l2 --l2.l2 0.5"),
        ({"stream": "random_label", "probes": []}, "--probes none"),
        (
            {"stream": "random_label", "probes": ["hessian"], "settings": {"hessian.order": np.int64(9)}},
            "--probes hessian --hessian.order 9",
        ),
        ({"stream": "cartpole_chain", "agent": "dqn", "lr": 0.1}, "--agent dqn --lr 0.1"),
        (
            {"stream": "minatar_chain", "preset": "minatar", "training": {"n_step": 2}},
            "--preset minatar --stream minatar_chain --dqn.n-step 2",
        ),
        (
            {"stream": "random_label", "sweep": {"method.l2": [0, 0.1], "model.hidden": [(8, 8), (9,)]}},
            "--sweep method.l2=0,0.1 --sweep 'model.hidden=8 8,9'",
        ),
    ],
)
def test_settings_are_those_of_the_command_line(options: dict[str, Any], line: str):
    study = plastax.Study(options.pop("experiment", None), **options)
    assert settings.to_json(study.config) == settings.to_json(study.experiment.parse(shlex.split(line)))


def test_a_stream_of_environments_is_of_its_experiment():
    study = plastax.Study(stream="acrobot_chain", training={"learning_rate": 1e-3})
    assert (study.experiment.name, study.config.stream, study.config.ppo.learning_rate) == (
        "rl_gymnax", "acrobot_chain", 1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "stream: none is given"),
        ({"stream": "random_labels"}, "stream: 'random_labels' is unknown .did you mean 'random_label'"),
        ({"experiment": "rl_gymnasium"}, "experiment: 'rl_gymnasium' is unknown"),
        ({"experiment": 3}, "experiment: 3 is not allowed"),
        ({"stream": "random_label", "seed": 3}, "settings: 'seed' is unknown .did you mean 'seeds'"),
        ({"stream": "random_label", "seeds": 2.5}, "seeds: 2.5 is not allowed; give int"),
        ({"stream": "random_label", "tasks": 0}, "tasks: 0 is not allowed"),
        ({"stream": "random_label", "training": 3}, "training: 3 is not allowed; give Training"),
        ({"stream": "random_label", "training": {"lr": 3}}, "did you mean 'training.learning_rate'"),
        ({"stream": "random_label", "settings": {"hessian.ordr": 3}}, "did you mean 'hessian.order'"),
        ({"stream": "random_label", "settings": {"hesian.order": 3}}, "did you mean 'hessian.order'"),
        ({"stream": "random_label", "settings": {"method.l2": 3}}, "6 methods are chosen"),
        ({"stream": "random_label", "wandb": "yes"}, "wandb: 'yes' is not allowed; give 'offline' . 'online'"),
        (
            {"stream": "random_label", "methods": ["l2"], "redo": {"period": 3}},
            "redo.period: no effect with methods l2",
        ),
        ({"stream": "cartpole_chain", "agent": "dqn", "ppo": PPO()}, "ppo: no effect with agent dqn; name ppo there"),
        ({"stream": "random_label", "methods": [object()]}, "methods: .*object.*needed is a frozen dataclass"),
        ({"stream": "random_label", "name": "a/b"}, "name: 'a/b' is not allowed"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(options: dict[str, Any], words: str):
    options = dict(options)
    with pytest.raises(ConfigError, match=words):
        plastax.Study(options.pop("experiment", None), **options)


def test_what_does_not_fit_together_is_refused_by_run(tmp_path: pathlib.Path):
    common = {"stream": "random_label", "runs_dir": tmp_path}
    with pytest.raises(ConfigError, match="data: item 0"):
        plastax.Study(**common, data=[1, 2]).run()
    with pytest.raises(ConfigError, match=r"model.hidden|hidden layers"):
        plastax.Study(**common, methods=["l2_er"], model={"hidden": ()}).run()
    assert not list(tmp_path.iterdir())


def test_a_study_prints_as_it_was_made():
    study = plastax.Study("random_label", seeds=2, methods=[L2(0.5)], data=(np.ones((60, 5)), np.arange(60) % 3))
    assert repr(study).startswith("Study(experiment='random_label', methods=[L2(l2=0.5)], seeds=2, data=(array(")
    assert len(repr(study)) < 200
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.config = None  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Halves:
    """The first half of the classes, or the second."""

    needs_data = True
    examples: int = 20

    def build(self, dataset: Any) -> Any:
        return RandomLabel(examples=self.examples).build(dataset)


def test_own_stream_and_data_make_an_experiment(tmp_path: pathlib.Path):
    x, y = np.random.default_rng(0).random((60, 5)), np.arange(60) % 3
    study = plastax.Study(
        stream=Halves(examples=30), data=(x, y), methods=["backprop"], probes=[], seeds=1, tasks=1, runs_dir=tmp_path,
        model={"hidden": (4,)}, training={"batch_size": 10, "epochs": 1, "updates": 1}, wandb="disabled", name="mine",
        report=False,
    )  # fmt: skip
    run = study.run()
    assert run.directory.parent == tmp_path / "mine"
    assert run.params()["dense_0"]["kernel"].shape == (1, 5, 4)
    assert run.config["settings"]["stream"] == {"examples": 30}
    assert run.config["own"]["stream"]["object"] == "Halves"


def test_the_callback_sees_every_network_after_every_task(run: plastax.Run, seen: list[TaskEnd]):
    assert [(end.arm, end.task) for end in seen] == [(arm, task) for arm in run.arms for task in range(3)]
    assert {end.directory for end in seen} == {run.directory}
    for end in seen:
        assert end.params["kernel"].shape == (2, 3)
        assert end.stats == end.statistics == {}
        if end.task > 0:
            for seed in range(2):
                there = run.params(end.arm, seed, end.task)["kernel"]
                np.testing.assert_array_equal(there, end.params["kernel"][seed])


def test_the_callback_changes_no_number_and_its_error_loses_none(run: plastax.Run, tmp_path: pathlib.Path):
    def spoil(end: TaskEnd) -> None:
        end.params["kernel"][:] = np.nan
        if end.arm == "weight_decay" and end.task == 1:
            raise ZeroDivisionError("mine")

    study = tiny(tmp_path, checkpoint_every=1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        study.run(spoil)
    (directory,) = tmp_path.glob("tiny/*")
    stopped = plastax.open(directory)
    assert (stopped.status.state, stopped.status.detail) == ("failed", "mine")
    before = numbers(stopped)
    assert before.items() < numbers(run).items()
    again = study.run()
    assert again == stopped
    assert numbers(again) == numbers(run)


PROGRAM = """
    import dataclasses, os, signal, sys
    import optax
    import plastax
    from plastax.methods import base
    from tests import tiny_experiment

    @dataclasses.dataclass(frozen=True)
    class Halved(base.Settings):
        "Half of every step."

        factor: float = 0.5

        def build(self, inner, model=None):
            return optax.chain(inner, optax.scale(self.factor))

    def kill(end):
        if os.environ.get("KILL") == f"{end.arm} {end.task}":
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        for runs in sys.argv[1:]:
            study = plastax.Study(tiny_experiment.EXPERIMENT, methods=["l2", Halved(0.25)], runs_dir=runs,
                                  wandb="disabled", checkpoint_every=1)
            print(study.run(kill).directory)
"""


@pytest.mark.slow  # three starts of a process; `test_names` has a fast one by the command line
def test_objects_of_a_script_train_and_survive_a_kill(tmp_path: pathlib.Path):
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(PROGRAM))

    def start(*runs: str, kill: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "KILL": kill, "JAX_PLATFORMS": "cpu"}
        args = [sys.executable, str(script), *(str(tmp_path / one) for one in runs)]
        return subprocess.run(args, env=environment, capture_output=True, text=True, cwd=tmp_path)

    assert start("killed", kill="halved 1").returncode == -signal.SIGKILL
    (killed,) = tmp_path.glob("killed/tiny/*")
    assert plastax.open(killed).status.state == "killed"
    done = start("killed", "whole")
    assert done.returncode == 0, done.stderr
    continued, whole = done.stdout.split()
    assert continued == str(killed)
    assert numbers(continued) == numbers(whole)
    config = plastax.open(killed).config
    assert plastax.open(killed).arms == ["l2", "halved"]
    assert config["settings"]["halved"] == {"factor": 0.25}


def test_a_thread_may_run_it_and_says_little(
    run: plastax.Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    made: list[plastax.Run] = []
    thread = threading.Thread(target=lambda: made.append(tiny(tmp_path).run()))
    thread.start()
    thread.join()
    assert numbers(made[0]) == numbers(run)
    out, err = capsys.readouterr()
    assert out == ""
    segments = 12
    assert sum("examples/s" in line for line in err.splitlines()) < segments
    assert str(made[0].directory) in err


def test_a_second_interrupt_leaves_an_interactive_session_alive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2 * signals.TWICE)

    with signals.Stopping() as stopping:
        interrupt()
        assert stopping.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_an_opened_run_shows_what_it_has(run: plastax.Run):
    opened = plastax.open(run.directory)
    assert opened == run
    assert repr(opened) == f"<Run {run.directory}: finished, 12 of 12 segments, 2 arms x 2 seeds x 3 tasks>"
    assert plastax.load(opened).equals(opened.data)
    assert list(opened.table().index) == ["l2", "weight_decay"]
    assert opened.report() == run.directory / "report.html"
    assert opened.plot("overview").frame.equals(opened.figures["overview"].frame)
    with pytest.raises(ConfigError, match="'rank' is unknown"):
        opened.plot("rank")
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        plastax.open(run.directory.parent)
    assert plastax.open(f"{run.directory.parent}/*") == run


def test_tables_are_the_data_sets_numbers(run: plastax.Run, swept: plastax.Run):
    data = run.data
    frame = plastax.table(run, "loss")
    assert list(frame.columns) == ["arm", "seed", "update", "train/loss", "update_task", "method"]
    assert len(frame) == data["train/loss"].size
    for _, row in frame.sample(9, random_state=0).iterrows():
        there = data["train/loss"].sel(arm=row["arm"], seed=row["seed"], update=row["update"])
        assert row["train/loss"] == float(there)
        assert row["update_task"] == int(there.update_task)
    assert frame.equals(run.table("train/loss"))
    assert set(plastax.table(data, "train").columns) == {*frame.columns, "train/alive"}
    probe = plastax.table(run.directory, ["kernel/norm"])
    assert probe["probe/kernel/norm"].sum() == pytest.approx(float(data["probe/kernel/norm"].sum()))
    several = plastax.table([run, swept], "kernel/norm")
    assert several["run"].nunique() == 2
    assert "training.learning_rate" in plastax.table(swept, "train").columns
    assert len(plastax.table([run, swept], "runs")) == 2


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("los", "'los' is unknown .did you mean 'loss'"),
        (["loss", "kernel/norm"], "loss has arm, seed, update and kernel/norm has arm, seed, task, mark; ask for"),
        ([], "nothing is asked for"),
    ],
)
def test_tables_that_cannot_be_made_are_refused(run: plastax.Run, what: Any, words: str):
    with pytest.raises(ConfigError, match=words):
        plastax.table(run, what)


def test_params_are_those_of_the_checkpoint_as_others_read_it(run: plastax.Run, swept: plastax.Run):
    for one in (run, swept):
        for place in sorted((one.directory / "checkpoints").iterdir()):
            newest = max(place.iterdir(), key=lambda path: int(path.name))
            leaves = ocp.StandardCheckpointer().restore(newest.absolute() / "default")
            (kernel,) = (leaf for name, leaf in leaves.items() if name.endswith("params.kernel"))
            arms = [arm for arm in one.arms if one is swept or arm == place.name]
            found = np.concatenate([one.params(arm=arm)["kernel"] for arm in arms])
            np.testing.assert_array_equal(found, kernel)
    np.testing.assert_array_equal(run.params("l2", 1)["kernel"], run.params("l2", 1, task=2)["kernel"])
    with np.load(run.directory / "params" / "l2" / "000001.npz") as plain:
        np.testing.assert_array_equal(plain["params/kernel"], run.params("l2", task=1)["kernel"])
    assert run.params("l2", part="stats") == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "arm: 2 arms fit; give one of l2, weight_decay"),
        ({"method": "l3"}, "method: 'l3' is unknown"),
        ({"method": "l2", "seed": 2}, "seed: 2 is not in this run; its seeds are 0 to 1"),
        ({"method": "l2", "task": 0}, r"after task 0 are not kept \(kept: 1, 2\); --keep-params 1 keeps"),
        ({"method": "l2", "part": "opt"}, "part: 'opt' is unknown"),
        ({"arm": "l2@x"}, "arm: 'l2@x' is unknown"),
    ],
)
def test_networks_that_are_not_there_are_refused(run: plastax.Run, options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        run.params(**options)


def test_damaged_networks_are_refused(run: plastax.Run, tmp_path: pathlib.Path):
    mine = plastax.open(shutil.copytree(run.directory, tmp_path / "mine"))
    path = mine.directory / "params" / "l2" / "000001.npz"
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + b"\xff" + raw[101:])
    with pytest.raises(RecordError, match=r"000001\.npz is damaged"):
        mine.params("l2", task=1)
