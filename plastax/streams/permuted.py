"""Permuted images: the same pixels in a new order every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, images, pixels, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET, _PIXELS = range(2)


class Task(NamedTuple):
    """The training images ``chosen`` ``[n]``, and the ``order`` of their pixels; both int32."""

    chosen: Array
    order: Array


@dataclass(frozen=True)
class Permuted(ImageStream):
    """Images whose pixels are in a new random order every task; labels stay.

    Every task's permutation is drawn from a key of its own, the first task's too: tasks do not depend on one another's.
    A seed's training images are the same in every task. Channels of a pixel are permuted as well.

    References:
      Goodfellow et al., "An empirical investigation of catastrophic forgetting in gradient-based neural networks",
      arXiv 1312.6211; as an online stream: Dohare et al., "Loss of plasticity in deep continual learning", Nature 632,
      2024; with 10,000 images a seed: Kumar et al., arXiv 2308.11958.
    """

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available, shape = self.count(dataset), len(dataset.train_images), dataset.card.shape

        def task(key: Key, data: Images, index: Array) -> Task:
            chosen = subset(fold(key, _SUBSET), available, count)
            return Task(chosen, jax.random.permutation(fold(key, _PIXELS, index), math.prod(shape)))

        def look(task: Task, values: Array, labels: Array) -> Examples:
            permuted = values.reshape(len(values), -1)[:, task.order].reshape(-1, *shape)
            return Examples(pixels(permuted), labels)

        def train(task: Task, data: Images, index: Array, key: Key) -> Examples:
            del key
            at = task.chosen[index]
            return look(task, jnp.asarray(data.train_images)[at], jnp.asarray(data.train_labels)[at])

        def test(task: Task, data: Images, index: Array) -> Examples:
            return look(task, jnp.asarray(data.test_images)[index], jnp.asarray(data.test_labels)[index])

        return Stream(
            images(dataset), "cross_entropy", shape, dataset.card.classes, count, len(dataset.test_images), task, train,
            test, f"{dataset.card.name} with permuted pixels",
        )  # fmt: skip
