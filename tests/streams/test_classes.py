"""Streams whose tasks are sets of classes: which images they show, and what they refuse."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from plastax.errors import ConfigError
from plastax.program.training import Training
from plastax.streams import STREAMS, ContinualImageNet, IncrementalCIFAR
from plastax.streams.incremental_cifar import PAD, channels, moved, turned
from tests.streams.coloured import CLASSES, COLOURS, INCREMENTAL, KEPT, LABELS, QUICK, TEST, TRAIN


def who(x: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(x)[:, 0, 0, 0] * 255).astype(int)


@functools.cache
def looks(config: Any) -> Any:
    """``(seed, task) -> (training, held-out, validation)``: all examples of a task, by one program a stream."""
    stream = config.build(COLOURS)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def every(key, data, index):
        task = stream.task(key, data, index)
        seen = stream.train(task, data, jnp.arange(stream.examples), key)
        kept = stream.validation and stream.validation(task, data, jnp.arange(stream.validated))
        return seen, stream.test(task, data, jnp.arange(stream.held_out)), kept

    return lambda seed, task: jax.tree.map(np.asarray, every(jax.random.key(seed), stream.data, jnp.int32(task)))


# --- pairs of classes -------------------------------------------------------------------------------------------------


def pair(seed: int, task: int) -> tuple[int, ...]:
    """The classes of a task, first that of label 0; its images are checked on the way."""
    seen, held_out, _ = looks(ContinualImageNet())(seed, task)
    for examples, each in ((seen, TRAIN), (held_out, TEST)):
        assert examples.active is None
        assert len(set(who(examples.x))) == 2 * each
        assert np.bincount(examples.y).tolist() == [each, each]
    found = [{LABELS[i] for i in (*who(seen.x[seen.y == y]), *who(held_out.x[held_out.y == y]))} for y in (0, 1)]
    assert [len(classes) for classes in found] == [1, 1]
    return tuple(classes.pop() for classes in found)


def test_pairs_go_through_a_seeds_order_of_the_classes_again_and_again():
    pairs = [pair(0, task) for task in range(CLASSES // 2 + 2)]
    assert sorted(itertools.chain(*pairs[: CLASSES // 2])) == list(range(CLASSES))
    assert pairs[CLASSES // 2 :] == pairs[:2]
    assert [pair(1, task) for task in range(3)] != pairs[:3]


def test_a_class_keeps_its_subset_of_images():
    config = ContinualImageNet(examples=4)
    first, again = (looks(config)(0, task)[0] for task in (1, 1 + CLASSES // 2))
    assert len(set(who(first.x))) == 4
    np.testing.assert_array_equal(who(first.x), who(again.x))


# --- more and more classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [0, 2, 9, 12, 19, 30])
def test_examples_are_those_of_the_classes_so_far(task):
    seen, held_out, validation = looks(INCREMENTAL)(0, task)
    known = min(task + 1, CLASSES)
    classes = set(np.flatnonzero(held_out.active[0]))
    assert len(classes) == known
    for examples in (seen, held_out, validation):
        assert (examples.active == held_out.active[0]).all()
        assert set(examples.y) == classes
        assert [LABELS[i] for i in who(examples.x)] == examples.y.tolist()
    # Held-out images of all known classes, each as often as the others to within one.
    for examples, each in ((held_out, TEST), (validation, KEPT)):
        times = np.unique(who(examples.x), return_counts=True)[1]
        assert len(times) == known * each
        assert np.ptp(times) <= 1
    # An epoch: N // n looks at every image, what is left at random.
    images, times = np.unique(who(seen.x), return_counts=True)
    assert len(images) == known * (TRAIN - KEPT)
    assert times.min() >= CLASSES // known
    if CLASSES % known == 0:
        assert np.ptp(times) == 0
    parts = [set(who(examples.x)) for examples in (seen, held_out, validation)]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))


def test_classes_come_to_stay_in_the_order_of_the_seed():
    known = [[set(np.unique(looks(INCREMENTAL)(seed, task)[0].y)) for task in range(5)] for seed in (0, 1)]
    for one in known:
        assert all(a < b for a, b in itertools.pairwise(one))
    assert known[0] != known[1]
    kept = [set(who(looks(INCREMENTAL)(0, task)[2].x)) for task in range(5)]
    assert all(a < b for a, b in itertools.pairwise(kept))


def test_what_an_epoch_leaves_over_is_drawn_anew():
    stream = INCREMENTAL.build(COLOURS)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def left(key, data):
        task = stream.task(jax.random.key(0), data, jnp.int32(12))
        return stream.train(task, data, jnp.arange(39, stream.examples), key).x

    found = np.concatenate([who(left(jax.random.key(i), stream.data)) for i in range(40)])
    # 840 draws of 39 images: all of them, none much more often than another.
    times = np.unique(found, return_counts=True)[1]
    assert len(times) == 39
    assert 5 < times.min() <= times.max() < 50


def test_augmentation_mirrors_and_crops():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 1, (64, 10, 12, 2)).astype(np.float32)
    found = np.asarray(moved(jnp.asarray(images), jax.random.key(0)))
    assert found.shape == images.shape
    around = ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))
    padded, mirrored = (np.pad(some, around, "reflect") for some in (images, images[:, :, ::-1]))
    drawn = set()
    for i, image in enumerate(found):
        offsets = itertools.product((False, True), range(2 * PAD + 1), range(2 * PAD + 1))
        fits = [
            (flip, y, x)
            for flip, y, x in offsets
            if np.array_equal((mirrored if flip else padded)[i, y : y + 10, x : x + 12], image)
        ]
        assert len(fits) == 1
        drawn.add(fits[0])
    assert len(drawn) > 40
    assert 0.25 < np.mean([flip for flip, _, _ in drawn]) < 0.75
    assert {y for _, y, _ in drawn} == {x for _, _, x in drawn} == set(range(2 * PAD + 1))


def test_augmentation_is_of_training_examples_alone():
    plain = looks(INCREMENTAL)(0, 3)
    for changes in ({"augment": True}, {"rotate": 90.0}):
        augmented = looks(dataclasses.replace(INCREMENTAL, **changes))(0, 3)
        np.testing.assert_array_equal(plain[0].y, augmented[0].y)
        assert not np.array_equal(plain[0].x, augmented[0].x)
        for a, b in zip(jax.tree.leaves(plain[1:]), jax.tree.leaves(augmented[1:]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_turn_by_angles_of_their_own():
    """Against SciPy's rotation."""
    images, key = np.random.default_rng(0).uniform(0, 1, (8, 9, 7, 2)).astype(np.float32), jax.random.key(0)
    found = jax.jit(turned, static_argnums=2, compiler_options=QUICK)(jnp.asarray(images), key, 15.0)
    angles = np.rad2deg(jax.random.uniform(key, (8,), maxval=np.deg2rad(15)))
    assert 0 <= angles.min() < 5 < 10 < angles.max() <= 15
    for image, angle, turned_image in zip(images, angles, found):
        expected = scipy.ndimage.rotate(image, angle, reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(turned_image, expected, atol=1e-4)


def test_standardised_channels_have_mean_zero_and_deviation_one():
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(0, 100, (50, 6, 6)), rng.integers(90, 256, (50, 6, 6))], -1).astype(np.uint8)
    mean, deviation = channels(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(deviation, scaled.std((0, 1, 2)), rtol=1e-6)
    assert channels(np.full((2, 3, 3, 1), 51, np.uint8)) == (np.float32(0.2), 1)
    mean, deviation = channels(COLOURS.train_images)
    plain, found = (looks(dataclasses.replace(INCREMENTAL, standardise=on))(0, 3) for on in (False, True))
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_allclose(b.x, (a.x - mean) / deviation, atol=1e-5)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ContinualImageNet(examples=3), "stream.examples: 3 .* multiple of 2 up to 8"),
        (ContinualImageNet(examples=10), "stream.examples: 10 .* multiple of 2 up to 8"),
        (ContinualImageNet(examples=-2), "stream.examples: -2 .* multiple of 2 up to 8"),
        (dataclasses.replace(INCREMENTAL, examples=80), "stream.examples: 80 .* multiple of 20 up to 60"),
        (IncrementalCIFAR(new_classes=21), "stream.new_classes: 21 .* 20 or fewer"),
        (IncrementalCIFAR(validation_per_class=4), "stream.validation_per_class: 4 .* 3 or fewer"),
    ],
)
def test_what_the_data_do_not_have_is_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        config.build(COLOURS)


