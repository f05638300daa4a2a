"""Arms that compete on the first part of the stream, and winners that are trained on other seeds."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
import xarray as xr

from plastax import output, report
from plastax.errors import ConfigError
from plastax.records import layout, lifecycle
from plastax.report import compare, selection
from plastax.study import settings
from tests import tiny_experiment

EXPERIMENT = tiny_experiment.EXPERIMENT
SWEEP = "--sweep method.l2=0.1,10,1"
LINE = "--methods l2 --seeds 5 --tasks 4 --tune-on 0.5 --wandb disabled"


def configured(runs: pathlib.Path, more: str = SWEEP) -> tiny_experiment.Config:
    return EXPERIMENT.parse([*f"{LINE} {more}".split(), "--runs-dir", str(runs)])


def run(runs: pathlib.Path, callback=None, more: str = SWEEP) -> tuple[pathlib.Path, str]:
    console = output.Console(file=io.StringIO(), width=200)
    return EXPERIMENT.run(configured(runs, more), console, callback=callback), console.file.getvalue()


def interrupt(end) -> None:
    raise KeyboardInterrupt


def test_winners_run_to_the_end_on_other_seeds_and_continue_after_an_interruption(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):  # in the first task of the winners
        run(tmp_path, interrupt)
    trial, killed = sorted((tmp_path / "tiny").iterdir(), key=lambda path: "tuning" in layout.read_config(path))
    tried = report.read(trial)
    assert (tried.sizes["task"], tried.seed.values.tolist()) == (2, [0, 1, 2])
    assert tried.arm.values.tolist() == ["l2@l2=0.1", "l2@l2=10", "l2@l2=1"]
    before = {path: path.stat().st_mtime_ns for path in (trial / "records").rglob("*.npz")}

    directory, printed = run(tmp_path)
    assert directory == killed
    assert f"using {trial}, which was finished" in printed
    assert f"continuing {killed}" in printed
    assert before == {path: path.stat().st_mtime_ns for path in (trial / "records").rglob("*.npz")}
    data = report.read(directory)
    losses = tried["train/loss"].mean(["seed", "update"]).to_series()
    assert data.arm.values.tolist() == [losses.idxmin()]
    assert (data.sizes["task"], data.seed.values.tolist()) == (4, [3, 4])
    entry = layout.read_config(directory)["tuning"]
    assert entry["arms"] == {"l2": 3}
    assert entry["values"] == pytest.approx(losses.to_dict())

    said = "arms chosen by their mean score on tasks 0 to 1 with seeds 0-2 (--tune-on 0.5, "
    said += f"run {trial.name}): best of 3 l2"
    assert said in (directory / "report.html").read_text()
    for show in (report.print_table, lambda run, console: report.print_comparison([run], console=console)):
        show(directory, console := output.Console(file=io.StringIO(), width=400))
        assert said in " ".join(console.file.getvalue().split())
    # Without the second half of the command, by the directory alone.
    assert EXPERIMENT.parse(["--resume", str(directory)]).arms == (losses.idxmin(),)


@pytest.mark.slow
def test_shards_compete_first(tmp_path: pathlib.Path) -> None:
    trial, printed = run(tmp_path, more=f"{SWEEP} --shard 0/2")
    assert "once it is finished, this command trains the best arms" in printed
    assert lifecycle.status(trial).state == "stopped"
    winners, _ = run(tmp_path, more=f"{SWEEP} --shard 1/2")
    assert winners != trial
    assert lifecycle.status(trial).state == "finished"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (f"{SWEEP} --tune-on 1.5", "tune_on: 1.5 is not allowed; give a number at least 0 and below 1"),
        (f"{SWEEP} --tune-on -0.1", "tune_on: -0.1 is not allowed"),
        ("", "tune_on: no method has several arms to choose from; give --sweep"),
        (f"{SWEEP} --seeds 1", "tune_on: 1 seed cannot both choose and report; give --seeds 2 or more"),
        (f"{SWEEP} --tune-on 0.1", "tune_on: 0.1 of 4 tasks is less than one; give --tasks 10 or more"),
        (f"{SWEEP} --arms l2@l2=10", "arms: not allowed with tune_on, which chooses them"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path: pathlib.Path, more: str, says: str, assert_nothing_compiles) -> None:
    with pytest.raises(ConfigError) as refused, assert_nothing_compiles():
        run(tmp_path, more=more)
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_arms_of_a_sweep_can_be_named(tmp_path: pathlib.Path) -> None:
    config = configured(tmp_path, f"{SWEEP} --tune-on 0 --arms l2@l2=10")
    assert [arm.label for arm in EXPERIMENT.build(config).arms] == ["l2@l2=10"]
    with pytest.raises(ConfigError, match=r"arms: 'l2@l2=2' is unknown.*l2@l2=10"):
        EXPERIMENT.build(configured(tmp_path, f"{SWEEP} --tune-on 0 --arms l2@l2=2"))


def test_studies_without_it_keep_their_hash(tmp_path: pathlib.Path) -> None:
    assert not {"tune_on", "arms"} & settings.to_json(configured(tmp_path, f"{SWEEP} --tune-on 0")).keys()
    assert settings.to_json(configured(tmp_path))["tune_on"] == 0.5


ARMS, SEEDS, TASKS = 20, 8, 20


def identical(number: int) -> xr.Dataset:
    """The returns of a reference and of a method with 20 arms that are all the same, on tasks that they share."""
    rng = np.random.default_rng(number)
    returns = rng.normal(size=(1, SEEDS, TASKS)) + rng.normal(size=(ARMS + 1, SEEDS, 1))
    returns = returns + rng.normal(size=(ARMS + 1, SEEDS, TASKS))
    labels = ["reset", *(f"l2@l2={k}" for k in range(ARMS))]
    coords = {
        "arm": labels, "seed": np.arange(SEEDS), "task": np.arange(TASKS), "update": np.arange(TASKS),
        "segment": np.arange(TASKS), "mark": ["init", "end"], "update_task": ("update", np.arange(TASKS)),
        "method": ("arm", [label.partition("@")[0] for label in labels]),
        "method.l2": ("arm", [np.nan, *range(ARMS)]),
    }  # fmt: skip
    clock = np.tile(np.arange(TASKS, dtype=float), (ARMS + 1, 1))
    variables = {
        "train/episode_return": (("arm", "seed", "update"), returns),
        "host/clock": (("arm", "segment"), clock),
        "host/length": (("arm", "segment"), np.ones_like(clock)),
    }
    return xr.Dataset(variables, coords)


def no_gain(studies: int) -> dict[str, float]:
    """The part of studies in which the best arm's interval of the difference to the reference has zero."""
    held = {"by half of the seeds": 0, "on the first tenth": 0}
    for number in range(studies):
        data, half = identical(number), SEEDS // 2
        best, _ = selection.chosen(
            data.isel(seed=slice(half), task=slice(2), update=slice(2), segment=slice(2)), tasks=lambda n: slice(0, n)
        )
        other = data.isel(seed=slice(half, None)).sel(arm=list(best.values()))
        frames = selection.select(data), compare.compare([other], reference="reset")
        for name, frame in zip(held, frames):
            row = frame[frame["method"] == "l2"].iloc[0]
            held[name] += bool(row["difference_low"] <= 0 <= row["difference_high"])
    return {name: count / studies for name, count in held.items()}


def test_the_best_of_identical_arms_shows_no_gain() -> None:
    assert min((found := no_gain(4)).values()) >= 0.75, found


@pytest.mark.slow
def test_the_best_of_20_identical_arms_shows_no_gain_in_93_percent_of_studies() -> None:
    assert min((found := no_gain(300)).values()) >= 0.93, found
