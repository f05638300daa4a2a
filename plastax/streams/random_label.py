"""Random labels: the same images with new labels every task, to be memorised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax

from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, Picked, of_images, pixels, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET, _LABELS, _TEST_LABELS = range(3)


class Task(NamedTuple):
    """The training images ``chosen`` ``[n]``, their ``labels``, and those of the held-out images; all int32."""

    chosen: Array
    labels: Array
    test_labels: Array


@dataclass(frozen=True)
class RandomLabel(ImageStream):
    """A fixed set of images with new random labels every task: each image has to be memorised.

    Labels are uniform and independent. Held-out images get random labels too, so accuracy on them stays at chance.

    References:
      Zhang et al., "Understanding deep learning requires rethinking generalization", arXiv 1611.03530; as a stream:
      Lyle et al., "Understanding plasticity in neural networks", arXiv 2303.01486, and Kumar et al., arXiv 2308.11958
      (1,200 images, 50 tasks of 400 epochs).
    """

    examples: int = 1200
    """Training images of a seed, the same in every task; 0: all."""

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available, classes = self.count(dataset), len(dataset.train_images), dataset.card.classes
        held_out = len(dataset.test_images)

        def task(key: Key, data: Images, index: Array) -> Task:
            return Task(
                subset(fold(key, _SUBSET), available, count),
                jax.random.randint(fold(key, _LABELS, index), (count,), 0, classes),
                jax.random.randint(fold(key, _TEST_LABELS, index), (held_out,), 0, classes),
            )

        def look(task: Task, seen: Picked) -> Examples:
            labels = task.test_labels if seen.key is None else task.labels
            return Examples(pixels(seen.images), labels[seen.numbers])

        return of_images(dataset, count, task, look, f"{dataset.card.name} with random labels")
