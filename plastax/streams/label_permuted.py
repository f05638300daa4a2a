"""Permuted labels: the same images under new names every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax

from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, Picked, of_images, pixels, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET, _NAMES = range(2)


class Task(NamedTuple):
    """The training images ``chosen`` ``[n]``, and the new name of each class, ``names`` ``[C]``; both int32."""

    chosen: Array
    names: Array


@dataclass(frozen=True)
class LabelPermuted(ImageStream):
    """Images whose classes swap their labels every task: what was learned of the images stays useful.

    Every task draws its own training images. With ten classes the literature finds no loss of plasticity on this
    stream; with more it does.

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

        def look(task: Task, seen: Picked) -> Examples:
            return Examples(pixels(seen.images), task.names[seen.labels])

        return of_images(dataset, count, task, look, f"{dataset.card.name} with permuted labels")
