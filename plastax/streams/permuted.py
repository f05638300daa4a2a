"""Permuted images: the same pixels in a new order every task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax

from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, Picked, of_images, pixels, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET, _PIXELS = range(2)


class Task(NamedTuple):
    """The training images ``chosen`` ``[n]``, and the ``order`` of their pixels; both int32."""

    chosen: Array
    order: Array


@dataclass(frozen=True)
class Permuted(ImageStream):
    """Images whose pixels are in a new random order every task; labels stay.

    Every task, also the first, draws its own permutation. A seed has the same training images in every task. The
    channels of a pixel are permuted as well.

    References:
      Goodfellow et al., "An empirical investigation of catastrophic forgetting in gradient-based neural networks",
      arXiv 1312.6211; as an online stream: Dohare et al., "Loss of plasticity in deep continual learning", Nature 632,
      2024; with 10,000 images a seed: Kumar et al., arXiv 2308.11958.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import data
      >>> stream = Permuted(examples=100).build(data.load("digits"))
      >>> task = stream.task(jax.random.key(0), stream.data, jnp.int32(1))
      >>> examples = stream.train(task, stream.data, jnp.arange(8), jax.random.key(1))
      >>> examples.x.shape, examples.y.shape, stream.examples, stream.held_out
      ((8, 8, 8, 1), (8,), 100, 299)
    """

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available, shape = self.count(dataset), len(dataset.train_images), dataset.card.shape

        def task(key: Key, data: Images, index: Array) -> Task:
            chosen = subset(fold(key, _SUBSET), available, count)
            return Task(chosen, jax.random.permutation(fold(key, _PIXELS, index), math.prod(shape)))

        def look(task: Task, seen: Picked) -> Examples:
            permuted = seen.images.reshape(len(seen.images), -1)[:, task.order].reshape(-1, *shape)
            return Examples(pixels(permuted), seen.labels)

        return of_images(dataset, count, task, look, f"{dataset.card.name} with permuted pixels")
