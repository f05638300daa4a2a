"""The generator: deterministic, held-out images disjoint, a difficulty knob that works, waves against their formula."""

from __future__ import annotations

import numpy as np
import pytest

from plastax.data import load, synthetic
from plastax.errors import ConfigError

SMALL = {"classes": 4, "train_per_class": 6, "test_per_class": 3}


def test_shapes_types_and_a_loud_card():
    found = load("synthetic", **SMALL)
    assert found.train_images.shape == (24, 32, 32, 3)
    assert (found.train_images.dtype, found.train_labels.dtype) == (np.uint8, np.int32)
    assert found.train_labels.tolist() == np.repeat(range(4), 6).tolist()
    assert found.test_labels.tolist() == np.repeat(range(4), 3).tolist()
    assert found.card.synthetic
    assert str(found.card).startswith("*** SYNTHETIC")
    assert "train_per_class=6" in found.card.origin


def test_a_seed_is_one_pool_and_another_seed_another():
    first, again, other = (load("synthetic", **SMALL, seed=seed) for seed in (1, 1, 2))
    assert first.card.checksum == again.card.checksum != other.card.checksum
    np.testing.assert_array_equal(first.train_images, again.train_images)


def test_class_k_does_not_depend_on_the_number_of_classes():
    few, many = (load("synthetic", **SMALL | {"classes": n}) for n in (2, 4))
    np.testing.assert_array_equal(few.train_images, many.train_images[:12])


def test_held_out_images_are_other_images():
    found = load("synthetic", **SMALL | {"test_per_class": 6})
    everything = [image.tobytes() for images in found[:4:2] for image in images]
    assert len(set(everything)) == len(everything)


def test_grey_images_of_any_size():
    assert load("synthetic", **SMALL, side=28, channels=1).test_images.shape == (12, 28, 28, 1)


def accuracy(difficulty: float) -> float:
    found = load("synthetic", classes=10, train_per_class=40, test_per_class=20, difficulty=difficulty)
    means = found.train_images.reshape(10, 40, -1).mean(1)
    distance = ((found.test_images.reshape(200, 1, -1) - means) ** 2).sum(-1)
    return np.mean(distance.argmin(1) == found.test_labels)


def test_difficulty_goes_from_trivial_to_hard():
    trivial, easy, default, hard = (accuracy(d) for d in (0, 0.4, 0.75, 1))
    assert trivial == 1
    assert trivial >= easy > default > hard > 0.15
    assert 0.4 < default < 0.9


def test_without_difficulty_a_class_is_one_image():
    found = load("synthetic", **SMALL, difficulty=0)
    per_class = found.train_images.reshape(4, 6, -1)
    assert np.all(per_class == per_class[:, :1])
    assert len(np.unique(per_class[:, 0], axis=0)) == 4


def test_waves_are_evaluated_by_their_formula_and_have_unit_power():
    rng = np.random.default_rng(0)
    waves = synthetic.pattern(rng, 3)
    y, x = rng.uniform(-2, 2, (2, 5)), rng.uniform(-2, 2, (2, 7))
    expected = np.zeros((2, 3, 5, 7))
    for j in range(2 * synthetic.WAVES + 1):
        for k in range(2 * synthetic.WAVES + 1):
            phase = (j - synthetic.WAVES) * y[:, :, None] + (k - synthetic.WAVES) * x[:, None, :]
            expected += (waves[None, :, j, k, None, None] * np.exp(2j * np.pi * phase)[:, None]).real
    np.testing.assert_allclose(synthetic.evaluate(waves[None], y, x), expected, atol=1e-4)
    grid = np.arange(32) / 32
    whole = synthetic.evaluate(waves[None], grid[None], grid[None])
    assert np.mean(whole**2) == pytest.approx(1, abs=1e-4)
    assert np.abs(whole.mean((2, 3))).max() < 1e-5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(name, 0) for name in ("classes", "train_per_class", "test_per_class", "side", "channels")],
        *[("difficulty", value) for value in (1.1, -0.1, float("nan"))],
        ("seed", -1),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(ConfigError, match=f"{option}={value}"):
        load("synthetic", **{option: value})
