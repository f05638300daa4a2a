"""The command line: presets, groups, identity, and every refusal with its one line."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import pytest

from experiments import random_label, rl_gymnax
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.probes import PROBES, Hessian
from plastax.records import layout, lifecycle
from plastax.study import settings, starting, sweep


def parse(line: str = ""):
    return rl_gymnax.EXPERIMENT.parse(line.split())


def identity(line: str) -> str:
    config = parse(line)
    return settings.identity(settings.to_json(config), settings.asides(config))


def test_settings_reach_their_groups():
    config = parse("--seeds 16 --method l2_er --method.er-lr 0.5 --stream.sigma 1 --model.hidden 8 4 --hessian.order 9")
    assert (config.seeds, config.methods, config.model_settings.hidden) == (16, ("l2_er",), (8, 4))
    assert (config.l2_er.er_lr, config.stream_settings.sigma, config.hessian.order) == (0.5, 1.0, 9)


def test_a_methods_setting_by_the_methods_name_among_several():
    config = parse("--methods l2 l2_er --l2-er.l2 0.25")
    assert (config.l2_er.l2, config.l2.l2) == (0.25, METHODS["l2"].l2)


@pytest.mark.parametrize("spelling", ["l2+l2_init", "chain:l2,l2_init"])
def test_methods_compose_by_name(spelling):
    config = parse(f"--methods backprop {spelling} --l2.l2 0.25")
    assert config.methods == ("backprop", "l2+l2_init")
    stored = settings.to_json(config)
    assert stored["l2"] == {"l2": 0.25}
    assert "l2_init" in stored
    assert "l2_er" not in stored
    with pytest.raises(ConfigError, match=r"2 methods are chosen \(l2, l2_init\)"):
        parse(f"--method {spelling} --method.l2 0.25")


def test_all_are_all_and_none_are_none():
    assert parse("--methods all").methods == tuple(METHODS)
    assert parse("--probes all").probes == tuple(PROBES)
    assert parse("--probes none").probes == ()


@pytest.mark.parametrize("name", rl_gymnax.PRESETS)
def test_every_preset_is_valid_and_can_be_overridden(name):
    config = parse(f"--preset {name} --seeds 4")
    assert (config.preset, config.seeds) == (name, 4)
    for setting, value in rl_gymnax.PRESETS[name].items():
        head, _, rest = setting.partition(".")
        if setting != "seeds":
            found = getattr(config, head)
            assert (getattr(found, rest) if rest else found) == value, setting


def test_identity_is_that_of_the_numbers():
    assert identity("") == identity("--wandb disabled --runs-dir elsewhere --checkpoint-every 3")
    assert identity("") != identity("--seeds 7")
    # The settings of a method that does not run do not count; those of one that runs do.
    config = parse("--methods reset")
    assert settings.to_json(config) == settings.to_json(settings.replaced(config, {"l2_er.er_lr": 3.0}))
    assert identity("--methods l2_er") != identity("--methods l2_er --l2-er.er-lr 3")


def test_a_later_setting_counts_only_where_it_is_not_at_its_default():
    """So runs of before it came keep their settings and identity."""
    assert "blocks" not in settings.to_json(parse())["hessian"]
    assert settings.to_json(parse("--hessian.blocks kinds"))["hessian"]["blocks"] == "kinds"
    assert identity("--hessian.product auto") == identity("") != identity("--hessian.product finite")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--methods l2 l2", ("methods", "twice")),
        ("--methods l2+l2_ini", ("methods", "'l2_ini'", "did you mean 'l2_init'")),
        ("--probes features+weights", ("probes", "only methods")),
        ("--model cnn", ("model", "'cnn'", "conv")),
        ("--method.er-lr 3", ("method.er_lr", "3 methods", "backprop")),
    ],
)
def test_refusals_name_setting_value_and_what_is_allowed(line, names):
    with pytest.raises(ConfigError) as error:
        parse(line)
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--l2-er.er-lr -1", ("L2ER.er_lr", "-1")),
        ("--ppo.minibatches 7", ("minibatches", "7")),
        ("--seeds many", ("--seeds", "'many'")),
        ("--wandb maybe", ("--wandb", "'maybe'", "offline")),
        ("--unknown 3", ("--unknown is unknown", "--help-all")),
        ("--ppo.lr 3", ("did you mean --ppo.learning-rate?",)),
        ("--learning-rate=3", ("did you mean --ppo.learning-rate or --",)),
        ("--sweep wandb.project=a,b", ("sweep: 'wandb.project' is unknown",)),
        ("--er.lr 3", ("did you mean --effective-rank.er-lr?",)),
        ("--seed 3", ("--seeds",)),
        ("--sweep ppo.lr=1,2", ("did you mean 'ppo.learning_rate'?",)),
        ("--help hesian", ("did you mean 'hessian'?",)),
        ("--method weight_clipping --method.kapa 3", ("did you mean --weight-clipping.kappa?",)),
        ("--method upgd --method.variant globl", ("'globl'", "'global'")),
        ("--method upgd --method.beta 1", ("UPGD.beta", "below 1")),
        ("--method trac --method.betas 0.9 1.0", ("Trac.betas", "below 1")),
    ],
)
def test_what_the_line_cannot_mean_is_refused_in_one_line(line, names):
    with pytest.raises(ConfigError) as error:
        sweep.arms(parse(line))
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_short_names_of_what_everybody_sets():
    config = parse("--lr 0.5 --epochs=3 --sweep lr=1e-2,1e-3")
    assert (config.ppo.learning_rate, config.ppo.epochs) == (0.5, 3)
    assert [arm.values for arm in sweep.arms(config)][:2] == [{"ppo.learning_rate": 1e-2}, {"ppo.learning_rate": 1e-3}]
    training = random_label.EXPERIMENT.parse(["--lr", "0.5", "--batch-size", "10"]).training
    assert (training.learning_rate, training.batch_size) == (0.5, 10)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    config = dataclasses.replace(parse(), runs_dir=pathlib.Path(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"runs_dir: .*file.* cannot be written"):
        starting.run_directory(config, "rl_gymnax", settings.to_json(config))


def test_a_run_that_an_earlier_version_began_is_refused_in_a_line(tmp_path):
    """Settings that it did not have cannot be dropped from the command line."""
    config = dataclasses.replace(parse(), runs_dir=tmp_path)
    then = settings.to_json(config)
    del then["ppo"]["clip"], then["tasks"]
    layout.write_json(
        tmp_path / "config.json", {"experiment": "rl_gymnax", "format": 1, "run_id": "x", "settings": then}
    )
    with pytest.raises(ConfigError, match=r"an earlier version began .*, without ppo.clip, tasks; continue with that"):
        starting.run_directory(dataclasses.replace(config, resume=tmp_path), "rl_gymnax", settings.to_json(config))


def test_an_interrupted_run_is_continued_by_itself(tmp_path, monkeypatch):
    """The same settings again: the newest run, unless it is finished or running or something has changed since."""
    config = dataclasses.replace(parse(), runs_dir=tmp_path)
    chosen = settings.to_json(config)

    def start(config: Any = config, state: str = "") -> tuple[pathlib.Path, str]:
        """Where the run goes and what is said; then ends it so."""
        directory, run_id, note = starting.run_directory(config, "rl_gymnax", settings.to_json(config))
        assert directory.name == run_id
        described = {"experiment": "rl_gymnax", "run_id": run_id, "hash": settings.identity(chosen), "settings": chosen}
        layout.start_run(directory, described)
        layout.write_json(directory / "status.json", {"state": state, "started": "2026-01-01T00:00:00+00:00"})
        return directory, note

    first, note = start(state="running")
    assert note == ""
    for state, word in (("stopped", "killed"), ("failed", "stopped"), ("running", "failed")):
        again, note = start(state=state)
        assert again == first
        assert note == f"continuing {first}, which was {word} (--fresh starts a new run)"
    fresh, note = start(dataclasses.replace(config, fresh=True), "running")
    assert (fresh == first, note) == (False, "")
    # What does not change numbers may be another; what does may not.
    assert start(dataclasses.replace(config, wandb="disabled", checkpoint_every=7), "running")[0] == fresh
    assert start(dataclasses.replace(config, seeds=5), "running")[0] not in (first, fresh)
    # Of several the one last worked on, whatever its name; one that is running is left alone.
    with lifecycle.hold(fresh, {}):
        assert start(state="running")[0] == first
        layout.write_json(first / "status.json", {"state": "finished"})
        other, note = start(state="finished")
        assert other not in (first, fresh)
        assert note == f"starting a new run: {fresh} of the same settings is running"
    newest, note = start(state="running")
    assert newest not in (first, fresh, other)
    assert note == ""
    monkeypatch.setattr("plastax.records.environment.source", lambda: "other")
    changed, note = start()
    assert changed != newest
    assert note == f"starting a new run: {newest} was killed, but since then the code changed"
    resumed = dataclasses.replace(config, resume=newest)
    assert starting.run_directory(resumed, "rl_gymnax", chosen)[2].startswith("not what this run began with: the code;")


def helped(experiment, capsys, line: str, columns: int = 80) -> list[str]:
    """The lines that a call for help prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stopped:
            experiment.EXPERIMENT.parse(line.split(), "plastax run it")
    assert stopped.value.code == 0
    return [text.rstrip() for text in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("experiment", [rl_gymnax, random_label])
def test_every_setting_has_a_help_text(experiment, capsys):
    lines = helped(experiment, capsys, "--help-all", columns=200)
    flags = [i for i, line in enumerate(lines) if line.startswith("  --")]
    told = {lines[i].split()[0] for i in flags}
    assert {"--seeds", "--model.hidden", "--l2-er.er-lr", "--redo.period", "--segments-per-task"} <= told
    for i in flags:
        assert re.match(r" {6}\S", lines[i + 1]), f"{lines[i]} needs a docstring below its field"


@pytest.mark.parametrize("experiment", [rl_gymnax, random_label])
def test_help_is_of_what_is_chosen_and_short(experiment, capsys):
    lines = helped(experiment, capsys, "--help")
    assert len(lines) <= 130  # Two screens.
    assert max(map(len, lines)) <= 80
    told = {line.split()[0] for line in lines if line.startswith("  --")}
    assert {"--seeds", "--model.hidden", "--l2-er.er-lr", "--hessian.eps"} <= told
    assert not {"--redo.period", "--ntk.every", "--checkpoint-keep", "--synthetic.classes"} & told
    told = {line.split()[0] for line in helped(experiment, capsys, "--methods redo --probes ntk --help")[3:] if line}
    assert {"--redo.period", "--ntk.every"} <= told
    assert "--l2-er.er-lr" not in told


def test_help_of_a_group_is_the_whole_text_of_its_settings(capsys):
    lines = helped(rl_gymnax, capsys, "--help spectrum")
    assert [line.split()[0] for line in lines if "--" in line] == [
        f"--hessian.{field.name}" for field in dataclasses.fields(Hessian)
    ]
    assert helped(rl_gymnax, capsys, "--seeds 3 --help hessian") == lines
    assert "Random probe vectors: the precision of its sums" in "\n".join(lines)
