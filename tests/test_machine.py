"""What a machine gives: its memory under made-up limits and real ones, and what no run works with."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from plastax import machine
from plastax.errors import ConfigError

GIB = 2**30
ROOT = pathlib.Path(__file__).parent.parent
FILES = {
    "proc/meminfo": "MemTotal:  67108864 kB\nMemFree: 1024 kB\nMemAvailable:   33554432 kB\n",
    "proc/self/status": "Name:\tpython\nVmSize:\t 2097152 kB\nVmRSS:\t 1048576 kB\nVmData:\t 524288 kB\n",
}
V2 = {
    "proc/self/cgroup": "0::/jobs/one/step\n",
    "sys/fs/cgroup/jobs/one/step/memory.max": "max\n",
    "sys/fs/cgroup/jobs/one/step/memory.high": "max\n",
    "sys/fs/cgroup/jobs/one/step/memory.current": f"{GIB}\n",
    "sys/fs/cgroup/jobs/one/memory.max": f"{8 * GIB}\n",
    "sys/fs/cgroup/jobs/one/memory.current": f"{5 * GIB}\n",
    "sys/fs/cgroup/jobs/one/memory.stat": f"anon 1\nfile {4 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\n",
}
V1 = {
    "proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/x/job\n0::/\n",
    "sys/fs/cgroup/memory/x/job/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    "sys/fs/cgroup/memory/x/job/memory.usage_in_bytes": "1\n",
    "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/x/memory.stat": f"inactive_file 7\ntotal_active_file 0\ntotal_inactive_file {GIB}\n",
}
MACHINES = {
    "no limit": ({}, {}, 32),
    "version 2, of a group around": (V2, {}, 6),
    "version 2, throttled": (V2 | {"sys/fs/cgroup/jobs/one/step/memory.high": f"{3 * GIB}"}, {}, 2),
    "version 2, seen from a container": (
        {
            "proc/self/cgroup": "0::/docker/abc",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}",
            "sys/fs/cgroup/memory.current": "0",
        },
        {}, 2,
    ),
    "version 2, outside of the name space": (
        {"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/memory.max": f"{3 * GIB}"}, {}, 3
    ),
    "version 2, more in use than allowed": (V2 | {"sys/fs/cgroup/jobs/one/memory.max": "4096"}, {}, 0),
    "version 1": (V1, {}, 2),
    "version 2 beside version 1": (
        V1 | {"sys/fs/cgroup/unified/memory.max": f"{GIB}", "sys/fs/cgroup/unified/memory.current": "0"}, {}, 1
    ),
    "damaged": ({"proc/self/cgroup": "0::/x", "sys/fs/cgroup/x/memory.max": "many"}, {}, 32),
    "SLURM, a node": ({}, {"SLURM_MEM_PER_NODE": "8192"}, 7),
    "SLURM, CPUs": ({}, {"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4"}, 7),
    "SLURM, CPUs of nodes": ({}, {"SLURM_MEM_PER_CPU": "2048", "SLURM_JOB_CPUS_PER_NODE": "2(x3)"}, 3),
    "SLURM, all of a node": ({}, {"SLURM_MEM_PER_NODE": "0"}, 32),
}  # fmt: skip


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """``pretend(files)``: the root of a machine with these files and without limits of the process."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(files: dict[str, str]) -> pathlib.Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("name", MACHINES)
def test_the_narrowest_limit_counts(pretend, name):
    files, environment, expected = MACHINES[name]
    assert machine.free_memory(pretend(FILES | files), environment) == expected * GIB


def test_a_machine_that_tells_nothing_has_its_physical_memory(pretend):
    assert machine.free_memory(pretend({}), {}) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has taken")
def test_a_real_limit_is_where_allocations_fail():
    """What is said to be free is there, but for the allocator's own; a little more is not. Nothing is written to it."""
    code = """
import mmap, resource
from plastax import machine
def take(size):
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
    resource.setrlimit(limit, (2**31, resource.RLIM_INFINITY))
    free = machine.free_memory()
    assert 0 < free < 2**31, free
    take(free - 2**22)
    try:
        take(free + 2**22)
    except OSError:
        print("as it said")
    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "as it said\nas it said\n"), done.stderr


@pytest.fixture
def told(monkeypatch):
    """``told(name, value)``: an option of JAX has this value."""
    values = dict(jax.config.values)
    return lambda name, value: monkeypatch.setattr(
        type(jax.config), "values", property(lambda _: values | {name: value})
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (values, _) in machine.SWITCHES.items() for value in values],
)
def test_what_no_run_works_with_is_refused(told, name, value):
    machine.check()
    assert name in jax.config.values
    told(name, value)
    with pytest.raises(ConfigError, match=rf"{name.upper()}: {value} is not allowed, for .*; unset it"):
        machine.check()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        pytest.param({"JAX_PLATFORMS": "cpuu"}, "JAX_PLATFORMS: cpuu cannot be used (", marks=pytest.mark.slow),
        ({"PYTHONOPTIMIZE": "1"}, "python -O: flax does not work without assertions"),
    ],
)
def test_a_start_that_cannot_work_is_one_line(tmp_path, variables, said):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.random_label", "--preset", "smoke", "--runs-dir", str(tmp_path / "runs")],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'x'\nmore")])
def test_a_backend_that_is_not_there_is_named(told, monkeypatch, error):
    """What is raised for one that JAX knows and has not, such as CUDA, depends on what is installed."""

    def missing() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", missing)
    told("jax_platforms", "cuda")
    with pytest.raises(ConfigError, match=r"JAX_PLATFORMS: cuda cannot be used \([^\n]+\); unset it, or give cpu"):
        machine.check()
