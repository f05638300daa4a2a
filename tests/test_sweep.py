"""Sweeps: from --sweep to arms, to one record with labels; on other devices, resumed, in shards."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import plastax
from experiments import random_label, rl_gymnax
from plastax.errors import ConfigError
from plastax.runs import loop
from plastax.runs.plan import Saving
from plastax.study import settings, sweep
from tests.streams.tiny import DATASET


def parse(line: str):
    return rl_gymnax.EXPERIMENT.parse(line.split())


def arms(line: str):
    return sweep.arms(parse(line))


def test_without_a_sweep_the_methods_are_the_arms():
    assert [(arm.label, arm.values) for arm in arms("--methods l2 reset")] == [("l2", {}), ("reset", {})]


def test_a_grid_of_what_each_method_has():
    found = arms("--methods backprop l2 l2_er --sweep method.l2=0,1e-4 --sweep method.er-lr=1e-1,0.01")
    assert [arm.label for arm in found] == [
        "backprop", "l2@l2=0", "l2@l2=0.0001", "l2_er@l2=0,er_lr=0.1", "l2_er@l2=0,er_lr=0.01",
        "l2_er@l2=0.0001,er_lr=0.1", "l2_er@l2=0.0001,er_lr=0.01",
    ]  # fmt: skip
    last = found[-1]
    assert (last.named, last.values) == (
        {"method.l2": 1e-4, "method.er_lr": 0.01},
        {"l2_er.l2": 1e-4, "l2_er.er_lr": 0.01},
    )
    assert (last.config.l2_er.l2, last.config.l2_er.er_lr, last.config.l2.l2) == (1e-4, 0.01, parse("").l2.l2)


def test_settings_of_one_method_of_all_and_of_a_part():
    found = arms("--methods l2 l2+l2_init --sweep l2-init.strength=1,2 --sweep ppo.learning_rate=1e-3,3e-3")
    assert [arm.label for arm in found[:2]] == ["l2@learning_rate=0.001", "l2@learning_rate=0.003"]
    assert found[2].label == "l2+l2_init@strength=1,learning_rate=0.001"
    assert [(arm.config.l2_init.strength, arm.config.ppo.learning_rate) for arm in found[2:]] == [
        (1, 1e-3), (1, 3e-3), (2, 1e-3), (2, 3e-3),
    ]  # fmt: skip
    # Two settings of one name are told apart.
    both = arms("--method l2+l2_er --sweep l2.l2=1,2 --sweep l2_er.l2=3")
    assert both[0].label == "l2+l2_er@l2.l2=1,l2_er.l2=3"


def test_values_of_other_types():
    wide = arms("--method l2 --sweep model.hidden=8,16")[1]
    assert (wide.label, wide.config.model_settings.hidden) == ("l2@hidden=16", (16,))
    assert arms("--method l2 --sweep ppo.epochs=2")[0].config.ppo.epochs == 2
    assert arms("--method l2 --sweep stream.env=Acrobot-v1")[0].config.stream_settings.env == "Acrobot-v1"


def test_what_may_be_traced_goes_into_one_program():
    found = arms("--methods l2 l2_er --sweep method.l2=0,1 --sweep ppo.learning_rate=1e-3,2e-3 --sweep ppo.epochs=1,2")
    groups = sweep.together(found)
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    assert sweep.traced_values(groups[0][3]) == {"l2.l2": 1.0, "ppo.learning_rate": 2e-3}
    assert {arm.config.ppo.epochs for arm in groups[0]} == {1}
    static = sweep.together(found, ["ppo.learning_rate"])
    assert [len(group) for group in static] == [2] * 8
    # A period is counted with; it is an int and a program of its own.
    assert [len(group) for group in sweep.together(arms("--method l2_er --sweep method.period=1,2"))] == [1, 1]


def test_a_long_label_is_shortened_and_stays_unique():
    swept = "l2.l2 ppo.learning-rate ppo.b1 ppo.b2 ppo.eps ppo.gamma ppo.gae-lambda ppo.clip ppo.entropy-weight"
    line = " ".join(f"--sweep {name}=0.123456789" for name in swept.split())
    found = arms(f"--method l2 {line} --sweep ppo.value-weight=0.1,0.2,0.3")
    assert len({arm.label for arm in found}) == 3
    assert all(len(arm.label) <= 64 and arm.label.startswith("l2@l2=0.123456789,") for arm in found)
    assert [arm.named["ppo.value_weight"] for arm in found] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--method l2_er --sweep method.er-l=1", ("'method.er_l'", "did you mean 'method.er_lr'")),
        ("--method l2_er --sweep l2er.er-lr=1", ("did you mean 'l2_er.er_lr'",)),
        ("--method reset --sweep method.l2=1", ("'method.l2'", "unknown")),
        ("--method l2 --sweep l2_er.l2=1", ("'l2_er.l2'", "did you mean 'l2.l2'")),
        ("--method l2 --sweep seeds=1,2", ("'seeds'", "unknown")),
        ("--method l2 --sweep hessian.order=8,16", ("'hessian.order'", "unknown")),
        ("--method l2 --sweep method.l2", ("'method.l2'", "method.er-lr=1e-2,1e-3")),
        ("--method l2 --sweep method.l2=1,", ("'method.l2=1,'",)),
        ("--method l2 --sweep method.l2=1,1", ("twice",)),
        ("--method l2 --sweep method.l2=1,1.0", ("same number",)),
        ("--method l2 --sweep method.l2=1 --sweep method.l2=2", ("twice",)),
        ("--method l2 --sweep method.l2=abc", ("'abc'", "method.l2", "float")),
        ("--method l2 --sweep method.l2=nan", ("'nan'", "method.l2")),
        ("--method l2 --sweep method.l2=-1", ("l2", "-1.0", "0 or more")),
        ("--method l2 --sweep ppo.learning-rate=0", ("ppo.learning_rate", "above 0")),
        ("--method l2+l2_er --sweep method.l2=1", ("l2.l2 and l2_er.l2", "say which")),
        ("--method l2 --sweep ppo.num-steps=64,128", ("l2@num_steps=128", "other updates")),
        ("--method l2 --probes weights --sweep model.hidden=8,x", ("'x'", "model.hidden")),
    ],
)
def test_refusals_come_before_compilation(line, names, assert_nothing_compiles):
    with pytest.raises(ConfigError) as error, assert_nothing_compiles():
        rl_gymnax.EXPERIMENT.build(parse(line))
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


LINE = (
    "--preset smoke --methods l2 --probes weights --tasks 2 --seeds 3 --stream.examples 20 --training.batch-size 5 "
    "--training.epochs 2 --training.updates 2 --model.hidden 4 --sweep method.l2=0,1e-1"
)


def study(directory, monkeypatch, more: str = ""):
    monkeypatch.setattr("plastax.data.load", lambda name, path=None, **_: DATASET)
    config = random_label.EXPERIMENT.parse(f"{LINE} {more}".split())
    arms, _, batches, plan, _ = random_label.EXPERIMENT.build(config)
    chosen = settings.to_json(config) | {"updates_per_task": plan.updates_per_task}
    mark = settings.identity(chosen, settings.asides(config))
    described = {"experiment": "random_label", "run_id": "x", "hash": mark, "settings": chosen}
    described["arms"] = sweep.described(arms)
    loop.study(directory, described, batches, plan, saving=Saving(every=1))
    return batches


def test_one_program_leaves_a_labelled_record_and_goes_on_elsewhere(tmp_path, monkeypatch):
    batches = study(tmp_path, monkeypatch, "--devices 4 --seed-chunk 0")
    assert [batch.arms for batch in batches] == [("l2@l2=0", "l2@l2=0.1")]
    data = plastax.load(tmp_path)
    assert list(data.arm.values) == ["l2@l2=0", "l2@l2=0.1"]
    assert (list(data.method.values), list(data["method.l2"].values)) == (["l2", "l2"], [0, 0.1])
    assert np.isfinite(data["train/loss"]).all()
    assert not data["train/loss"][0].equals(data["train/loss"][1])
    assert data["host/compilations"].sum() == 8, "four programs, said by both arms"
    # Killed after the first task, it continues with another number of devices.
    (folder,) = (tmp_path / "checkpoints").iterdir()
    shutil.rmtree(max(folder.glob("[0-9]*"), key=lambda path: int(path.name)))
    (again,) = study(tmp_path, monkeypatch, "--devices 1 --seed-chunk 0")
    assert (batches[0].width, again.width) == (8, 6)
    resumed = plastax.load(tmp_path)
    for name in ("train/loss", "train/grad_norm", "probe/evaluation/test_loss", "probe/weights/norm"):
        np.testing.assert_allclose(resumed[name], data[name], rtol=2e-4, atol=2e-5, err_msg=name)