@pytest.mark.parametrize(("name", "value"), [("new_classes", 0), ("validation_per_class", -1), ("rotate", -1.0)])
def test_bad_counts_are_named(name, value):
    with pytest.raises(ConfigError, match=f"stream.{name}: {value}"):
        IncrementalCIFAR(**{name: value})


@pytest.mark.parametrize("name", ["continual_imagenet", "incremental_cifar"])
@pytest.mark.parametrize(("part", "said"), [(1, "no training image of class 7"), (3, "no held-out image of class 7")])
def test_a_class_without_images_is_named(name, part, said):
    labels = COLOURS[part].copy()
    labels[labels == 7] = 8
    dataset = COLOURS._replace(**{COLOURS._fields[part]: labels})
    with pytest.raises(ConfigError, match=said):
        STREAMS[name].build(dataset)


def test_one_class_is_no_pair():
    dataset = COLOURS._replace(card=COLOURS.card._replace(classes=1))
    with pytest.raises(ConfigError, match="needs two"):
        ContinualImageNet().build(dataset)


@pytest.mark.parametrize("drops", [(0.0,), (1.0,), (0.5, -0.1)])
def test_drops_are_shares(drops):
    with pytest.raises(ConfigError, match=r"training.drops: .* above 0 and below 1"):
        Training(drops=drops)
