"""Shards of a study as jobs: on this machine, or by SLURM, through submitit; the only module that knows it.

A job is the command ``python -m <experiment> <settings> --shard i/n``. It may be killed and started again at any
moment, because a shard continues what its run directory holds; so pre-emption is nothing but SIGTERM, which leaves a
checkpoint behind the segment under way, and the same command once more.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plastax.errors import ConfigError, RunError, Stopped

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class Jobs:
    """How a study's shards are run. All other settings are the experiment's own, see its --help."""

    shard: str = ""
    """i/n: run this shard here; without a launcher. All arms by default, 0/1."""
    launcher: Literal["none", "local", "slurm"] = "none"
    """none: in this process; local: a process a shard on this machine; slurm: a job array."""
    shards: int = 1
    """Number of jobs of a launcher, among which the arms are divided."""
    at_once: int = 256
    """Jobs of the array that may run at the same time."""
    minutes: int = 1440
    """Time limit of a job; what is left then is requeued, as after a pre-emption."""
    grace: int = 90
    """Seconds before the end of a job at which it is told: those of a segment and a checkpoint."""
    partition: str = ""
    """SLURM partition."""
    gpus: int = 0
    """GPUs of a job; 0: none are asked for."""
    cpus: int = 2
    """Cores of a job."""
    memory_gb: int = 8
    """Memory of a job; 0: what the cluster gives. An option mem... in slurm takes its place."""
    slurm: tuple[str, ...] = ()
    """More sbatch options, name=value or a name alone (account=lab constraint=a100 exclusive)."""
    runs_dir: Path | None = None
    """Where runs go; by default as the experiment has it."""
    logs: Path | None = None
    """Where the jobs' files and logs go, each into a folder of its number; by default <runs-dir>/jobs."""

    def check(self) -> None:
        """Raises `ConfigError` for what no launcher takes."""
        least_of = {"shards": 1, "at_once": 1, "minutes": 1, "grace": 1, "cpus": 1, "gpus": 0, "memory_gb": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} is not allowed; give {least} or more")
        # A value with an end of line would be a line of its own in the batch script.
        if self.partition and not re.fullmatch(r"\w[\w,.-]*", self.partition):
            raise ConfigError(f"partition: {self.partition!r} is not allowed; give the name of one, or several: a,b")
        for option in self.slurm:
            if not re.fullmatch(r"[a-z][a-z-]*(=[^\x00-\x1f]+)?", option):
                raise ConfigError(f"slurm: {option!r} is not allowed; give name=value, or a name alone: exclusive")


class Shard:
    """A shard's command as a job of submitit's: started again wherever it was interrupted."""

    def __init__(self, command: Sequence[str], grace: int) -> None:
        self.command = list(command)
        self.grace = grace
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the command to its end, again and again if it is asked to stop."""
        status = Stopped.status
        while status == Stopped.status:
            # Only the first start obeys --fresh: a later one would throw away what the job has done.
            command, self.command = self.command, [word for word in self.command if word != "--fresh"]
            # SLURM sends the signal that is meant for submitit to all processes of the job. The shell becomes the
            # command: Python's own hook would fork a process that JAX may have given threads.
            self._process = subprocess.Popen(["sh", "-c", 'trap "" USR2; exec "$@"', "sh", *command])
            try:
                status = self._process.wait()
            finally:
                self._process.kill()
        if status:
            raise RunError(f"{shlex.join(self.command)} ended with status {status}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before it requeues: lets the process leave a checkpoint, if there is time."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(max(1, self.grace - 15))
            except subprocess.TimeoutExpired:
                # What it had saved before is whole.
                self._process.kill()
        return submitit.helpers.DelayedSubmission(Shard(self.command, self.grace))


def commands(experiment: str, settings: Sequence[str], shards: int) -> list[list[str]]:
    """The command of every shard."""
    return [[sys.executable, "-m", experiment, *settings, "--shard", f"{i}/{shards}"] for i in range(shards)]


def executor(jobs: Jobs, name: str) -> submitit.AutoExecutor:
    """The executor of submitit with the settings of the jobs.

    Raises:
      ConfigError: a setting is not allowed, or this machine has no such launcher.
    """
    import submitit

    jobs.check()
    logs = jobs.logs or (jobs.runs_dir or Path("runs")) / "jobs"
    try:
        made = submitit.AutoExecutor(folder=logs / "%j", cluster=jobs.launcher, slurm_max_num_timeout=1_000_000)
    except RuntimeError as error:
        raise ConfigError(f"launcher: {jobs.launcher} is not here ({error})") from error
    # An option without a value is a flag, which is True to submitit.
    options = {name: value or True for name, _, value in (option.partition("=") for option in jobs.slurm)}
    if jobs.launcher == "slurm":
        options |= {"partition": jobs.partition} if jobs.partition else {}
    asked = {"gpus_per_node": jobs.gpus, "mem_gb": 0 if any(o.startswith("mem") for o in options) else jobs.memory_gb}
    made.update_parameters(
        name=name,
        timeout_min=jobs.minutes,
        cpus_per_task=jobs.cpus,
        tasks_per_node=1,
        nodes=1,
        slurm_array_parallelism=jobs.at_once,
        slurm_signal_delay_s=jobs.grace,
        slurm_additional_parameters=options,
        **{name: number for name, number in asked.items() if number},
    )
    return made


def launch(experiment: str, jobs: Jobs, settings: Sequence[str]) -> list[submitit.Job[None]]:
    """Runs a shard of an experiment here, or gives all of them to a launcher and returns the jobs.

    Args:
      experiment: a module, ``experiments.rl_gymnax``.
      jobs: how.
      settings: the experiment's own, as on its command line.

    Raises:
      ConfigError: there is no such module, or no such number of shards.
      SystemExit: the experiment refuses its settings, in a line of its own; nothing is submitted.
    """
    try:
        found = importlib.util.find_spec(experiment)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(f"experiment: {experiment!r} is no module; give experiments.rl_gymnax, say")
    if jobs.runs_dir is not None:
        settings = [*settings, "--runs-dir", str(jobs.runs_dir)]
    if jobs.launcher == "none":
        if jobs.shards != 1:
            raise ConfigError(
                f"shards: {jobs.shards} is for launchers; give --shard i/{jobs.shards}, or --launcher local"
            )
        sys.argv = [experiment, *settings, "--shard", jobs.shard or "0/1"]
        runpy.run_module(experiment, run_name="__main__", alter_sys=True)
        return []
    if jobs.shard:
        raise ConfigError(f"shards: {jobs.shard} is not allowed with a launcher; give their number")
    jobs.check()
    # Not in this process, which holds no device; and where jobs are submitted there may be none.
    check = [sys.executable, "-m", experiment, *settings, "--dry-run"]
    if status := subprocess.run(check, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(status)
    made = executor(jobs, experiment.rpartition(".")[2])
    return made.submit_array([Shard(command, jobs.grace) for command in commands(experiment, settings, jobs.shards)])
