"""The accelerator benchmark: it runs without what such machines lack, over devices, and keeps what it has measured."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import _networks, _trials, accelerator
from experiments.rl_gymnax import DEFAULTS
from plastax.rl import Chain

ROOT = pathlib.Path(__file__).parent.parent.parent
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"gymnax", "wandb", "tyro", "orbax", "xarray", "plotly", "pandas", "matplotlib"}:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
from experiments.bench import accelerator
accelerator.main(sys.argv[1:])
"""


def toy(out: pathlib.Path, *parts: str) -> list[dict]:
    """The rows of a toy run on two devices, in a process that finds nothing of what a bare machine lacks."""
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT, "--minutes", "20", "--out", str(out), "--parts", *parts]
    done = subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    machine, *rows = map(json.loads, out.with_suffix(".jsonl").read_text().splitlines())
    assert "cpu x 2" in machine["machine"]
    assert out.with_suffix(".txt").read_text() == done.stdout
    assert len(done.stdout.splitlines()) == 1 + len(rows)
    assert all(row.get("seconds", 0) > 0 for row in rows), done.stdout
    return rows


def test_networks_train_on_a_bare_machine(tmp_path):
    rows = toy(tmp_path / "table", "seeds")
    assert [row["what"] for row in rows] == ["rl_gymnax, 2", "784-8-8-10, batch 16, 2"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_and_sides_agree(tmp_path):
    rows = toy(tmp_path / "table", *_trials.PARTS)
    assert {row["part"] for row in rows} == {*_trials.PARTS}
    off = [float(note.split()[-1]) for row in rows for note in row["notes"] if note.startswith("differs by")]
    assert len(off) == 9
    assert max(off) < 0.03  # bf16 has three digits.
    assert sum("within their errors" in " ".join(row["notes"]) for row in rows) == 1


def test_what_fails_is_a_line_and_what_is_late_is_left_out():
    def broken() -> list:
        raise RuntimeError("no such kernel\nand more")

    trial = _trials.Trial("seeds", "broken", broken, 1.0, "steps")
    failed, again = accelerator.rows([trial, trial], minutes=1)
    assert failed == again
    assert accelerator.line(failed).endswith("failed: RuntimeError: no such kernel")
    (late,) = accelerator.rows([trial], minutes=-1)
    assert accelerator.line(late).endswith("left out: no time")


def test_cartpole_is_gymnax_s_and_the_agent_that_of_the_experiment():
    assert dataclasses.replace(DEFAULTS["ppo"], kronecker_every=0) == _networks.AGENT

    def falling(env: str) -> jax.Array:
        stream = Chain(env).build()
        task = stream.task(jax.random.key(0), jnp.int32(1))

        def step(state, key):
            state, seen = stream.environment.step(key, state, jnp.int32(1), task)
            return state, (seen.observation, seen.final_observation, seen.reward, seen.terminated, seen.truncated)

        first, state = stream.environment.reset(jax.random.key(1), task)
        _, seen = jax.jit(jax.lax.scan, static_argnums=0)(step, state, jax.random.split(jax.random.key(2), 25))
        return jax.tree.map(np.asarray, (first, seen))

    theirs, ours = falling("CartPole-v1"), falling("experiments.bench._cartpole:CartPole")
    assert theirs[1][3].sum() >= 2  # It falls within ten steps when pushed one way.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), theirs, ours)
