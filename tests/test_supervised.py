"""The experiments on supervised streams: presets, settings, and one whole study."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shlex
from typing import Any, ClassVar

import numpy as np
import pytest

import plastax
from experiments import incremental_cifar, permuted_mnist, random_label
from plastax.data import idx
from plastax.errors import ConfigError
from plastax.models import MLP, SUPERVISED
from plastax.runs import loop
from plastax.runs.plan import Plan
from plastax.study import catalogue, settings, supervised
from plastax.study.experiment import Experiment, Shared
from tests.data.formats import idx_bytes
from tests.streams.tiny import DATASET

NAMES = list(catalogue.described())
ALL: dict[str, Experiment[Any]] = {name: importlib.import_module(f"experiments.{name}").EXPERIMENT for name in NAMES}
EXPERIMENTS = {name: one for name, one in ALL.items() if issubclass(one.config, supervised.Config)}
PRESETS = [(name, preset) for name, one in EXPERIMENTS.items() for preset in one.presets]


@functools.cache
def parse(name: str, line: str = "") -> Any:
    return EXPERIMENTS[name].parse(shlex.split(line))


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_is_named_as_its_file_and_can_be_tried_quickly(name):
    assert ALL[name].name == name, "the folder of its runs: give EXPERIMENT the name of its file"
    assert {"default", "smoke"} <= ALL[name].presets.keys(), "give it these presets; smoke ends within a minute"


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_is_valid_and_can_be_overridden(name, preset):
    config = parse(name, f"--preset {preset} --seeds 3")
    assert (config.preset, config.seeds) == (preset, 3)
    presets = EXPERIMENTS[name].presets[preset]
    for setting, value in presets.items():
        found = config
        for part in setting.split("."):
            found = getattr(found, part)
        # A group that is given whole may be changed by its settings.
        whole = not any(other.startswith(f"{setting}.") for other in presets)
        assert setting == "seeds" or not whole or found == value, setting
    assert settings.identity(settings.to_json(config)) != settings.identity(
        settings.to_json(dataclasses.replace(config, seeds=4))
    )


def test_a_network_without_a_preset_s_setting_keeps_its_own(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Linear(MLP):
        """A network of somebody else's, without the setting `hidden`."""

        hidden: ClassVar[tuple[int, ...]] = ()

    monkeypatch.setitem(SUPERVISED, "linear", Linear())
    line = "--preset smoke --model linear"
    chosen = permuted_mnist.EXPERIMENT.parse(shlex.split(line))
    assert chosen.model_settings == Linear()
    assert chosen.stream.examples == 320


def test_a_presets_network_holds_where_it_is_chosen():
    chosen = parse("incremental_cifar", "--model.momentum 0.5")
    assert chosen.model_settings == dataclasses.replace(
        incremental_cifar.PRESETS["default"]["model_settings"], momentum=0.5
    )
    other = parse("incremental_cifar", "--model cnn")
    assert (other.model_settings, other.stream.new_classes) == (SUPERVISED["cnn"], 1)


def test_the_card_goes_into_the_settings_and_the_place_does_not_count():
    config = parse("continual_imagenet", "--preset smoke")
    dataset = supervised.share(config).value.dataset
    assert (dataset.card.classes, dataset.card.train, dataset.card.synthetic) == (4, 80, True)
    elsewhere = parse("continual_imagenet", "--preset smoke --data-path /elsewhere")
    first, second = (settings.to_json(c) for c in (config, elsewhere))
    asides = settings.asides(config)
    assert settings.identity(first, asides) == settings.identity(second | {"data_card": {}}, asides)


def parse_and_share(name: str, line: str) -> tuple[Any, Shared]:
    one = EXPERIMENTS[name]
    config = one.parse(shlex.split(line))  # Where it is called, so not from `parse`, which remembers.
    return config, one.share(config)


def test_own_files_are_named_from_anywhere_and_asked_for_by_a_word(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, array in zip(idx.FILES, (np.zeros((40, 28, 28)), np.arange(40) % 10) * 2):
        (folder / name).write_bytes(idx_bytes(array))
    monkeypatch.chdir(tmp_path)
    line = "--preset smoke --data mnist --data-path own --stream.examples 40 --training.batch-size 20"
    with pytest.raises(ConfigError, match="--no-data-verify"):
        parse_and_share("random_label", line)
    config, shared = parse_and_share("random_label", f"{line} --no-data-verify")
    assert config.data_path == str(folder)
    assert "NOT verified" in shared.recorded["data_card"]["notes"]
    published = settings.to_json(dataclasses.replace(config, data_verify=True))
    asides = settings.asides(config)
    assert settings.identity(published, asides) == settings.identity(settings.to_json(config), asides)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_updates_fit_every_presets_task(name, preset):
    config = parse(name, f"--preset {preset} --seeds 3")
    mnist = 60_000
    examples = getattr(config.stream, "examples", 0) or getattr(config.stream, "period", mnist)
    blocks = config.training.blocks(examples)
    steps = blocks.steps_per_update * config.training.updates
    assert steps == config.training.epochs * (examples // config.training.batch_size)


def test_the_literatures_name_is_the_method_and_composes():
    config = parse("random_label", "--methods backprop er l2+er")
    assert config.methods == ("backprop", "effective_rank", "l2+effective_rank")
    single = parse("random_label", "--method er --method.er-lr 0.5")
    assert (single.methods, single.effective_rank.er_lr) == (("effective_rank",), 0.5)


def test_a_study_leaves_a_labelled_record(tmp_path, monkeypatch):
    monkeypatch.setattr("plastax.data.load", lambda name, path=None, **_: DATASET)
    config = parse(
        "random_label",
        "--preset smoke --methods backprop --probes weights --tasks 2 --stream.examples 20 --training.batch-size 5 "
        "--training.epochs 4 --training.updates 2 --segments-per-task 2 --model.hidden 4",
    )
    _, _, batches, plan, _ = random_label.EXPERIMENT.build(config)
    assert plan == Plan(2, 2, 1, 2 * 2 * 4 * 5)  # seeds x epochs x steps x batch
    chosen = settings.to_json(config) | {"updates_per_task": plan.updates_per_task}
    described = {"experiment": "random_label", "run_id": "x", "hash": "y", "settings": chosen}
    loop.study(tmp_path, described, batches, plan)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["stream"] == {"examples": 20}
    data = plastax.load(tmp_path)
    assert dict(data.sizes) | {"seed": 2, "task": 2, "update": 4, "mark": 2} == dict(data.sizes)
    for name in ("train/accuracy", "train/loss", "probe/evaluation/train_accuracy", "probe/evaluation/test_loss"):
        assert np.isfinite(data[name]).all(), name
    assert list(data["probe/weights/norm"].dims[-1:]) == ["layer"]
