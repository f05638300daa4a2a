"""Training on sets of classes: masks, one program for all tasks, falling step sizes, best weights, real formats."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.data import cifar, load
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import MLP, ResNet18
from plastax.program import supervised
from plastax.program.parallel import over_seeds, seed_keys
from plastax.program.training import Training
from plastax.streams import STREAMS, ContinualImageNet, IncrementalCIFAR
from plastax.types import Array, Model, Probe, ProbeInput, Program, Stream
from tests import programs
from tests.data.formats import cifar_members
from tests.streams.coloured import CLASSES, COLOURS, INCREMENTAL, QUICK, SHAPE, TRAIN
from tests.streams.tiny import DATASET


def watch(seen: ProbeInput) -> dict[str, Array]:
    return {
        "active": seen.batch.active,
        "probabilities": jax.nn.softmax(seen.outputs_fn(seen.params, seen.batch)),
        "kernel": seen.params["output"]["kernel"],
    }


def make(config: Training, stream: Stream, model: Model, probes: tuple[Probe, ...] = (), seeds: int = 1) -> Program:
    method = METHODS["backprop"].build(config.transformation())
    return over_seeds(supervised.program(config, stream, model, method, probes), seeds)


def test_one_compiled_program_serves_all_twenty_tasks_and_masks_what_is_not_there():
    stream, seeds = INCREMENTAL.build(COLOURS), 2
    model = ResNet18(channels=(2,), blocks=(1,), hidden=()).build(SHAPE, CLASSES)
    config = Training(learning_rate=0.1, batch_size=20, evaluation_examples=20, probe_examples=4)
    program = make(config, stream, model, (Probe("watch", watch, {}, {}),), seeds)
    data = jax.device_put(program.data)
    jitted, records = programs.jitted(program, QUICK), []
    state = jitted.init(seed_keys(range(seeds)), data)
    for task in range(20):
        state, record = jitted.segment(state, data, task, 1)
        records.append(record)
    assert [fn._cache_size() for fn in jitted[1:]] == [1] * 4
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


def test_the_step_size_falls_within_a_task_and_restarts_statistics():
    stream, model = dataclasses.replace(STREAMS["permuted"], examples=12).build(DATASET), MLP((4,)).build(SHAPE, 3)
    plain = Training(learning_rate=0.4, batch_size=3, updates=2, evaluation_examples=3)
    falling = dataclasses.replace(plain, drops=(0.5, 0.75), drop_factor=2.0)
    sides = [programs.jitted(make(config, stream, model), QUICK) for config in (plain, falling)]
    data = sides[0].program.data
    start = sides[0].init(seed_keys([0]), data)

    def moves(state, clock):
        """How the parameters move in an update of two steps, in both programs, and the falling one's state."""
        after = [side.segment(state, data, clock, 1)[0] for side in sides]
        return [jax.tree.map(lambda a, b: np.asarray(a - b), s.params, state.params) for s in after], after[1]

    for task in range(2):
        (a, b), start = moves(start, 2 * task)
        jax.tree.map(np.testing.assert_array_equal, a, b)
        (a, b), start = moves(start, 2 * task + 1)
        # Two steps, at a half and at a quarter of the step size: between a quarter and a half of the way.
        ratio = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(b)) / sum(np.sum(x**2) for x in jax.tree.leaves(a)))
        assert 0.2 < ratio < 0.6


@pytest.mark.slow
def test_the_best_weights_come_back_at_the_end_of_a_task():
    """Per seed, by a validation accuracy computed by hand; the optimiser's state stays."""
    stream, updates, seeds = dataclasses.replace(INCREMENTAL, new_classes=5).build(COLOURS), 4, 6
    model = MLP((8,)).build(SHAPE, CLASSES)
    config = Training(
        learning_rate=0.02, momentum=0.9, batch_size=10, epochs=4, updates=updates, restore_best=True,
        evaluation_examples=TRAIN * CLASSES,
    )  # fmt: skip
    program = make(config, stream, model, seeds=seeds)
    jitted, data, keys = programs.jitted(program, QUICK), program.data, seed_keys(range(seeds))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def accuracy(key, params, index):
        task = stream.task(fold(key, supervised.Purpose.TASKS), data, index)
        batch = stream.validation(task, data, jnp.arange(stream.validated))
        outputs = jnp.where(batch.active, model.apply(params, batch.x)[0], -jnp.inf)
        return jnp.mean(jnp.argmax(outputs, -1) == batch.y)

    def forgetting(state):
        """Without anything to go back to."""
        return state._replace(best=state.best._replace(score=-jnp.ones(seeds)))

    state, ends = jitted.init(keys, data), []
    for clock in range(updates):
        before = state
        state, record = jitted.segment(before, data, clock, 1)
        ends.append(state if clock < updates - 1 else jitted.segment(forgetting(before), data, clock, 1)[0])
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
    after, _ = jitted.segment(state, data, updates, 1)
    np.testing.assert_allclose(after.best.score, accuracy(keys, after.params, numbers + 1), atol=1e-6)


def test_the_best_weights_need_something_to_judge_them_by():
    with pytest.raises(ConfigError, match=r"training\.restore_best: True .*stream\.validation_per_class"):
        make(Training(batch_size=2, restore_best=True), IncrementalCIFAR().build(COLOURS), MLP((4,)).build(SHAPE, 20))


# --- files in the published formats -----------------------------------------------------------------------------------


def trained(stream: Stream, model: Model) -> dict[str, np.ndarray]:
    """What a few steps of the first task record."""
    program = make(Training(batch_size=10, evaluation_examples=10), stream, model)
    jitted = programs.jitted(program, QUICK)
    _, record = jitted.segment(jitted.init(seed_keys([0]), program.data), program.data, 0, 1)
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


@pytest.mark.slow  # one more ResNet
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
