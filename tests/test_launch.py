"""Shards of a study: in one directory, killed, repeated; as jobs of submitit, on this machine and for SLURM."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import submitit

import plastax
from plastax import __main__ as cli
from plastax.errors import ConfigError, RunError
from plastax.records import lifecycle
from plastax.records.files import read_json
from plastax.study import launch
from tests import tiny_experiment

ROOT = pathlib.Path(__file__).parent.parent
LINE = "--sweep method.l2=0,0.1,0.2 --sweep method.decay=0,0.1 --wandb disabled --checkpoint-every 1"
ARMS = ["l2@l2=0", "l2@l2=0.1", "l2@l2=0.2", "weight_decay@decay=0", "weight_decay@decay=0.1"]


def command(place: pathlib.Path, shard: str) -> list[str]:
    return [sys.executable, "-m", "plastax", "sweep", "tests.tiny_experiment", *arguments(place), "--shard", shard]


def arguments(place: pathlib.Path) -> list[str]:
    return [*LINE.split(), "--runs-dir", str(place / "runs")]


def environment(cache: pathlib.Path) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def losses(directory: pathlib.Path) -> np.ndarray:
    return plastax.load(directory)["train/loss"].values


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The study in one process and one shard."""
    place = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny_experiment", *arguments(place), "--shard", "0/1"],
        cwd=ROOT, env=environment(cache), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (directory,) = (place / "runs" / "tiny").iterdir()
    return directory


@pytest.mark.slow  # It starts processes.
def test_shards_at_once_killed_and_repeated_make_one_study(whole, cache, tmp_path):
    started = [
        subprocess.Popen(command(tmp_path, f"{i}/3"), cwd=ROOT, env=environment(cache), stdout=subprocess.DEVNULL)
        for i in range(3)
    ]
    # One of them dies with its first record.
    while started[1].poll() is None and not list(tmp_path.glob("runs/tiny/*/records/l2@l2=0.1/*.npz")):
        time.sleep(0.01)
    started[1].kill()
    assert [process.wait(240) for process in started] == [0, -signal.SIGKILL, 0]
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    assert lifecycle.status(directory).state == "killed"
    assert not (directory / "summary.csv").exists()
    for shard in ("1/3", "0/3"):
        subprocess.run(command(tmp_path, shard), cwd=ROOT, env=environment(cache), check=True, capture_output=True)
    state = lifecycle.status(directory)
    assert (state.state, state.done, state.total) == ("finished", 30, 30)
    assert (directory / "summary.csv").exists()
    assert directory.name == whole.name, "the run id is the settings'"
    config, other = read_json(directory / "config.json"), read_json(whole / "config.json")
    assert (config, list(config["arms"])) == (other | place_of(config), ARMS)
    # Two of the arms were trained beside others.
    np.testing.assert_allclose(losses(directory), losses(whole), rtol=1e-5)
    with (
        pytest.raises(RunError, match=r"begun in 3 shards; continue with --shard i/3"),
        lifecycle.hold(directory, {}, "0/2"),
    ):
        pass


def place_of(config):
    return {"settings": config["settings"]}


def test_one_process_at_a_time_in_a_shard(tmp_path):
    with lifecycle.hold(tmp_path, {"a": 1}, "0/2"):
        with lifecycle.hold(tmp_path, {"b": 1}, "1/2"):
            assert lifecycle.status(tmp_path).state == "running"
        with pytest.raises(RunError, match="being worked on by process"), lifecycle.hold(tmp_path, {"a": 1}, "0/2"):
            pass
    assert lifecycle.status(tmp_path).state == "finished"


def test_a_job_restarts_statistics_once(tmp_path):
    """Stopped and started again, it goes on: as itself, and as the job that takes its place."""
    word = tmp_path / "words"
    code = f"import sys; open({os.fspath(word)!r}, 'a').write(' '.join(sys.argv[1:]) + ';')"
    again = f"{code}; sys.exit(75 if '--fresh' in sys.argv else 0)"
    job = launch.Shard([sys.executable, "-c", again, "--fresh", "--seeds", "3"], 20)
    job()
    assert word.read_text() == "--fresh --seeds 3;--seeds 3;"
    assert "--fresh" not in job.command


def descendants(pid: int) -> list[int]:
    children = map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [pid, *(below for child in children for below in descendants(child))]


