"""Streams whose tasks are sets of classes: which images they show, masks, one program for all tasks, real formats."""

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

from plastax import train
from plastax.data import Card, Dataset, cifar, load
from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import MLP, ResNet18
from plastax.parallel import over_seeds, seed_keys
from plastax.streams import STREAMS, ContinualImageNet, IncrementalCIFAR
from plastax.streams.incremental_cifar import PAD, channels, moved, turned
from plastax.training import Training
from plastax.types import Array, ConfigError, Model, Probe, ProbeInput, Program, Stream
from tests.data.formats import cifar_members
from tests.streams.tiny import DATASET

# These tests compile much and compute little.
QUICK = {"xla_backend_optimization_level": 0}
SHAPE, CLASSES, TRAIN, TEST, KEPT = (4, 4, 1), 20, 4, 2, 1


def make_dataset() -> Dataset:
    """Images that say who they are: their first pixel is their number among all."""
    rng = np.random.default_rng(0)
    number = CLASSES * (TRAIN + TEST)
    values = rng.integers(0, 256, (number, *SHAPE)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(number)
    labels = rng.permutation(np.arange(number) % CLASSES).astype(np.int32)
    # The same number of each class on both sides, in no order.
    place = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    train, test = place < TRAIN, place >= TRAIN
    card = Card("colours", True, "", "", "", "", SHAPE, CLASSES, int(train.sum()), int(test.sum()), "")
    return Dataset(values[train], labels[train], values[test], labels[test], card)


COLOURS = make_dataset()
LABELS = {
    int(image[0, 0, 0]): int(label)
    for images, labels in (COLOURS[:2], COLOURS[2:4])
    for image, label in zip(images, labels)
}


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


INCREMENTAL = IncrementalCIFAR(new_classes=1, validation_per_class=KEPT)


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


# --- training ---------------------------------------------------------------------------------------------------------


def watch(seen: ProbeInput) -> dict[str, Array]:
    return {
        "active": seen.batch.active,
        "probabilities": jax.nn.softmax(seen.outputs_fn(seen.params, seen.batch)),
        "kernel": seen.params["output"]["kernel"],
    }


def make(config: Training, stream: Stream, model: Model, probes: tuple[Probe, ...] = (), seeds: int = 1) -> Program:
    method = METHODS["backprop"].build(config.transformation())
    return over_seeds(train.program(config, stream, model, method, probes), seeds, 0)


def test_one_compiled_program_serves_all_twenty_tasks_and_masks_what_is_not_there(compilations):
    stream, seeds = INCREMENTAL.build(COLOURS), 2
    model = ResNet18(channels=(2,), blocks=(1,), hidden=()).build(SHAPE, CLASSES)
    config = Training(learning_rate=0.1, batch_size=20, evaluation_examples=20, probe_examples=4)
    program = make(config, stream, model, (Probe("watch", watch, {}, {}),), seeds)
    data = jax.device_put(program.data)
    state = jax.jit(program.init, compiler_options=QUICK)(seed_keys(range(seeds)), data)
    segment = jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)
    clocks = [jnp.int32(task) for task in range(20)]
    before, records = compilations(), []
    for clock in clocks:
        state, record = segment(state, data, clock, 1)
        records.append(record)
    assert compilations() - before == 1
    for task, record in enumerate(records):
        probe = {name: np.asarray(value) for name, value in record.probe.items()}
        active = probe["watch/active"][:, 0, 0]
        assert active.sum(1).tolist() == [task + 1] * seeds
        start, end = probe["watch/kernel"].swapaxes(0, 1)
        learned = (start != end).any(1)
        # With one class there is nothing to learn: its probability is one from the start.
        np.testing.assert_array_equal(learned, active & (task > 0))
        for one, there in zip(probe["watch/probabilities"], active):
            assert (one[..., ~there] == 0).all()
            np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-5)
        for part in ("train", "test", "validation"):
            assert np.isfinite(probe[f"evaluation/{part}_loss"]).all()
        assert np.isfinite(record.train["loss"]).all()
        if task == 0:
            assert (probe["evaluation/test_accuracy"] == 1).all()


def test_the_step_size_falls_within_a_task_and_starts_anew():
    stream, model = dataclasses.replace(STREAMS["permuted"], examples=12).build(DATASET), MLP((4,)).build(SHAPE, 3)
    plain = Training(learning_rate=0.4, batch_size=3, updates=2, evaluation_examples=3)
    falling = dataclasses.replace(plain, drops=(0.5, 0.75), drop_factor=2.0)
    programs = [make(config, stream, model) for config in (plain, falling)]
    segments = [jax.jit(p.segment, static_argnums=3, compiler_options=QUICK) for p in programs]
    data = programs[0].data
    start = jax.jit(programs[0].init, compiler_options=QUICK)(seed_keys([0]), data)

    def moves(state, clock):
        """How the parameters move in an update of two steps, in both programs, and the falling one's state."""
        after = [segment(state, data, jnp.int32(clock), 1)[0] for segment in segments]
        return [jax.tree.map(lambda a, b: np.asarray(a - b), s.params, state.params) for s in after], after[1]

    for task in range(2):
        (a, b), start = moves(start, 2 * task)
        jax.tree.map(np.testing.assert_array_equal, a, b)
        (a, b), start = moves(start, 2 * task + 1)
        # Two steps, at a half and at a quarter of the step size: between a quarter and a half of the way.
        ratio = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(b)) / sum(np.sum(x**2) for x in jax.tree.leaves(a)))
        assert 0.2 < ratio < 0.6


