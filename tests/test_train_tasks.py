"""Supervised training from task to task: what a switch does, and what probes see of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax.curvature import losses
from plastax.keys import fold
from plastax.models import MLP, ResNet18
from plastax.program import supervised
from plastax.program.training import Training
from plastax.types import Array, Examples, Probe, ProbeInput, Program, Stream
from tests import training_runs
from tests.streams.tiny import CLASSES, SHAPE, TEST
from tests.training_runs import (
    CONFIG,
    EXAMPLES,
    LR,
    MODEL,
    QUICK,
    SEEDS,
    WATCH,
    examples,
    joined,
    make,
    run,
    same,
)


@pytest.fixture(scope="module")
def whole():
    return training_runs.whole()


@pytest.fixture(scope="module")
def reset():
    return training_runs.reset()


# --- task switches ----------------------------------------------------------------------------------------------------


def test_methods_see_the_same_tasks_in_the_same_order(whole, reset):
    assert same(whole[0].key, reset[0].key)
    first, other = joined(whole[1]), joined(reset[1])
    # The same network, data and order until the first switch; then another network.
    assert same(*({name: x[:, :4] for name, x in values.items()} for values in (first, other)))
    assert not np.array_equal(first["loss"][:, 4], other["loss"][:, 4])


def switched(program: Program, ran: tuple, task: int) -> supervised.State:
    """The state right after the switch to a task."""
    return jax.jit(program.begin, compiler_options=QUICK)(ran[0], program.data, jnp.int32(4 * task))


def test_reset_starts_with_a_fresh_network(reset):
    for task in (1, 2):
        for k, number in enumerate(SEEDS):
            key = jax.random.split(fold(jax.random.key(number), supervised.Purpose.SWITCH, 4 * task))[0]
            fresh = ravel_pytree(MODEL.init(key))[0]
            np.testing.assert_allclose(reset[1][task].probe["watch/params"][k, 0], fresh, atol=1e-6)


def test_head_reset_draws_the_output_layer_alone(whole):
    config = dataclasses.replace(CONFIG, head="reset")
    state = switched(make(config), whole, 2)
    assert same(state.params["dense_0"], whole[0].params["dense_0"])
    for k, number in enumerate(SEEDS):
        key = jax.random.split(fold(jax.random.key(number), supervised.Purpose.SWITCH, 8))[1]
        fresh = MODEL.init(key)["output"]
        np.testing.assert_allclose(state.params["output"]["kernel"][k], fresh["kernel"], atol=1e-6)
        np.testing.assert_array_equal(state.params["output"]["bias"][k], 0.0)


def test_running_statistics_move_and_restart_with_the_network():
    model = ResNet18((2,), (1,), ()).build(SHAPE, CLASSES)
    config = Training(batch_size=5, evaluation_examples=5, kronecker_every=0, learning_rate=LR)
    program = make(config, "reset", model=model, probes=())
    state, records, _ = run(program, (1,))
    start = jax.tree.map(lambda x: np.broadcast_to(x, (len(SEEDS), *x.shape)), model.stats)
    assert not same(state.stats, start)
    # Evaluated with the running statistics, not with the batch's.
    x, y, _ = jax.tree.map(lambda a: a[supervised.spread(TEST, 5)], examples(SEEDS[0], 0)[1])
    first = functools.partial(jax.tree.map, lambda x: x[0])
    assert model.evaluate is not None
    evaluate = jax.jit(model.evaluate, compiler_options=QUICK)
    outputs = evaluate(first(state.params), first(state.stats), jnp.asarray(x))[0]
    expected = losses.get("cross_entropy").value(outputs, (x, y))
    np.testing.assert_allclose(records[0].probe["evaluation/test_loss"][0, 1], expected, rtol=1e-4)
    begun = jax.jit(program.begin, compiler_options=QUICK)(state, program.data, jnp.int32(1))
    assert same(begun.stats, start)


# --- classes that come one after the other ----------------------------------------------------------------------------


def growing() -> Stream:
    """One more class a task: two, then three."""

    def examples(task: Array, data: tuple, index: Array, key: Any = None) -> Examples:
        del key
        y = index % task
        active = jnp.broadcast_to(jnp.arange(CLASSES)[None] < task, (index.size, CLASSES))
        return Examples(jax.nn.one_hot(y, 4), y, active)

    return Stream((), "cross_entropy", (4,), CLASSES, 12, 6, lambda key, data, i: i + 2, examples, examples, "growing")


def test_classes_to_come_take_no_part():
    config = Training(batch_size=4, epochs=4, updates=4, learning_rate=0.5)
    model = MLP(()).build((4,), CLASSES)

    def measure(seen: ProbeInput) -> dict[str, Array]:
        return {"outputs": seen.outputs_fn(seen.params, seen.batch), "params": seen.params["output"]["kernel"]}

    _, records, _ = run(make(config, stream=growing(), model=model, probes=(Probe("seen", measure, {}, {}),)), (4, 4))
    first, second = (r.probe["seen/params"] for r in records)
    np.testing.assert_array_equal(first[:, 0, :, 2], first[:, 1, :, 2])  # no gradient
    assert np.abs(first[:, 0, :, :2] - first[:, 1, :, :2]).max() > 0.1
    assert np.abs(second[:, 0, :, 2] - second[:, 1, :, 2]).max() > 0.1
    assert (records[0].probe["seen/outputs"][..., 2] == supervised.INACTIVE).all()
    np.testing.assert_array_equal(records[1].probe["evaluation/test_accuracy"][:, 1], 1.0)
    assert np.isfinite(records[1].train["loss"]).all()


# --- what probes see of the tasks -------------------------------------------------------------------------------------


def test_probes_see_the_new_task_at_its_start_and_the_old_at_its_end(whole, reset):
    for ran in (whole[1], reset[1]):
        for task, record in enumerate(ran):
            for k, number in enumerate(SEEDS):
                x = examples(number, task)[0].x[np.arange(8) * EXAMPLES // 8]
                for mark in range(2):
                    np.testing.assert_array_equal(record.probe["watch/x"][k, mark], x)
            np.testing.assert_array_equal(record.probe["watch/weight"][:, 0], 0.0)
            assert (record.probe["watch/weight"][:, 1] > 0).all()
        keys = np.concatenate([r.probe["watch/key"].reshape(-1, 2) for r in ran])
        assert len(np.unique(keys, axis=0)) == len(keys)


@pytest.mark.slow  # The next test has a period of one probe's own.
def test_probes_may_come_less_often_than_evaluations():
    records = run(make(probe_every=2), (4, 4, 4))[1]
    for task, record in enumerate(records):
        assert np.isfinite(record.probe["evaluation/test_accuracy"]).all()
        assert np.isnan(record.probe["watch/loss"]).all() == bool(task % 2)


def test_a_probe_may_come_less_often_than_others_and_see_where_its_task_began(reset):
    def measure(seen: ProbeInput) -> dict[str, Array]:
        return {name: ravel_pytree(x)[0] for name, x in (("initial", seen.initial()), ("previous", seen.previous))}

    rare = Probe("rare", measure, {}, {}, every=2, needs_previous=True)
    state, records, _ = run(make(method="reset", probes=(WATCH, rare)), (4, 4, 4))
    # Neither changes a bit of the training, nor of what the other probe sees.
    assert same(state._replace(previous=()), reset[0])
    assert all(same({name: x for name, x in a.probe.items() if "rare" not in name}, b.probe)
               for a, b in zip(records, reset[1], strict=True))  # fmt: skip
    assert all(np.isnan(x).all() for name, x in records[1].probe.items() if name.startswith("rare/"))
    first = records[0].probe["watch/params"][:, :1]
    for task, previous in ((0, first), (2, records[1].probe["watch/params"][:, 1:])):
        np.testing.assert_allclose(records[task].probe["rare/initial"], first.repeat(2, 1), rtol=1e-6)
        np.testing.assert_array_equal(records[task].probe["rare/previous"], previous.repeat(2, 1))
