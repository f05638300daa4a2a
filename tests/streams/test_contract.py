"""What every registered stream keeps to, on a tiny data set, and what each one says of itself.

A new stream is in `CASES` by being registered; what is too large for the tiny data set gets an entry in `SMALL`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import testing
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.streams import STREAMS
from plastax.streams.slowly_changing_regression import SlowlyChangingRegression
from plastax.testing.streams import Looks
from tests.streams.tiny import CLASSES, DATASET, TEST, TRAIN

USED = 20

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# What is small enough for the tiny data set, where it is not a number of examples.
SMALL: dict[str, dict[str, Any]] = {
    "slowly_changing_regression": {"period": 40},
    "continual_imagenet": {},
    "incremental_cifar": {"new_classes": 1},
}
CASES = {name: dataclasses.replace(config, **SMALL.get(name, {"examples": USED})) for name, config in STREAMS.items()}
# Draws at every look.
CASES["incremental_cifar, augmented"] = dataclasses.replace(CASES["incremental_cifar"], augment=True, rotate=30.0)

# The other's inputs are few bits, which recur.
OF_IMAGES = [name for name, config in CASES.items() if config.needs_data]


@pytest.mark.parametrize("name", CASES)
def test_registered_stream_keeps_its_promises(name):
    testing.check_stream(CASES[name], DATASET, recurring=name not in OF_IMAGES)


@functools.cache
def look_of(name: str) -> Looks:
    return Looks(CASES[name].build(DATASET) if CASES[name].needs_data else CASES[name].build())


def looks(name: str) -> Any:
    """``(seed, task) -> (training, held-out)``: all examples of a task."""
    return lambda seed, task: look_of(name)(seed, task)[0]


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("examples", [-1, TRAIN + 1])
def test_more_images_than_there_are_is_refused(name, examples):
    with pytest.raises(ConfigError, match=rf"stream.examples: {examples} .*give .*tiny"):
        dataclasses.replace(CASES[name], examples=examples).build(DATASET)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("rotating", "severity", float("inf")),
        ("warm_start", "share", 0.0),
        ("slowly_changing_regression", "period", 0),
        ("slowly_changing_regression", "beta", 2.0),
    ],
)
def test_bad_settings_are_named(name, field, value):
    with pytest.raises(ConfigError, match=rf"stream.{field}: {value}"):
        dataclasses.replace(STREAMS[name], **{field: value})


# --- each on its own --------------------------------------------------------------------------------------------------


def images_of(examples: Any) -> np.ndarray:
    """Which training images these are, from values that permuting pixels leaves: their sorted pixels."""
    known = {tuple(np.sort(image.ravel())): i for i, image in enumerate(DATASET.train_images)}
    assert len(known) == TRAIN
    found = np.round(examples.x * 255).astype(np.uint8)
    return np.array([known[tuple(np.sort(image.ravel()))] for image in found])


def test_permuted_has_one_new_order_of_pixels_a_task():
    orders = []
    for task in range(3):
        train, test = looks("permuted")(0, task)
        original = DATASET.train_images[images_of(train)].reshape(USED, -1)
        seen = np.round(train.x * 255).astype(np.uint8).reshape(USED, -1)
        order = [int(np.flatnonzero((original == column[:, None]).all(0))[0]) for column in seen.T]
        assert sorted(order) == list(range(16))
        held_out = DATASET.test_images.reshape(TEST, -1)[:, order].reshape(test.x.shape)
        np.testing.assert_array_equal(np.round(test.x * 255).astype(np.uint8), held_out)
        np.testing.assert_array_equal(train.y, DATASET.train_labels[images_of(train)])
        orders.append(tuple(order))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("name", ["permuted", "random_label"])
def test_a_seed_keeps_its_images(name):
    sets = [images_of(looks(name)(0, task)[0]) for task in range(2)]
    np.testing.assert_array_equal(*sets)
    assert len(set(sets[0])) == USED


def test_random_labels_do_not_follow_the_images():
    train = looks("random_label")(0, 1)[0]
    assert 0.05 < np.mean(train.y == DATASET.train_labels[images_of(train)]) < 0.7


def test_label_permuted_renames_classes_and_draws_images():
    seen = [looks("label_permuted")(0, task) for task in range(4)]
    names = []
    for train, test in seen:
        at = images_of(train)
        pairs = {(int(old), int(new)) for old, new in zip(DATASET.train_labels[at], train.y)}
        assert len(pairs) == CLASSES
        assert {(int(old), int(new)) for old, new in zip(DATASET.test_labels, test.y)} == pairs
        names.append(tuple(sorted(pairs)))
    assert len(set(names)) > 1
    assert set(images_of(seen[0][0])) != set(images_of(seen[1][0]))


def test_rotating_turns_by_its_severity():
    stream = dataclasses.replace(STREAMS["rotating"], severity=90.0).build(DATASET)
    look = jit(lambda data, k: stream.test(stream.task(jax.random.key(0), data, k), data, jnp.arange(TEST)).x)
    for index in range(5):
        x = look(stream.data, jnp.int32(index))
        expected = np.rot90(DATASET.test_images / np.float32(255), index, axes=(1, 2))
        np.testing.assert_allclose(x, expected, atol=1e-4)


def test_warm_start_knows_its_share_first():
    half, full = (images_of(looks("warm_start")(0, task)[0]) for task in (0, 1))
    assert len(set(half)) == USED // 2
    assert set(half) < set(full)
    assert len(set(full)) == USED
    np.testing.assert_array_equal(np.unique(half, return_counts=True)[1], 2)


def test_slow_bits_are_slow_and_the_target_is_of_threshold_units():
    """Against the sum over units, written out."""
    stream = SlowlyChangingRegression(period=40, target_units=7).build()
    make = jit(stream.task, static_argnums=1)
    key = jax.random.key(0)
    w_key, b_key, v_key = jax.random.split(fold(key, 0), 3)
    w = np.asarray(jax.random.rademacher(w_key, (20, 7), jnp.float32))
    b = np.asarray(jax.random.rademacher(b_key, (7,), jnp.float32))
    v = np.asarray(jax.random.rademacher(v_key, (7, 1), jnp.float32))
    slow = []
    for index in range(3):
        task = make(key, (), jnp.int32(index))
        x = np.asarray(task.x)
        assert set(np.unique(x)) == {0.0, 1.0}
        assert (x[:, :15] == x[0, :15]).all()
        assert (np.asarray(task.test_x)[:, :15] == x[0, :15]).all()
        assert len(rows(x[:, 15:])) > 16
        slow.append(x[0, :15])
        for row, y in zip(x, np.asarray(task.y)):
            total = 0.0
            for i in range(7):
                s = (20 - w[:, i].sum() + b[i]) / 2
                total += v[i, 0] * (row @ w[:, i] + b[i] > 0.7 * 21 - s)
            assert y == total
    assert not np.array_equal(slow[0], slow[1])


def test_flip_one_flips_one():
    stream = SlowlyChangingRegression(period=4, target_units=2, flip_one=True).build()
    task = jit(stream.task, static_argnums=1)
    bits = [np.asarray(task(jax.random.key(0), (), jnp.int32(i)).x)[0, :15] for i in range(6)]
    assert [int(np.abs(a - b).sum()) for a, b in itertools.pairwise(bits)] == [1] * 5
