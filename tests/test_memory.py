"""Device memory that does not suffice: a message with numbers and settings, and the chunk of seeds that fits."""

from __future__ import annotations

import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from plastax import report
from plastax.program import parallel
from plastax.records import lifecycle
from plastax.runs import loop, memory
from plastax.runs.compiled import compiled, fitting_chunk, need
from plastax.runs.plan import Plan
from plastax.study import settings
from plastax.study.experiment import Experiment, Prepared, Shared
from plastax.types import Program
from tests import programs

SEEDS = 6
SETTINGS = {"seeds": SEEDS, "seed_chunk": 0, "probes": ["hessian"], "hessian": {"order": 64}, "tasks": 1}
SIZE = 1 << 16


def greedy(size: int = SIZE) -> Program:
    """A network that needs ``size`` floats, whatever XLA does."""

    def segment(state: jax.Array, data: Any, clock: jax.Array, length: int) -> tuple[jax.Array, Any]:
        values = jnp.sort(state + jnp.arange(size, dtype=jnp.float32) * -1.0)
        return state + values[size // 2], {"loss": jnp.full(length, values[0])}

    return programs.simple(segment)


def batches(chunk: int = 0, size: int = SIZE, seeds: int = SEEDS) -> list[parallel.Batch]:
    return [parallel.batch(lambda _: greedy(size), {"greedy": {}}, range(seeds), chunk)]


def needed(chunk: int) -> int:
    (batch,) = batches(chunk)
    found = need(compiled(batch, 1, SETTINGS))
    assert found is not None
    return found.total


def test_the_program_that_does_not_fit_is_explained(tmp_path):
    """64 TiB a network: XLA really refuses."""
    config = {"experiment": "x", "run_id": "x", "hash": "x", "settings": SETTINGS | {"updates_per_task": 1}}
    with pytest.raises(memory.OutOfMemory) as error:
        loop.study(tmp_path, config, batches(size=1 << 44), Plan(1, 1, 1, 1))
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "out of memory in greedy", "GiB", "are free", "seed_chunk (6 of 6 seeds at once; --auto-chunk",
        "seeds (6)", "probes (hessian)", "hessian.order (64)",
    ):  # fmt: skip
        assert part in message
    assert lifecycle.status(tmp_path)[0] == "failed"
    assert lifecycle.status(tmp_path).detail == message


def test_the_largest_chunk_that_fits():
    sizes = {chunk: needed(chunk) for chunk in (1, 2, 3, 6)}
    assert sizes[1] < sizes[2] < sizes[3] < sizes[6]
    assert sizes[6] > 4 * SEEDS * SIZE
    for chunk in (1, 2, 3):
        assert fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[chunk]) == chunk
    assert fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[6]) == 0
    assert fitting_chunk(batches, SEEDS, 1, SETTINGS) == 0
    with pytest.raises(memory.OutOfMemory, match=r"seed_chunk \(1 of 6 seeds at once"):
        fitting_chunk(batches, SEEDS, 1, SETTINGS, limit=sizes[1] - 1)


def test_what_xla_refuses_while_it_runs_does_not_fit_either():
    with pytest.raises(memory.OutOfMemory, match=r"seed_chunk \(1 of 2 seeds"):
        fitting_chunk(lambda c: batches(c, 1 << 44, 2), 2, 1, SETTINGS | {"seeds": 2}, limit=1 << 60)


def test_what_xla_says_is_compared_with_what_is_free_before_it_runs(tmp_path, monkeypatch):
    config = {"experiment": "x", "run_id": "x", "hash": "x", "settings": SETTINGS | {"updates_per_task": 1}}
    enough = needed(0)
    monkeypatch.setattr(memory, "available", lambda: enough - 1)
    with pytest.raises(memory.OutOfMemory, match=r"the program needs .* and .* are free; lower one of: seed_chunk"):
        loop.study(tmp_path, config, batches(), Plan(1, 1, 1, 1))
    assert not list(tmp_path.glob("records/*/*.npz"))
    monkeypatch.setattr(memory, "available", lambda: enough)
    loop.study(tmp_path, config, batches(), Plan(1, 1, 1, 1))


def test_what_the_networks_keep_is_known_before_anything_is_made(assert_nothing_compiles):
    """So many networks that not even their numbers could be written down."""
    (batch,) = batches(seeds=10**12)
    with assert_nothing_compiles(), pytest.raises(memory.OutOfMemory) as error:
        memory.check_state(batch, SETTINGS | {"seeds": 10**12, "model_settings": {"hidden": [5, 10**6]}})
    assert "1,000,000,000,000 networks are 11,175.9 GiB, and " in str(error.value)
    assert str(error.value).endswith(
        "lower one of: seeds (1000000000000), probes (hessian), hessian.order (64), model.hidden (5 1000000)"
    )


@pytest.mark.parametrize("kind", ["carried", "stacked"])
def test_a_loop_that_cannot_fit_is_refused_before_it_is_compiled(kind):
    def segment(state: jax.Array, data: Any, clock: jax.Array, length: int) -> tuple[jax.Array, Any]:
        large = jnp.zeros(1 << 44) if kind == "carried" else jnp.zeros(())
        large, stacked = jax.lax.scan(lambda x, _: (x + 1, x + state), large, length=1 << (0 if large.size > 1 else 44))
        return state + large.sum() + stacked.sum(), {}

    batch = parallel.batch(lambda _: programs.simple(segment), {"greedy": {}}, range(2))
    with pytest.raises(memory.OutOfMemory, match=r"one of its loops keeps [\d,.]+ GiB"):
        compiled(batch, 1, SETTINGS)


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 10240 bytes."),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes."),
        OverflowError("An overflow was encountered while parsing an argument to a jitted computation, whose ..."),
        ValueError("Maximum allowed dimension exceeded"),
        MemoryError("Unable to allocate 72.8 TiB for an array with shape (10000000000000,)"),
        MemoryError(),
    ],
    ids=str,
)
def test_all_words_for_too_little_memory_are_one_line(error):
    with (
        pytest.raises(memory.OutOfMemory, match=r"out of memory in x: .+; lower one of: seeds"),
        memory.explained("x", {}),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [OverflowError("cannot convert float infinity to integer"), ValueError("no"), KeyError(1)]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), memory.explained("x", {}):
        raise error


def test_a_study_takes_the_chunk_that_fits(tmp_path, monkeypatch):
    """``--auto-chunk``: found before the run begins, and part of its settings, for it may change the last bits."""

    prepared = Prepared(Plan(1, 1, 1, 1), lambda _: greedy(), [])
    experiment = Experiment("tiny", settings.Config, {}, {}, lambda *_: prepared, lambda config: Shared(None))
    config = settings.Config(
        methods=("backprop",),
        probes=(),
        seeds=SEEDS,
        tasks=1,
        runs_dir=tmp_path,
        wandb="disabled",
        auto_chunk=True,
        devices=1,
        compilation_cache=False,
    )
    available = int(needed(3) / memory.USABLE) + 1
    monkeypatch.setattr(memory, "available", lambda: available)
    monkeypatch.setattr(report, "write", lambda directory: None)
    printed = io.StringIO()
    experiment.run(config, Console(file=printed, width=200))
    assert "3 of 6 seeds fit at once" in printed.getvalue()
    (directory,) = (tmp_path / "tiny").iterdir()
    assert json.loads((directory / "config.json").read_text())["settings"]["seed_chunk"] == 3
