"""Continual ImageNet: tell two classes of images apart, then two others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.streams.base import ImageStream, Sorted, per_class, pixels, sort, subset
from plastax.types import Array, Examples, Key, Stream

_CLASSES, _SUBSET = range(2)


class Task(NamedTuple):
    """The training images ``chosen`` ``[2 n]`` and the held-out ones ``[2 m]``, first those of class 0; all int32."""

    chosen: Array
    held_out: Array


@dataclass(frozen=True)
class ContinualImageNet(ImageStream):
    """Two classes of images to tell apart, two others every task; labels are 0 and 1.

    Every seed has an order of the classes, and task i has numbers 2 i and 2 i + 1 of it. After the last class the first
    follows again: a thousand classes are five hundred tasks, which then repeat. A class always has the same training
    images. ``examples`` is the number of training images of a task, an even one; 0: all of both classes (1,200).

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, methods (600 training and 100
      held-out images a class).
    """

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`.

        Raises:
          ConfigError: fewer than two classes, a class without images, or ``examples`` out of range.
        """
        classes = dataset.card.classes
        if classes < 2:
            raise ConfigError(f"data: {dataset.card.name} has {classes} class; a task of this stream needs two")
        data = sort(dataset)
        available, held_out = data.train_of.shape[1], data.test_of.shape[1]
        count = per_class(self.examples, 2, available, dataset.card.name)

        def task(key: Key, data: Sorted, index: Array) -> Task:
            order = jax.random.permutation(fold(key, _CLASSES), classes)
            pair = order[(2 * index + jnp.arange(2)) % classes]
            # The order within a class has no meaning, so all classes can take the same places.
            places = subset(fold(key, _SUBSET), available, count)
            train, test = jnp.asarray(data.train_of)[pair], jnp.asarray(data.test_of)[pair]
            return Task(train[:, places].reshape(-1), test.reshape(-1))

        def train(task: Task, data: Sorted, index: Array, key: Key) -> Examples:
            del key
            return Examples(pixels(jnp.asarray(data.images.train_images)[task.chosen[index]]), index // count)

        def test(task: Task, data: Sorted, index: Array) -> Examples:
            return Examples(pixels(jnp.asarray(data.images.test_images)[task.held_out[index]]), index // held_out)

        return Stream(
            data, "cross_entropy", dataset.card.shape, 2, 2 * count, 2 * held_out, task, train, test,
            f"pairs of classes of {dataset.card.name}",
        )  # fmt: skip
