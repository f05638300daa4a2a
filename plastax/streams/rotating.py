"""Rotating images: a gradual shift, as fast as asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.data import Dataset
from plastax.keys import fold
from plastax.streams.base import (
    Images,
    ImageStream,
    Picked,
    check_images,
    of_images,
    pixels,
    resampled,
    rotation,
    subset,
)
from plastax.types import Array, Examples, Key, Stream

_SUBSET = 0


class Task(NamedTuple):
    """The training images ``chosen``, int32 ``[n]``, and where pixels come from, ``source`` ``[2, height, width]``."""

    chosen: Array
    source: Array


@dataclass(frozen=True)
class Rotating(ImageStream):
    """Images that turn by ``severity`` degrees from one task to the next; labels stay.

    Images of task k are turned anticlockwise around their centre by k times the severity, with bilinear interpolation
    and zeros around. A seed has the same training images in every task.

    References:
      Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", arXiv 1706.08840 (rotated MNIST).
    """

    severity: float = 10.0
    """Degrees from one task to the next; 0: nothing changes."""

    def __post_init__(self) -> None:
        ranges.check(self, "stream", "severity", above=-math.inf, below=math.inf)

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`. It also refuses examples that are no images."""
        check_images(dataset, "stream: rotating")
        count, available, shape = self.count(dataset), len(dataset.train_images), dataset.card.shape

        def task(key: Key, data: Images, index: Array) -> Task:
            # Whole turns are taken off before the float product could round.
            turn = jnp.deg2rad(jnp.mod(index * jnp.float32(self.severity), 360.0))
            return Task(subset(fold(key, _SUBSET), available, count), rotation(shape, turn))

        def look(task: Task, seen: Picked) -> Examples:
            return Examples(jax.vmap(lambda image: resampled(image, task.source))(pixels(seen.images)), seen.labels)

        return of_images(dataset, count, task, look, f"{dataset.card.name}, turned by {self.severity:g} degrees a task")
