"""Records of studies that nobody trained: what a run writes, of any methods, seeds and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.probes import built
from plastax.methods import METHODS
from plastax.records import layout
from plastax.runs import loop
from plastax.types import Record


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Numbers as a report expects them: finite seeds, eigenvalues over decades, weights that sum to one."""
    value = rng.lognormal(size=shape).astype(np.float32)
    match name.rpartition("/")[2]:
        case "alive":
            return np.ones_like(value)
        case "nodes":
            return np.sort(value**3 * rng.choice([-1, 1], shape), axis=-1)
        case "weights" if value.ndim > 2:
            return value / value.sum(axis=-1, keepdims=True)
        case _:
            return value


def write(run: Path, methods: int, seeds: int, tasks: int, preset: str = "default") -> int:
    """Writes a run of `rl_gymnax` that ended, with what its default probes record; returns its bytes.

    Args:
      run: the run directory, made here.
      methods: how many of `METHODS`.
      seeds: of each.
      tasks: of each; a record each.
      preset: of the experiment.
    """
    names = ["backprop", *(name for name in METHODS if name != "backprop")][:methods]
    # A record has all seeds, whatever a call trains: here one call trains them all.
    given = ["--preset", preset, "--methods", "backprop", "--seeds", str(seeds), "--seed-chunk", "0"]
    given += ["--tasks", str(tasks)]
    config, build = built("rl_gymnax", given)
    study = build(config)
    (batch,), length = study.batches, study.plan.updates_per_task
    program, clock = batch.program, jnp.int32(0)
    state, data = jax.eval_shape(program.init, batch.like, program.data), program.data
    train = jax.eval_shape(lambda s, d, c: program.segment(s, d, c, length)[1], state, data, clock)
    probe = jax.eval_shape(program.measure, program.view(state), data, clock)
    about: dict[str, Any] = {
        "experiment": "rl_gymnax", "run_id": run.name, "hash": "", **loop.axes(study.batches), "format": layout.FORMAT,
        "settings": {"methods": names, "seeds": seeds, "tasks": tasks, "updates_per_task": length},
    }  # fmt: skip
    layout.write_json(run / "config.json", about)
    rng, size = np.random.default_rng(0), 0
    record = Record(
        {name: _values(name, x.shape, rng) for name, x in train.items()},
        {name: _values(name, (seeds, 2, *x.shape[1:]), rng) for name, x in probe.items()},
    )
    host = {"length": length, "env_steps": 1e4 * seeds, "train_seconds": 1.0, "probe_seconds": 0.1}
    for name in names:
        for task in range(tasks):
            path = layout.write_segment(
                layout.records_folder(run, about, name), task, record, {"clock": task * length, "task": task, **host},
                layout.owner(about, name),
            )  # fmt: skip
            size += path.stat().st_size
    return size
