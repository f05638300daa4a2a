"""Rotating images: a gradual shift, as fast as asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.streams.base import Images, ImageStream, images, pixels, resampled, rotation, subset
from plastax.types import Array, Examples, Key, Stream

_SUBSET = 0


class Task(NamedTuple):
    """The training images ``chosen``, int32 ``[n]``, and where pixels come from, ``source`` ``[2, height, width]``."""

    chosen: Array
    source: Array


@dataclass(frozen=True)
class Rotating(ImageStream):
    """Images that turn by ``severity`` degrees from one task to the next; labels stay.

    Task k is turned anticlockwise by k times the severity around the centre, with bilinear interpolation and zeros
    around; task 0 is as it was. A seed's training images are the same in every task.

    References:
      Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", arXiv 1706.08840 (rotated MNIST).
    """

    severity: float = 10.0
    """Degrees from one task to the next; 0: nothing changes."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.severity):
            message = f"stream.severity: {self.severity} is not allowed; give degrees, a finite number"
            raise ConfigError(message)

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available, shape = self.count(dataset), len(dataset.train_images), dataset.card.shape

        def task(key: Key, data: Images, index: Array) -> Task:
            # Whole turns are taken off before the float product could round.
            turn = jnp.deg2rad(jnp.mod(index * jnp.float32(self.severity), 360.0))
            return Task(subset(fold(key, _SUBSET), available, count), rotation(shape, turn))

        def look(task: Task, values: Array, labels: Array) -> Examples:
            return Examples(jax.vmap(lambda image: resampled(image, task.source))(pixels(values)), labels)

        def train(task: Task, data: Images, index: Array, key: Key) -> Examples:
            del key
            at = task.chosen[index]
            return look(task, jnp.asarray(data.train_images)[at], jnp.asarray(data.train_labels)[at])

        def test(task: Task, data: Images, index: Array) -> Examples:
            return look(task, jnp.asarray(data.test_images)[index], jnp.asarray(data.test_labels)[index])

        return Stream(
            images(dataset), "cross_entropy", shape, dataset.card.classes, count, len(dataset.test_images), task, train,
            test, f"{dataset.card.name}, turned by {self.severity:g} degrees a task",
        )  # fmt: skip
