"""Warm start: first a part of the data, then all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import fold, some
from plastax.streams.base import Images, ImageStream, images, pixels
from plastax.types import Array, Examples, Key, Stream

_SUBSET = 0


class Task(NamedTuple):
    """The training images ``chosen`` int32 ``[n]``, of which the first ``known`` are there."""

    chosen: Array
    known: Array


@dataclass(frozen=True)
class WarmStart(ImageStream):
    """A part of the training images in the first task, all of them from the second on: does the start generalise?

    A task has as many gradient steps either way: in the first, an epoch passes over the part as often as it fits into
    all. Which part it is differs by seed. The `reset` method is the network that starts with all images; the held-out
    accuracy at the end of the second task is what to compare.

    References:
      Ash and Adams, "On warm-starting neural network training", NeurIPS 2020, arXiv 1910.08475.
    """

    share: float = 0.5
    """Share of the training images that the first task has."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            message = f"stream.share: {self.share} is not allowed; give a number above 0, at most 1"
            raise ConfigError(message)

    def build(self, dataset: Dataset) -> Stream:
        """The stream; see `ImageStream.build`."""
        count, available = self.count(dataset), len(dataset.train_images)
        part = max(1, round(self.share * count))

        def task(key: Key, data: Images, index: Array) -> Task:
            return Task(some(fold(key, _SUBSET), count, available), jnp.where(index == 0, part, count))

        def train(task: Task, data: Images, index: Array, key: Key) -> Examples:
            del key
            at = task.chosen[index % task.known]
            return Examples(pixels(jnp.asarray(data.train_images)[at]), jnp.asarray(data.train_labels)[at])

        def test(task: Task, data: Images, index: Array) -> Examples:
            return Examples(pixels(jnp.asarray(data.test_images)[index]), jnp.asarray(data.test_labels)[index])

        return Stream(
            images(dataset), "cross_entropy", dataset.card.shape, dataset.card.classes, count, len(dataset.test_images),
            task, train, test, f"{self.share:.0%} of {dataset.card.name}, then all",
        )  # fmt: skip
