"""Supervised training as a program: a plain loop, records, what may change no bit. Tasks: `test_train_tasks`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax.curvature import losses
from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import fold, shuffles
from plastax.models import MLP
from plastax.program import supervised
from plastax.program.parallel import seed_keys
from plastax.program.training import Training
from plastax.streams import Permuted, SlowlyChangingRegression
from plastax.types import Tree
from tests import training_runs
from tests.streams.tiny import CLASSES, DATASET, TEST
from tests.training_runs import (
    CONFIG,
    EXAMPLES,
    LR,
    MODEL,
    QUICK,
    SEEDS,
    STREAM,
    WATCH,
    examples,
    host,
    joined,
    make,
    run,
    same,
)


@pytest.fixture(scope="module")
def whole():
    return training_runs.whole()


# --- the numbers ------------------------------------------------------------------------------------------------------


def forward(params: Tree, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h = np.maximum(x.reshape(len(x), -1) @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], 0)
    z = h @ params["output"]["kernel"] + params["output"]["bias"]
    return h, z


def plain_step(params: Tree, x: np.ndarray, y: np.ndarray) -> tuple[Tree, dict[str, float]]:
    """One step of gradient descent on the cross-entropy, in NumPy."""
    h, z = forward(params, x)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    chosen = p[np.arange(len(y)), y]
    dz = (p - np.eye(CLASSES)[y]) / len(y)
    dh = (dz @ params["output"]["kernel"].T) * (h > 0)
    x = x.reshape(len(x), -1)
    grads = {
        "dense_0": {"kernel": x.T @ dh, "bias": dh.sum(0)},
        "output": {"kernel": h.T @ dz, "bias": dz.sum(0)},
    }
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    metrics = {"loss": -np.log(chosen).mean(), "accuracy": np.mean(z.argmax(1) == y), "grad_norm": norm}
    return jax.tree.map(lambda w, g: w - LR * g, params, grads), metrics


@pytest.mark.parametrize(("epochs", "updates"), [(2, 4), (4, 2)], ids=["part of an epoch", "several epochs"])
def test_it_is_a_plain_loop(whole, epochs, updates):
    """Two tasks of one seed, step by step."""
    steps = EXAMPLES // 3 * epochs // updates
    if (epochs, updates) == (2, 4):
        state, records, _ = whole
    else:
        config = dataclasses.replace(CONFIG, epochs=epochs, updates=updates, kronecker_every=0)
        state, records, _ = run(make(config, probes=()), (updates, updates))
    recorded = joined(records)
    for k, number in enumerate(SEEDS):
        key = jax.random.key(number)
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), MODEL.init(fold(key, supervised.Purpose.INIT)))
        metrics = []
        for task in range(2):
            batch, _ = examples(number, task)
            for epoch in range(task * epochs, (task + 1) * epochs):
                order = np.asarray(shuffles(fold(key, supervised.Purpose.ORDER, epoch), 1, EXAMPLES))[0]
                for step in range(EXAMPLES // 3):
                    index = order[3 * step : 3 * step + 3]
                    params, seen = plain_step(params, batch.x[index].astype(np.float64), batch.y[index])
                    metrics.append(seen)
        np.testing.assert_array_equal(recorded["alive"], 1)
        for name in metrics[0]:
            values = recorded[name]
            means = np.array([m[name] for m in metrics]).reshape(2 * updates, steps).mean(1)
            np.testing.assert_allclose(values[k], means, rtol=1e-4, err_msg=name)
        got = jax.tree.map(lambda x, k=k: np.asarray(x[k]), state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, params)


def test_scan_lengths_change_no_bit(whole):
    state, records, _ = run(make(), (1, 2, 1, 2, 2))
    assert same(state, whole[0])
    assert same(joined(records), joined(whole[1]))
    np.testing.assert_array_equal(records[0].probe["watch/params"][:, 0], whole[1][0].probe["watch/params"][:, 0])
    np.testing.assert_array_equal(records[2].probe["watch/params"][:, 1], whole[1][0].probe["watch/params"][:, 1])
    assert np.isnan(records[1].probe["evaluation/train_loss"]).all()


def test_factors_and_probes_change_no_bit(whole):
    state, records, _ = run(make(dataclasses.replace(CONFIG, kronecker_every=0), probes=()))
    assert same(joined(records), joined(whole[1]))
    assert same(state._replace(factors=()), whole[0]._replace(factors=()))
    assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(whole[0].factors.total))


def test_a_seed_that_breaks_down_is_frozen_and_changes_no_bit_of_the_others(whole):
    program, data = make(), STREAM.data
    state = jax.jit(program.init, compiler_options=QUICK)(seed_keys(SEEDS), data)
    bias = state.params["output"]["bias"].at[1, 0].set(jnp.inf)
    state = state._replace(params=state.params | {"output": state.params["output"] | {"bias": bias}})
    before, records = host(state), []
    for clock in (0, 4):
        state, record = whole[2].segment(state, data, clock, 4)
        records.append(host(record))
    first, second = (lambda tree, k=k: jax.tree.map(lambda x: x[k], host(tree)) for k in range(2))
    assert same(first(state), first(whole[0]))
    assert same([first(r) for r in records], [first(r) for r in whole[1]])
    assert same(second(state)._replace(alive=np.True_), second(before))
    np.testing.assert_array_equal(joined(records)["alive"], [[1] * 8, [0] * 8])
    assert np.isnan(joined(records)["loss"][1]).all()
    # Measured before its first update it still is; afterwards there is nothing to measure.
    assert np.isfinite(records[0].probe["watch/x"][1, 0]).all()
    assert np.isnan(records[0].probe["watch/x"][1, 1]).all()
    assert np.isnan(records[1].probe["watch/x"][1]).all()


# --- records ----------------------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_the_network_on_its_task(whole):
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], whole[0].params))
    for task, record in enumerate(whole[1]):
        for k, number in enumerate(SEEDS):
            taken = np.arange(15) * EXAMPLES // 15, np.arange(TEST)
            for part, batch, index in zip(("train", "test"), examples(number, task), taken):
                x, y = batch.x[index], batch.y[index]
                for mark in range(2):
                    params = host(unravel(jnp.asarray(record.probe["watch/params"][k, mark])))
                    z = forward(params, x)[1]
                    expected = np.mean(z.argmax(1) == y)
                    got = {n: record.probe[f"evaluation/{part}_{n}"][k, mark] for n in ("accuracy", "loss")}
                    np.testing.assert_allclose(got["accuracy"], expected, rtol=1e-6)
                    expected = losses.get("cross_entropy").value(jnp.asarray(z), (None, jnp.asarray(y)))
                    np.testing.assert_allclose(got["loss"], expected, rtol=1e-5)


def test_evaluation_in_chunks_is_the_mean():
    assert supervised.spread(10, 100).tolist() == list(range(10))
    assert supervised.spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert len(supervised.spread(1000, 600, 250)) == 500
    assert supervised.spread(60_000, 60_000)[-1] == 59_999


def test_sample_plasticity_is_what_a_step_gains_on_its_batch(whole):
    config = dataclasses.replace(CONFIG, batch_size=EXAMPLES, epochs=3, updates=3, sample_plasticity=True)
    _, (record,), _ = run(make(config, probes=()), (3,))
    # One batch, the same in every step: what was before the next step is what comes after this one.
    loss, gained = record.train["loss"], record.train["sample_plasticity"]
    np.testing.assert_allclose(gained[:, :-1], np.clip(1 - loss[:, 1:] / loss[:, :-1], 0, 1), atol=1e-5)
    assert (gained > 0).any()


@pytest.mark.slow
def test_trac_records_a_scale_that_tells_whether_the_network_left_its_start():
    config = dataclasses.replace(CONFIG, batch_size=4, epochs=1, updates=1, kronecker_every=0)
    state, records, _ = run(make(config, "trac", probes=()), (1,) * 4, seeds=(0, 1))
    first = jax.vmap(lambda key: ravel_pytree(MODEL.init(fold(key, 0)))[0])(seed_keys((0, 1)))
    last = jax.vmap(lambda params: ravel_pytree(params)[0])(state.params)
    np.testing.assert_array_equal(records[-1].train["trac/scale"][:, -1] > 0, np.any(first != last, axis=1))
    assert [*np.any(first != last, axis=1)] == [False, True]


def test_two_probes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="'watch'"):
        make(probes=(WATCH, WATCH))


def test_regression_has_no_accuracy():
    stream = SlowlyChangingRegression(period=12, target_units=3).build()
    config = Training(batch_size=4, kronecker_every=0)
    _, records, _ = run(make(config, stream=stream, model=MLP((3,)).build((20,), 1), probes=()), (1, 1))
    assert set(records[0].train) == {"loss", "grad_norm", "alive"}
    assert {name.split("_")[-1] for name in records[0].probe} == {"loss"}


# --- data -------------------------------------------------------------------------------------------------------------


def test_data_are_an_argument_and_not_copied_for_every_seed():
    shape = (16, 16, 1)
    images, labels = np.zeros((4000, *shape), np.uint8), np.zeros(4000, np.int32)
    card = DATASET.card._replace(shape=shape)
    dataset = Dataset(images, labels, images[:10], labels[:10], card)
    stream = Permuted(examples=EXAMPLES).build(dataset)
    size = sum(x.nbytes for x in jax.tree.leaves(stream.data))
    memory = {}
    for seeds in (1, 4):
        model = MLP((6,)).build(shape, CLASSES)
        program = make(
            dataclasses.replace(CONFIG, kronecker_every=0), stream=stream, model=model, seeds=seeds, probes=()
        )
        state = jax.eval_shape(program.init, seed_keys(range(seeds)), stream.data)
        step = jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)
        lowered = step.lower(state, program.data, jnp.int32(0), 1)
        assert len(lowered.as_text()) < 10 * size  # no constant of the data's size, printed
        analysis = lowered.compile().memory_analysis()
        memory[seeds] = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
        assert analysis.argument_size_in_bytes >= size
    assert memory[4][0] - memory[1][0] < 0.5 * size
    assert memory[4][1] - memory[1][1] < 0.5 * size  # three seeds more


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("batch_size", 0, "1 or more"),
        ("epochs", -1, "1 or more"),
        ("learning_rate", 0.0, "above 0"),
        ("momentum", 1.5, "0 to 1"),
        ("kronecker_every", -1, "0 or more"),
        ("optimizer", "adm", "did you mean 'adam'"),
        ("head", "rest", "did you mean 'reset'"),
        ("updates", 3, "2 epochs"),
    ],
)
def test_bad_settings_are_named(setting, value, says):
    with pytest.raises(ConfigError, match=rf"training\.{setting}: .*{value}.*{says}"):
        dataclasses.replace(CONFIG, **{setting: value})


def test_batches_and_updates_must_fit_the_task():
    with pytest.raises(ConfigError, match=r"batch_size: 21 is more than a task's 20"):
        dataclasses.replace(CONFIG, batch_size=21).blocks(EXAMPLES)
    with pytest.raises(ConfigError, match=r"updates: 8 .* 6 steps into 4 parts.* give 4, 6, 12"):
        dataclasses.replace(CONFIG, updates=8).blocks(EXAMPLES)
    assert CONFIG.blocks(EXAMPLES) == (1, 2, 3)
    assert dataclasses.replace(CONFIG, epochs=4, updates=2).blocks(EXAMPLES).steps_per_update == 12