def test_the_best_weights_come_back_at_the_end_of_a_task():
    """Per seed, by a validation accuracy computed by hand; the optimiser's state stays."""
    stream, updates, seeds = dataclasses.replace(INCREMENTAL, new_classes=5).build(COLOURS), 4, 6
    model = MLP((8,)).build(SHAPE, CLASSES)
    config = Training(
        learning_rate=0.02, momentum=0.9, batch_size=10, epochs=4, updates=updates, restore_best=True,
        evaluation_examples=TRAIN * CLASSES,
    )  # fmt: skip
    program = make(config, stream, model, seeds=seeds)
    segment = jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)
    data, keys = program.data, seed_keys(range(seeds))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def accuracy(key, params, index):
        task = stream.task(fold(key, train._TASKS), data, index)
        batch = stream.validation(task, data, jnp.arange(stream.validated))
        outputs = jnp.where(batch.active, model.apply(params, batch.x)[0], -jnp.inf)
        return jnp.mean(jnp.argmax(outputs, -1) == batch.y)

    def forgetting(state):
        """Without anything to go back to."""
        return state._replace(best=state.best._replace(score=-jnp.ones(seeds)))

    state, ends = jax.jit(program.init, compiler_options=QUICK)(keys, data), []
    for clock in range(updates):
        before, at = state, jnp.int32(clock)
        state, record = segment(before, data, at, 1)
        ends.append(state if clock < updates - 1 else segment(forgetting(before), data, at, 1)[0])
    numbers = jnp.zeros(seeds, jnp.int32)
    scores = np.array([accuracy(keys, end.params, numbers) for end in ends])
    best = scores.argmax(0)  # the first of several
    assert len(set(best)) > 1
    assert (best < updates - 1).any()
    np.testing.assert_allclose(record.probe["evaluation/validation_accuracy"][:, 1], scores.max(0), atol=1e-6)
    for seed, number in enumerate(best):
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(ends[number].params), strict=True):
            np.testing.assert_array_equal(a[seed], b[seed])
    for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(ends[-1].opt_state), strict=True):
        np.testing.assert_array_equal(a, b)
    # The next task starts with no best: ten classes are harder than five.
    after, _ = segment(state, data, jnp.int32(updates), 1)
    np.testing.assert_allclose(after.best.score, accuracy(keys, after.params, numbers + 1), atol=1e-6)


def test_the_best_weights_need_something_to_judge_them_by():
    with pytest.raises(ConfigError, match=r"training\.restore_best: True .*stream\.validation_per_class"):
        make(Training(batch_size=2, restore_best=True), IncrementalCIFAR().build(COLOURS), MLP((4,)).build(SHAPE, 20))


# --- files in the published formats -----------------------------------------------------------------------------------


def trained(stream: Stream, model: Model) -> dict[str, np.ndarray]:
    """What a few steps of the first task record."""
    program = make(Training(batch_size=10, evaluation_examples=10), stream, model)
    state = jax.jit(program.init, compiler_options=QUICK)(seed_keys([0]), program.data)
    _, record = jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)(state, program.data, jnp.int32(0), 1)
    return {name: np.asarray(value) for name, value in (record.train | record.probe).items()}


def test_continual_imagenet_trains_on_class_files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "classes").mkdir()
    for k in range(4):
        # Class k is brightest where its number says: two classes are easily told apart.
        images = rng.integers(0, 60, (12, 3, 32, 32)).astype(np.uint8)
        images[:, :, 8 * k : 8 * k + 8] += 150
        np.save(tmp_path / "classes" / f"{k}.npy", images)
    dataset = load("imagenet32", tmp_path, train_per_class=10, test_per_class=2)
    seen = trained(ContinualImageNet().build(dataset), MLP((4,)).build(dataset.card.shape, 2))
    assert all(np.isfinite(value).all() for value in seen.values())
    assert seen["evaluation/test_loss"].shape == (1, 2)


def test_incremental_cifar_trains_on_the_published_pickles(tmp_path):
    (tmp_path / cifar.FOLDER).mkdir()
    for name, content in cifar_members(1500, 800)[0].items():
        (tmp_path / cifar.FOLDER / name).write_bytes(content)
    dataset = load("cifar100", tmp_path, verify=False)
    model = MLP((4,)).build(dataset.card.shape, 100)
    stream = IncrementalCIFAR(examples=300, validation_per_class=2, augment=True, rotate=15.0, standardise=True).build(
        dataset
    )
    assert (stream.examples, stream.outputs, stream.validated) == (300, 100, 200)
    seen = trained(stream, model)
    assert all(np.isfinite(value).all() for value in seen.values())
    # Five classes, not a hundred: a fresh network knows little more than that.
    assert seen["evaluation/test_loss"][0, 0] < 0.75 * np.log(100)


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
    with pytest.raises(ConfigError, match=r"training.drops: .* shares of a task"):
        Training(drops=drops)
