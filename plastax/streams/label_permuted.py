"""Permuted labels: the same images under new names every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, images, pixels, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET, _NAMES = range(2)


class Task(NamedTuple):
    """The training images ``chosen`` ``[n]``, and the new name of each class, ``names`` ``[C]``; both int32."""

    chosen: Array
    names: Array


@dataclass(frozen=True)
class LabelPermuted(ImageStream):
    """Images whose classes swap their labels every task: what was learned of the images stays useful.

    Every task has training images of its own, drawn anew. With ten classes the literature finds no loss of plasticity
    on this stream; it takes more of them.

    References:
      Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning", ICLR 2024,
      arXiv 2404.00781, section 4 (a change every 2,500 examples, batches of one).
    """

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available, classes = self.count(dataset), len(dataset.train_images), dataset.card.classes

        def task(key: Key, data: Images, index: Array) -> Task:
            names = jax.random.permutation(fold(key, _NAMES, index), classes)
            return Task(subset(fold(key, _SUBSET, index), available, count), names)

        def train(task: Task, data: Images, index: Array, key: Key) -> Examples:
            del key
            at = task.chosen[index]
            return Examples(pixels(jnp.asarray(data.train_images)[at]), task.names[jnp.asarray(data.train_labels)[at]])

        def test(task: Task, data: Images, index: Array) -> Examples:
            return Examples(
                pixels(jnp.asarray(data.test_images)[index]), task.names[jnp.asarray(data.test_labels)[index]]
            )

        return Stream(
            images(dataset), "cross_entropy", dataset.card.shape, classes, count, len(dataset.test_images), task, train,
            test, f"{dataset.card.name} with permuted labels",
        )  # fmt: skip
