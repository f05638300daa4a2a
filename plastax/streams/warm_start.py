"""Warm start: first a part of the data, then all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from plastax import ranges
from plastax.data import Dataset
from plastax.keys import fold, some
from plastax.streams.base import Images, ImageStream, Picked, of_images, pixels
from plastax.types import Array, Examples, Key, Stream

_SUBSET = 0


class Task(NamedTuple):
    """The training images ``chosen``, int32 ``[n]``: in the first task, those of its part again and again."""

    chosen: Array


@dataclass(frozen=True)
class WarmStart(ImageStream):
    """A part of the training images in the first task, all of them from the second on.

    Does a network that started with the part generalise as well as one that starts with all? Compare the held-out
    accuracy at the end of the second task: the method `reset` is the network that starts with all images. Both tasks
    have the same number of gradient steps: in the first, an epoch repeats the part as often as it fits into all. Each
    seed has another part.

    References:
      Ash and Adams, "On warm-starting neural network training", NeurIPS 2020, arXiv 1910.08475.
    """

    share: float = 0.5
    """Share of the training images that the first task has."""

    def __post_init__(self) -> None:
        ranges.check(self, "stream", "share", above=0, most=1)

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available = self.count(dataset), len(dataset.train_images)
        part = max(1, round(self.share * count))

        def task(key: Key, data: Images, index: Array) -> Task:
            known = jnp.where(index == 0, part, count)
            return Task(some(fold(key, _SUBSET), count, available)[jnp.arange(count) % known])

        def look(task: Task, seen: Picked) -> Examples:
            return Examples(pixels(seen.images), seen.labels)

        return of_images(dataset, count, task, look, f"{self.share:.0%} of {dataset.card.name}, then all")
