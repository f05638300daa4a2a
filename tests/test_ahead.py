"""While one batch trains, the next one's program compiles in a thread."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.random_label import EXPERIMENT
from plastax.program import parallel
from plastax.records import layout, lifecycle
from plastax.runs import loop
from plastax.runs.ahead import Ahead
from plastax.runs.plan import Plan, Saving
from tests import programs

PLAN = Plan(tasks=2, updates_per_task=1, updates_per_segment=1, steps_per_update=1)


def batch(name: str, step) -> parallel.Batch:
    """One network whose update is ``step(state) -> state``; ``step`` runs in Python when the program is traced."""

    def segment(state, data, clock, length):
        state = step(state)
        return state, {"loss": jnp.full(length, state)}

    return parallel.batch(lambda _: programs.simple(segment), {name: {}}, range(2))


def run(directory, *batches):
    names = [one.name for one in batches]
    settings = {"methods": names, "seeds": 2, "first_seed": 0, "tasks": 2, "updates_per_task": 1}
    config = {"experiment": "x", "run_id": "x", "hash": "x", "settings": settings}
    return loop.study(directory, config, batches, PLAN, saving=Saving(1))


def test_the_next_program_compiles_while_one_trains(tmp_path):
    compiling, overlapped = threading.Event(), []

    def waits(state):
        def wait(value):
            overlapped.append(compiling.wait(60))
            return value

        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), state, vmap_method="broadcast_all")

    def second(state):
        compiling.set()
        return state + 1

    shares = run(tmp_path, batch("first", waits), batch("second", second))
    assert overlapped
    assert all(overlapped)
    assert list(shares) == ["first", "second"]
    record = layout.read_segment(tmp_path / "records" / "second" / "000000.npz")
    assert record.host["compilations"] >= 2
    assert record.host["compile_seconds"] > 0


def test_training_begins_without_the_program_that_measures(tmp_path):
    trained, waited = threading.Event(), []

    def train(state):
        def told(value):
            trained.set()
            return value

        return 1 + jax.pure_callback(told, jax.ShapeDtypeStruct((), jnp.float32), state, vmap_method="broadcast_all")

    def measure(view, data, border):
        waited.append(trained.wait(60))
        return {"x/value": view}

    def measured(one):
        program = one.program._replace(measure=measure, due=lambda done, ending: True)
        return one._replace(program=program)

    run(tmp_path, measured(batch("first", train)))
    assert waited
    assert all(waited)
    first, second = (layout.read_segment(tmp_path / "records" / "first" / f"00000{k}.npz").probe for k in range(2))
    # The values at the start are of the network before it was trained.
    np.testing.assert_allclose(np.diff(first["x/value"]), 1)
    np.testing.assert_array_equal(first["x/value"][:, 1], second["x/value"][:, 0])


def test_a_program_that_does_not_compile_fails_in_its_own_turn(tmp_path):
    def broken(state):
        raise ValueError("no such program")

    with pytest.raises(ValueError, match="no such program"):
        run(tmp_path, batch("first", lambda state: state * 2), batch("second", broken))
    assert sorted(path.name for path in (tmp_path / "records" / "first").iterdir()) == ["000000.npz", "000001.npz"]
    assert lifecycle.status(tmp_path).state == "failed"
    # The same start later trains only what is missing.
    shares = run(tmp_path, batch("first", lambda state: state * 2), batch("second", lambda state: state + 1))
    assert list(shares) == ["second"]
    for arm in ("first", "second"):
        assert np.isfinite(layout.read_segment(tmp_path / "records" / arm / "000001.npz").train["loss"]).all()


def test_what_is_measured_alike_is_compiled_once():
    """By methods of one network; another network's measurement is its own."""
    config = EXPERIMENT.parse(["--preset", "smoke", "--methods", "backprop", "l2", "layernorm", "--probes", "weights"])
    built = EXPERIMENT.build(config)
    with Ahead(built.batches, built.plan.updates_per_segment, {}) as ahead:
        backprop, l2, layernorm = (ahead.take(batch) for batch in built.batches)
    assert backprop.measuring is l2.measuring
    assert backprop.measuring is not layernorm.measuring
