"""Shards of a study as jobs, on this machine or on SLURM, through submitit.

A job is the command ``plastax run <experiment> <settings> --shard i/n``. It may be killed and started again at any
time, because a shard continues what its run directory holds. Pre-emption is a SIGTERM, after which the command ends
with a checkpoint, and the same command again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plastax import ranges
from plastax.errors import ConfigError, RunError, Stopped
from plastax.study import catalogue

if TYPE_CHECKING:
    import submitit

_RUN = (sys.executable, "-m", "plastax", "run")


@dataclass(frozen=True)
class Jobs:
    """How the shards of a study are run. All other settings are the experiment's: see its --help."""

    shard: str = ""
    """i/n: run this shard in this process, without a launcher. By default 0/1: all arms."""
    launcher: Literal["none", "local", "slurm"] = "none"
    """none: in this process; local: one process per shard on this machine; slurm: a job array."""
    shards: int = 1
    """Number of jobs to divide the arms among."""
    at_once: int = 256
    """The most jobs that run at the same time."""
    minutes: int = 1440
    """Time limit of a job, in minutes. A job that reaches it is requeued and continues."""
    grace: int = 90
    """Seconds of warning before a job ends; long enough for a segment and a checkpoint."""
    partition: str = ""
    """SLURM partition."""
    gpus: int = 0
    """GPUs per job."""
    cpus: int = 2
    """Cores per job."""
    memory_gb: int = 8
    """Memory per job, in GB. 0: the default of the cluster. An option mem... in slurm overrides it."""
    slurm: tuple[str, ...] = ()
    """More options of sbatch: name=value, or a name alone (account=lab constraint=a100 exclusive)."""
    runs_dir: Path | None = None
    """Directory of all runs; by default the experiment's."""
    logs: Path | None = None
    """Directory of the files and logs of jobs, in a folder per job id; by default <runs-dir>/jobs."""

    def check(self) -> None:
        """Raises `ConfigError` for values that a launcher would refuse."""
        ranges.check(self, "", "shards", "at_once", "minutes", "grace", "cpus", least=1)
        ranges.check(self, "", "gpus", "memory_gb", least=0)
        # A newline in a value would add a line to the batch script.
        if self.partition and not re.fullmatch(r"\w[\w,.-]*", self.partition):
            raise ConfigError(f"partition: {self.partition!r} is not allowed; give the name of one, or several: a,b")
        for option in self.slurm:
            if not re.fullmatch(r"[a-z][a-z-]*(=[^\x00-\x1f]+)?", option):
                raise ConfigError(f"slurm: {option!r} is not allowed; give name=value, or a name alone: exclusive")


class Shard:
    """The command of a shard as a submitit job, which can be interrupted and requeued."""

    def __init__(self, command: Sequence[str], grace: int) -> None:
        self.command = list(command)
        self.grace = grace
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the command until it is finished; raises `RunError` if it fails."""
        status = Stopped.status
        while status == Stopped.status:
            # Only the first start obeys --fresh: a later one would start the job's own run again.
            command, self.command = self.command, [word for word in self.command if word != "--fresh"]
            # SLURM sends the signal for submitit to all processes of the job, so the command must ignore it. A shell
            # sets that up: Popen's preexec_fn is unsafe in a process with threads.
            self._process = subprocess.Popen(["sh", "-c", 'trap "" USR2; exec "$@"', "sh", *command])
            try:
                status = self._process.wait()
            finally:
                self._process.kill()
        if status:
            raise RunError(f"{shlex.join(self.command)} ended with status {status}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Stops the process after a checkpoint, if there is time. submitit calls this before it requeues the job."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(max(1, self.grace - 15))
            except subprocess.TimeoutExpired:
                # Its earlier checkpoints are intact.
                self._process.kill()
        return submitit.helpers.DelayedSubmission(Shard(self.command, self.grace))


def commands(experiment: str, settings: Sequence[str], shards: int) -> list[list[str]]:
    """The command of every shard."""
    return [[*_RUN, experiment, *settings, "--shard", f"{i}/{shards}"] for i in range(shards)]


def executor(jobs: Jobs, name: str) -> submitit.AutoExecutor:
    """A submitit executor with the settings of the jobs.

    Raises:
      ConfigError: a setting is refused, or this machine does not have the launcher.
    """
    import submitit

    jobs.check()
    logs = jobs.logs or (jobs.runs_dir or Path("runs")) / "jobs"
    try:
        made = submitit.AutoExecutor(folder=logs / "%j", cluster=jobs.launcher, slurm_max_num_timeout=1_000_000)
    except RuntimeError as error:
        raise ConfigError(f"launcher: {jobs.launcher} is not available ({error})") from error
    # submitit writes an option whose value is True as a flag.
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
    """Runs a shard of an experiment in this process, or submits all shards to a launcher and returns the jobs.

    Args:
      experiment: see `catalogue.find`.
      jobs: how the shards are run.
      settings: the experiment's command line.

    Raises:
      ConfigError: there is no such experiment, or a setting of the jobs is refused.
      SystemExit: the experiment refused its settings and said why; nothing was submitted.
    """
    found = catalogue.find(experiment)
    if jobs.runs_dir is not None:
        settings = [*settings, "--runs-dir", str(jobs.runs_dir)]
    if jobs.launcher == "none":
        if jobs.shards != 1:
            raise ConfigError(
                f"shards: {jobs.shards} needs a launcher; give --shard i/{jobs.shards}, or --launcher local"
            )
        found.main([*settings, "--shard", jobs.shard or "0/1"])
        return []
    if jobs.shard:
        raise ConfigError(f"shard: {jobs.shard} is not allowed with a launcher; give --shards, their number")
    jobs.check()
    # In a process of its own and on the CPU: a login node may have no accelerator.
    check = [*_RUN, experiment, *settings, "--dry-run"]
    if status := subprocess.run(check, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(status)
    made = executor(jobs, found.name)
    return made.submit_array([Shard(command, jobs.grace) for command in commands(experiment, settings, jobs.shards)])
