"""Device memory that does not suffice: a message with numbers and settings, and the chunk of seeds that fits."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments import _study
from plastax import memory, parallel, run, runs, settings
from plastax.types import Program, Record

SEEDS = 6
SETTINGS = {"seeds": SEEDS, "seed_chunk": 0, "probes": ["hessian"], "hessian": {"order": 64}, "tasks": 1}
SIZE = 1 << 16


def batches(chunk: int = 0, size: int = SIZE, seeds: int = SEEDS) -> list[parallel.Batch]:
    """Networks that need ``size`` floats each, whatever XLA does."""

    def segment(state: jax.Array, data: Any, clock: jax.Array, length: int) -> tuple[jax.Array, Record]:
        values = jnp.sort(state + jnp.arange(size, dtype=jnp.float32) * -1.0)
        return state + values[size // 2], Record({"loss": jnp.full(length, values[0])}, {})

    program = Program(lambda key, data: jax.random.uniform(key), segment, (), {}, {})
    return [parallel.batch(lambda _: program, {"greedy": {}}, range(seeds), chunk)]


def needed(chunk: int) -> int:
    (batch,) = batches(chunk)
    found = memory.need(memory.compile_segment(batch, (), 1)[1])
    assert found is not None
    return found.total


def test_the_program_that_does_not_fit_is_explained(tmp_path):
    """64 TiB a network: XLA really refuses."""
    config = {"experiment": "x", "run_id": "x", "hash": "x", "settings": SETTINGS | {"updates_per_task": 1}}
    with pytest.raises(memory.OutOfMemory) as error:
        run.study(tmp_path, config, batches(size=1 << 44), run.Plan(1, 1, 1, 1))
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "out of device memory in greedy", "GiB", "are free", "seed_chunk (6 of 6 seeds side by side; --auto-chunk",
        "seeds (6)", "probes (hessian)", "hessian.order (64)",
    ):  # fmt: skip
        assert part in message
    assert runs.status(tmp_path)[0] == "failed"
    assert runs.status(tmp_path).detail == message


def test_the_largest_chunk_that_fits():
    sizes = {chunk: needed(chunk) for chunk in (1, 2, 3, 6)}
    assert sizes[1] < sizes[2] < sizes[3] < sizes[6]
    assert sizes[6] > 4 * SEEDS * SIZE
    for chunk in (1, 2, 3):
        assert memory.fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[chunk]) == chunk
    assert memory.fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[6]) == 0
    assert memory.fitting_chunk(batches, SEEDS, 1, SETTINGS) == 0
    with pytest.raises(memory.OutOfMemory, match=r"seed_chunk \(1 of 6 seeds side by side"):
        memory.fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[1] - 1)


def test_what_xla_refuses_while_it_runs_does_not_fit_either():
    with pytest.raises(memory.OutOfMemory, match=r"seed_chunk \(1 of 2 seeds"):
        memory.fitting_chunk(lambda c: batches(c, 1 << 44, 2), 2, 1, SETTINGS | {"seeds": 2}, limit=1 << 60)


@dataclasses.dataclass(frozen=True)
class Config(settings.Study):
    """A study of the tiny networks of `tests.killing`."""


def test_a_study_takes_the_chunk_that_fits(tmp_path, monkeypatch):
    """``--auto-chunk``: found before the run begins, and part of its settings, for it may change the last bits."""

    def build(config: Config) -> tuple[list[parallel.Batch], run.Plan]:
        return batches(config.seed_chunk), run.Plan(1, 1, 1, 1)

    config = Config(methods=("greedy",), probes=(), seeds=SEEDS, tasks=1, runs_dir=tmp_path, wandb="disabled")
    config = dataclasses.replace(config, auto_chunk=True, compilation_cache=False)
    available = int(needed(3) / memory.ROOM) + 1
    monkeypatch.setattr(memory, "available", lambda: available)
    monkeypatch.setattr(_study.report, "write", lambda directory: None)
    printed = io.StringIO()
    _study.carry_out("tiny", config, {}, build, console=Console(file=printed, width=200))
    assert "3 of 6 seeds fit side by side" in printed.getvalue()
    (directory,) = (tmp_path / "tiny").iterdir()
    assert json.loads((directory / "config.json").read_text())["settings"]["seed_chunk"] == 3
