"""A whole study: what it leaves behind, kill -9 and resume, one compilation a method, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

import plastax
from experiments import rl_gymnax
from tests.lacking import lacking

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "--preset smoke --tasks 3 --steps-per-task 1024 --segments-per-task 2 --model.hidden 8 --wandb disabled "
    "--hessian.order 4 --hessian.examples 32 --probes features hessian --checkpoint-every 1 "
    "--methods l2_er --sweep method.er-lr=0,1e-3"  # two arms of one program: one compilation
)
REPLAY = (
    "--preset smoke --tasks 3 --steps-per-task 1024 --segments-per-task 2 --model.hidden 8 --wandb disabled "
    "--no-report --probes features weights --checkpoint-every 1 --method backprop "
    "--agent dqn --dqn.capacity 1024 --dqn.warmup 64 --dqn.batch-size 16"
)

ROBOT = (
    "--preset smoke --stream slippery_ant --seeds 1 --tasks 3 --steps-per-task 256 --segments-per-task 4 "
    "--model.hidden 8 --wandb disabled --no-report --probes none --checkpoint-every 1 --method backprop "
    "--ppo.num-envs 2 --ppo.num-steps 32 --ppo.epochs 1"
)


def command(runs: pathlib.Path, line: str = TINY) -> list[str]:
    return [sys.executable, "-m", "experiments.rl_gymnax", *line.split(), "--runs-dir", str(runs)]


def environment(cache: pathlib.Path) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}


def run(arguments: list[str], cache: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(cache), capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """An uninterrupted run: (directory, what it printed)."""
    runs = tmp_path_factory.mktemp("runs")
    done = run(command(runs), cache)
    assert done.returncode == 0, done.stderr
    return next((runs / "rl_gymnax").iterdir()), done.stdout


def test_it_leaves_what_it_should(finished):
    directory, printed = finished
    assert str(directory) in printed.replace("\n", "")
    assert "l2_er" in printed
    config = json.loads((directory / "config.json").read_text())
    assert directory.name == config["run_id"]
    assert config["run_id"].endswith(config["hash"])
    assert list(config["arms"]) == ["l2_er@er_lr=0", "l2_er@er_lr=0.001"]
    assert json.loads((directory / "environment.json").read_text())["versions"]["jax"]
    assert (directory / "summary.csv").exists()
    assert {p.suffix for p in (directory / "figures").iterdir()} == {".png", ".pdf", ".csv"}


def test_the_record_is_labelled_and_complete(finished):
    data = plastax.load(finished[0])
    assert dict(data.sizes) | {"arm": 2, "seed": 2, "update": 6, "task": 3, "mark": 2} == dict(data.sizes)
    assert data["probe/hessian/nodes"].dims == ("arm", "seed", "task", "mark", "probe", "node")
    assert data["probe/features/effective_rank"].dims[-1] == "feature_layer"
    assert list(data["feature_layer"].values[:1]) == ["actor/dense_0"]
    assert np.isfinite(data["probe/hessian/rank"]).all()
    assert np.isfinite(data["train/value_loss"]).all()


def test_one_compilation_for_the_whole_stream(finished):
    data = plastax.load(finished[0])
    # What makes the initial state, switches tasks, trains and measures; none at any later task.
    np.testing.assert_array_equal(data["host/compilations"].isel(segment=0), [4, 4])
    assert np.isnan(data["host/compilations"].isel(segment=slice(1, None))).all()
    assert (data["host/compile_seconds"].isel(segment=0) > 0).all()


@pytest.mark.slow  # two starts of a whole study
def test_a_second_start_compiles_nothing(finished, cache, tmp_path):
    done = run(command(tmp_path), cache)
    assert done.returncode == 0, done.stderr
    directory = next((tmp_path / "rl_gymnax").iterdir())
    np.testing.assert_array_equal(plastax.load(directory)["host/compilations_uncached"].isel(segment=0), [0, 0])
    assert_same(finished[0], directory)


def num_records(runs: pathlib.Path) -> int:
    return len(list(runs.glob("rl_gymnax/*/records/*/*.npz")))


def records(directory: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((directory / "records").rglob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.parent.name}/{path.stem}/{k}": arrays[k] for k in arrays if not k.startswith("host/")}
    return found


def final_state(directory: pathlib.Path) -> dict[str, np.ndarray]:
    (program,) = (directory / "checkpoints").iterdir()
    with ocp.CheckpointManager(program.absolute()) as manager:
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Bit for bit: every recorded number, and every leaf of the last checkpoints."""
    a, b = records(one), records(other)
    assert a.keys() == b.keys()
    assert len(a) > 100
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    a, b = final_state(one), final_state(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


@pytest.mark.slow  # a small study is killed many times in test_survival.py; these are agents
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("line", "kept"),
    [
        pytest.param(TINY, "actors.state", id="ppo"),
        pytest.param(REPLAY, "replay", id="dqn"),
        pytest.param(ROBOT, "warmstart", id="brax", marks=pytest.mark.fetched),
    ],
)
def test_killed_and_started_again_equals_uninterrupted(line, kept, request, cache, tmp_path):
    """Agents with their environments and replay; the same command continues. `tests.test_survival` kills much more."""
    if line == ROBOT and importlib.util.find_spec("brax") is None:
        lacking("needs Brax: pip install 'plastax-lab[brax]'")
    if line == TINY:
        whole = request.getfixturevalue("finished")[0]
    else:
        done = run(command(tmp_path / "whole", line), cache)
        assert done.returncode == 0, done.stderr
        whole = next((tmp_path / "whole" / "rl_gymnax").iterdir())
    assert any(kept in name for name in final_state(whole))
    draw = random.Random(0)
    kills = 0
    for _ in range(8):
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command(tmp_path, line), cwd=ROOT, env=environment(cache), stdout=log, stderr=log
            )
        # A moment within the run: from the first record on, a random part of a second later.
        before = num_records(tmp_path)
        deadline = time.monotonic() + 200
        while process.poll() is None and num_records(tmp_path) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.15))
        if process.poll() is not None or kills == 2:
            assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    assert "which was killed (--fresh starts a new run)" in (tmp_path / "log").read_text()
    (directory,) = (tmp_path / "rl_gymnax").iterdir()
    assert_same(whole, directory)


def test_another_configuration_is_refused_by_name(finished, capsys):
    directory = str(finished[0])
    with pytest.raises(SystemExit) as stopped:
        rl_gymnax.EXPERIMENT.main(["--seeds", "3", "--resume", directory, "--runs-dir", str(finished[0].parent.parent)])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for part in ("resume", "seeds", "2 there", "3 here"):
        assert part in printed
