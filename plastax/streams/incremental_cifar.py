"""Incremental CIFAR: more classes with every task, in arrays of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import ranges
from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import fold, some
from plastax.streams.base import ImageStream, Sorted, check_images, per_class, pixels, resampled, rotation, sort
from plastax.types import Array, Examples, Key, Stream

_CLASSES, _SUBSET, _AUGMENT = range(3)

PAD = 4
"""Pixels by which a random crop may move an image, in both directions; fewer for smaller images."""


class Task(NamedTuple):
    """What a task knows, all int32.

    Attributes:
      order: a seed's order of the classes, ``[C]``.
      known: how many of them the task has.
      places: the training images, by their number within a class, ``[n]``.
      validation: those kept out of training, likewise, ``[v]``.
    """

    order: Array
    known: Array
    places: Array
    validation: Array


@dataclass(frozen=True)
class IncrementalCIFAR(ImageStream):
    """More classes of images with every task: the network trains on all classes so far, and is tested on them.

    Classes keep their labels; every seed has an order in which they come. The network has an output for every class
    from the start. The outputs of later classes are masked (`Examples.active`): they get no probability and no
    gradient. So arrays keep their sizes, and one compiled program serves all tasks.

    **What an epoch is.** Every task has as many gradient steps as the last one, which has all N images. An epoch looks
    N times at n known images: ``N // n`` times at each, and the remaining ``N mod n`` looks fall on random images. (The
    remainder is zero where the number of known classes divides that of all.) So the first task, with 5 of 100 classes,
    sees an image twenty times an epoch. In the reference protocol an epoch is one pass, and epochs get longer from task
    to task: its first task has a twentieth of the steps here, and all twenty tasks have 10.5/20 of them.

    ``examples`` is the number of training images of all classes together; 0: all that validation leaves.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, methods: class-incremental
      CIFAR-100, and its released code for the augmentation. Crops and flips: He et al., "Deep residual learning for
      image recognition", CVPR 2016, section 4.2.
    """

    new_classes: int = 5
    """Classes that a task adds."""
    validation_per_class: int = 0
    """Training images of each class that are kept for validation, drawn for each seed."""
    augment: bool = False
    """Mirror half of the training images and move them by up to 4 pixels both ways, with their own reflection around.
    Every look draws again, also those of probes and of the evaluation on training images."""
    rotate: float = 0.0
    """Turn each training image by a random angle from 0 to this many degrees, again at every look, with zeros around.
    0: leave it upright."""
    standardise: bool = False
    """Subtract the mean of each channel and divide by its standard deviation, both over all training images; otherwise
    pixels are from 0 to 1."""

    def __post_init__(self) -> None:
        ranges.check(self, "stream", "new_classes", least=1)
        ranges.check(self, "stream", "validation_per_class", least=0)
        ranges.check(self, "stream", "rotate", least=0, most=360)

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`.

        Raises:
          ConfigError: more new classes than the data set has, a class without images, or ``examples`` out of range.
        """
        classes, kept_out = dataset.card.classes, self.validation_per_class
        if self.new_classes > classes:
            raise ConfigError(
                f"stream.new_classes: {self.new_classes} is more than the {classes} classes of {dataset.card.name}; "
                f"give {classes} or fewer"
            )
        for setting in ("augment", "rotate"):
            if getattr(self, setting):
                check_images(dataset, f"stream.{setting}: {getattr(self, setting)}")
        data = sort(dataset)
        available, held_out = data.train_of.shape[1], data.test_of.shape[1]
        if kept_out >= available:
            raise ConfigError(
                f"stream.validation_per_class: {kept_out} leaves none of {available} training images a class; "
                f"give {available - 1} or fewer"
            )
        count = per_class(self.examples, classes, available - kept_out, dataset.card.name)
        total = classes * count
        scale = channels(dataset.train_images) if self.standardise else None

        def look(values: Array) -> Array:
            if scale is None:
                return pixels(values)
            mean, deviation = (np.expand_dims(x, tuple(range(values.ndim - 1))) for x in scale)
            return (pixels(values) - mean) / deviation

        def task(key: Key, data: Sorted, index: Array) -> Task:
            order = jax.random.permutation(fold(key, _CLASSES), classes)
            known = jnp.minimum((index + 1) * self.new_classes, classes)
            places = some(fold(key, _SUBSET), kept_out + count, available)
            return Task(order, known, places[kept_out:], places[:kept_out])

        def masked(task: Task, values: Array, labels: Array) -> Examples:
            known = jnp.zeros(classes, bool).at[task.order].set(jnp.arange(classes) < task.known)
            return Examples(values, labels, jnp.broadcast_to(known, (len(labels), classes)))

        def train(task: Task, data: Sorted, index: Array, key: Key) -> Examples:
            known_key, augment_key = jax.random.split(fold(key, _AUGMENT))
            known = task.known * count
            looks = total // known
            left = jax.random.randint(known_key, index.shape, 0, known)
            at = jnp.where(index < looks * known, index // looks, left)
            label = task.order[at // count]
            values = look(
                jnp.asarray(data.images.train_images)[jnp.asarray(data.train_of)[label, task.places[at % count]]]
            )
            crop_key, turn_key = jax.random.split(augment_key)
            if self.augment:
                values = moved(values, crop_key)
            if self.rotate:
                values = turned(values, turn_key, self.rotate)
            return masked(task, values, label)

        def evenly(task: Task, index: Array, each: int) -> tuple[Array, Array]:
            """Maps indices over all classes to the known ones: labels, and places among a class's ``each`` images."""
            # In 32 bits: the product is less than images times classes, far below 2^31.
            at = index * task.known // classes
            return task.order[at // each], at % each

        def test(task: Task, data: Sorted, index: Array) -> Examples:
            label, place = evenly(task, index, held_out)
            at = jnp.asarray(data.test_of)[label, place]
            return masked(task, look(jnp.asarray(data.images.test_images)[at]), label)

        def validation(task: Task, data: Sorted, index: Array) -> Examples:
            label, place = evenly(task, index, kept_out)
            at = jnp.asarray(data.train_of)[label, task.validation[place]]
            return masked(task, look(jnp.asarray(data.images.train_images)[at]), label)

        return Stream(
            data, "cross_entropy", dataset.card.shape, classes, total, classes * held_out, task, train, test,
            f"{dataset.card.name}, {self.new_classes} more classes a task",
            classes * kept_out, validation if kept_out else None,
        )  # fmt: skip


def channels(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of images, float32 ``[channels]``; levels are on a scale from 0 to 1.

    A constant channel gets the deviation one: its mean is subtracted, and nothing is divided.
    """
    if images.dtype != np.uint8:
        values = images.reshape(-1, images.shape[-1])
        means, deviations = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        return means.astype(np.float32), np.where(deviations > 0, deviations, 1).astype(np.float32)
    levels = np.arange(256) / 255
    frequencies = [np.bincount(channel.ravel(), minlength=256) / channel.size for channel in np.moveaxis(images, -1, 0)]
    means = np.array([f @ levels for f in frequencies])
    deviations = np.sqrt([f @ (levels - mean) ** 2 for f, mean in zip(frequencies, means)])
    return means.astype(np.float32), np.where(deviations > 0, deviations, 1).astype(np.float32)


def moved(images: Array, key: Key) -> Array:
    """``[B, height, width, channels]``, half of them mirrored, each a random crop of the image padded by reflection."""
    flip_key, crop_key = jax.random.split(key)
    count, *shape = images.shape
    around = tuple(min(PAD, side - 1) for side in shape[:2])
    flip = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
    padded = jnp.pad(
        jnp.where(flip, images[:, :, ::-1], images), ((0, 0), *((side, side) for side in around), (0, 0)), "reflect"
    )
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * jnp.asarray([around]) + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)


def turned(images: Array, key: Key, degrees: float) -> Array:
    """``[B, height, width, channels]``, each turned by its own random angle from 0 to ``degrees``."""
    angles = jax.random.uniform(key, (len(images),), maxval=math.radians(degrees))
    return jax.vmap(lambda image, angle: resampled(image, rotation(image.shape, angle)))(images, angles)