def command_line(pid: int) -> bytes:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow  # It starts processes.
def test_local_jobs_that_are_preempted_are_requeued_and_go_on(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)
    jobs = launch.Jobs(launcher="local", shards=2, logs=tmp_path / "jobs", grace=20, minutes=10)
    first, second = launch.launch("tests.tiny_experiment", jobs, [*arguments(tmp_path), "--steps", "3000000"])
    while not list(tmp_path.glob("runs/tiny/*/records/l2@l2=0/*.npz")) and not first.done():
        time.sleep(0.05)
    # As SLURM does before it takes a machine away; the signal is for the process that unpickled the job.
    (worker,) = [pid for pid in descendants(int(first.job_id)) if b"submitit.core._submit" in command_line(pid)]
    os.kill(worker, signal.SIGUSR2)
    assert [job.result() for job in (first, second)] == [None, None]
    assert "Requeued job" in first.stdout()
    (directory,) = (tmp_path / "runs" / "tiny").iterdir()
    assert lifecycle.status(directory).state == "finished"
    assert np.isfinite(losses(directory)).all()


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """``sbatch(**jobs)``: the options in the batch script of a job that is submitted to a made-up SLURM, sorted."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "sbatch"):
        (commands / name).write_text("#!/bin/sh\necho Submitted batch job 7\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")

    def submit(**jobs) -> list[str]:
        made = launch.executor(launch.Jobs(launcher="slurm", logs=tmp_path / "logs", **jobs), "rl_gymnax")
        made.submit(print)
        (script,) = (tmp_path / "logs").rglob("*_submission.sh")
        lines = script.read_text().splitlines()
        return sorted(line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH"))

    return submit


def test_what_slurm_is_told(sbatch):
    options = sbatch(
        shards=3, at_once=2, minutes=90, grace=120, partition="gpu", gpus=1, slurm=("account=lab", "constraint=a100")
    )
    assert {
        "job-name=rl_gymnax", "partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=2", "mem=8GB",
        "signal=USR2@120", "account=lab", "constraint=a100",
    } <= {*options}  # fmt: skip


def test_a_job_has_a_shard():
    commands = launch.commands("rl_gymnax", ["--seeds", "2"], 3)
    assert [line[-1] for line in commands] == ["0/3", "1/3", "2/3"]
    assert commands[0][1:-2] == ["-m", "plastax", "run", "rl_gymnax", "--seeds", "2"]


def test_slurm_options_without_a_value_are_flags(sbatch):
    options = sbatch(slurm=("exclusive", "requeue", "comment=a b"))
    assert {"exclusive", "requeue", "comment='a b'"} <= {*options}


@pytest.mark.parametrize(
    ("jobs", "memory"),
    [
        ({}, ["mem=8GB"]),
        ({"memory_gb": 0}, []),
        ({"slurm": ("mem-per-cpu=4G",)}, ["mem-per-cpu=4G"]),
        ({"slurm": ("mem=0",), "memory_gb": 3}, ["mem=0"]),
    ],
)
def test_slurm_is_told_one_amount_of_memory(jobs, memory, sbatch):
    options = sbatch(**jobs)
    assert [option for option in options if option.startswith("mem")] == memory
    assert not [option for option in options if option.startswith("gpus")]


@pytest.mark.parametrize(
    "jobs",
    [
        *({"slurm": (option,)} for option in ("=x", "exclusive=", "", "a b=1", "comment=a\nb", "-x=1")),
        *({"partition": name} for name in ("a\n#SBATCH --uid=0", "a b", "-x")),
        *({name: 0} for name in ("minutes", "cpus", "at_once", "grace", "shards")),
        {"gpus": -1}, {"memory_gb": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_sbatch_would_not_take_is_refused(jobs):
    (name,) = jobs
    with pytest.raises(ConfigError, match=f"^{name}: .*give"):
        launch.executor(launch.Jobs(launcher="local", **jobs), "x")


def test_jobs_leave_their_logs_beside_the_runs(tmp_path):
    made = launch.executor(launch.Jobs(launcher="local", runs_dir=tmp_path), "x")
    assert made.folder.parent == tmp_path / "jobs"


def test_a_dry_run_writes_nothing_and_asks_for_no_devices(tmp_path, capsys):
    tiny_experiment.EXPERIMENT.main(["--dry-run", "--devices", "99", "--runs-dir", str(tmp_path / "runs")])
    assert capsys.readouterr().out.splitlines() == [
        "2 methods, 2 seeds each: 4 networks in 2 programs, 3 tasks",
        "no probe measures anything",
        "nothing was run",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # It starts a process.
def test_a_setting_that_the_experiment_refuses_is_no_job(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    line = f"tests.tiny_experiment --launcher local --shards 2 --runs-dir {tmp_path}/runs --sweep method.l3=1"
    with pytest.raises(SystemExit) as error:
        cli.main(["sweep", *line.split()])
    assert error.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "sweep: 'method.l3' is unknown (did you mean 'method.l2'?)" in err
    assert not list(tmp_path.iterdir())


def test_a_job_is_requeued_as_what_it_was(tmp_path):
    started = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({os.fspath(started)!r}).touch(); time.sleep(60)"
    shard = launch.Shard([sys.executable, "-c", code], grace=16)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(shard)
        while not started.exists():
            time.sleep(0.01)
        again = shard.checkpoint()
        with pytest.raises(RunError, match=f"status {-signal.SIGTERM}"):
            running.result()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.command == shard.command
    with pytest.raises(RunError, match="status 3"):
        launch.Shard([sys.executable, "-c", "raise SystemExit(3)"], 90)()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("tests.nothing", ("'tests.nothing'", "no module")),
        ("rl_gymnx", ("did you mean 'rl_gymnax'?",)),
        ("tests.tiny_experiment --shards 2", ("shards: 2", "--shard i/2")),
        ("tests.tiny_experiment --launcher local --shard 0/2", ("shard: 0/2",)),
    ],
)
def test_refusals(line, names, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["sweep", *line.split()])
    assert error.value.code == 2
    printed = capsys.readouterr().err
    for name in names:
        assert name in printed


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_no_shard(shard):
    with pytest.raises(ConfigError, match=r"shard: .* i/n"):
        tiny_experiment.EXPERIMENT.parse(["--shard", shard])


def test_a_wandb_agents_command_line_is_ours():
    from wandb.sdk.launch.sweeps import utils

    from experiments import rl_gymnax

    asked = {"ppo.learning_rate": 0.001, "l2_er.er_lr": 1e-05, "first_seed": 4, "methods": "l2_er", "stream.sigma": 0.5}
    template = utils.create_sweep_command(["${env}", "python", "-m", "experiments.rl_gymnax", "${args}"])
    filled = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in asked.items()}})
    line = [part for word in template for part in (filled["args"] if word == "${args}" else [word])]
    assert line[1:4] == ["python", "-m", "experiments.rl_gymnax"]
    config = rl_gymnax.EXPERIMENT.parse(line[4:])
    assert (config.ppo.learning_rate, config.l2_er.er_lr, config.first_seed) == (0.001, 1e-5, 4)
    assert (config.methods, config.stream_settings.sigma) == (("l2_er",), 0.5)
