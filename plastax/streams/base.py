"""What streams of images share: their arrays on the device, subsets of them, and how pixels become inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import some
from plastax.types import Array, Examples, Key, Stream


class Images(NamedTuple):
    """The arrays of a `plastax.data.Dataset` on the device; labels are int32 ``[N]``."""

    train_images: np.ndarray | Array
    train_labels: np.ndarray | Array
    test_images: np.ndarray | Array
    test_labels: np.ndarray | Array


class Picked(NamedTuple):
    """Some images of a task, as the data set has them.

    Attributes:
      images: as in the data set, ``[B, ...]``.
      labels: of the data set, int32 ``[B]``.
      numbers: of the images in the task, int32 ``[B]``.
      key: for what is drawn at every look; None: these are held out, and the same at every look.
    """

    images: Array
    labels: Array
    numbers: Array
    key: Key | None


@dataclass(frozen=True)
class ImageStream:
    """A stream of tasks made of a data set of images."""

    needs_data: ClassVar[bool] = True

    examples: int = 0
    """Training images of a task, drawn for each seed; 0: all."""

    def build(self, dataset: Dataset) -> Stream:
        """The stream of these images; raises `ConfigError` where they do not suffice."""
        raise NotImplementedError

    def count(self, dataset: Dataset) -> int:
        """Training images of a task; raises `ConfigError` if negative, or more than the data set has."""
        available = len(dataset.train_images)
        if not 0 <= self.examples <= available:
            raise ConfigError(
                f"stream.examples: {self.examples} is not allowed; give 1 to {available}, the training images of "
                f"{dataset.card.name}, or 0 for all"
            )
        return self.examples or available


def images(dataset: Dataset) -> Images:
    """The arrays of a data set, without its card."""
    return Images(*dataset[:4])


def of_images(
    dataset: Dataset,
    examples: int,
    task: Callable[[Key, Images, Array], Any],
    look: Callable[[Any, Picked], Examples],
    description: str,
) -> Stream:
    """A stream of classification tasks on the images of a data set, with its classes and its held-out images.

    Args:
      dataset: the images.
      examples: training images of a task.
      task: see `Stream.task`; ``task.chosen``, int32 ``[examples]``, are its training images.
      look: ``(task, picked) -> Examples``: what the task makes of images.
      description: one line.
    """

    def train(task: Any, data: Images, index: Array, key: Key) -> Examples:
        at = task.chosen[index]
        return look(task, Picked(jnp.asarray(data.train_images)[at], jnp.asarray(data.train_labels)[at], index, key))

    def test(task: Any, data: Images, index: Array) -> Examples:
        held_out = jnp.asarray(data.test_images)[index], jnp.asarray(data.test_labels)[index]
        return look(task, Picked(*held_out, index, None))

    card = dataset.card
    return Stream(
        images(dataset), "cross_entropy", card.shape, card.classes, examples, len(dataset.test_images), task, train,
        test, description,
    )  # fmt: skip


def pixels(values: Array) -> Array:
    """uint8 0 .. 255 as float32 0 .. 1, and float32 as it is. In the training step: until then a pixel takes a byte."""
    return values.astype(jnp.float32) / 255.0 if values.dtype == jnp.uint8 else values


def check_images(dataset: Dataset, setting: str) -> None:
    """Raises `ConfigError` if examples are no ``[height, width, channels]``, which ``setting`` needs."""
    if len(shape := dataset.card.shape) != 3:
        raise ConfigError(f"{setting} needs images [height, width, channels]; those of {dataset.card.name} are {shape}")


def rotation(shape: tuple[int, ...], angle: Array) -> Array:
    """Where the pixels of an image come from when it turns anticlockwise around its centre.

    Args:
      shape: of the image, ``(height, width, ...)``.
      angle: radians, a scalar.

    Returns:
      Rows and columns, ``[2, height, width]``.
    """
    centre = jnp.array([(side - 1) / 2 for side in shape[:2]]).reshape(2, 1, 1)
    y, x = jnp.stack(jnp.meshgrid(*(jnp.arange(side) for side in shape[:2]), indexing="ij")) - centre
    return jnp.stack([jnp.cos(angle) * y + jnp.sin(angle) * x, jnp.cos(angle) * x - jnp.sin(angle) * y]) + centre


def resampled(image: Array, source: Array) -> Array:
    """``[height, width, channels]`` with pixels from the places ``source``: bilinear, zeros outside."""

    def plane(values: Array) -> Array:
        return map_coordinates(values, list(source), order=1)

    return jax.vmap(plane, in_axes=-1, out_axes=-1)(image)


def subset(key: Key, available: int, wanted: int) -> Array:
    """A random subset of ``0 .. available - 1``, int32 ``[wanted]``; its order means nothing.

    Every segment makes its task again, so the whole set comes without a draw.
    """
    return jnp.arange(available, dtype=jnp.int32) if wanted == available else some(key, wanted, available)


def by_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """The examples of each class, int32 ``[classes, n]``, where n is the size of the smallest class."""
    count = int(np.bincount(labels, minlength=classes).min())
    return np.stack([np.flatnonzero(labels == k)[:count] for k in range(classes)]).astype(np.int32)


class Sorted(NamedTuple):
    """A data set by class: its ``images``, and the examples of each class, int32 ``[C, n]`` and ``[C, m]``."""

    images: Images
    train_of: np.ndarray | Array
    test_of: np.ndarray | Array


def sort(dataset: Dataset) -> Sorted:
    """The images by class; raises `ConfigError` where a class has no training image, or none held out."""
    found = Sorted(
        images(dataset),
        by_class(dataset.train_labels, dataset.card.classes),
        by_class(dataset.test_labels, dataset.card.classes),
    )
    for table, labels in ((found.train_of, dataset.train_labels), (found.test_of, dataset.test_labels)):
        if not table.size:
            missing = int(np.argmin(np.bincount(labels, minlength=dataset.card.classes)))
            kind = "training" if table is found.train_of else "held-out"
            raise ConfigError(
                f"data: {dataset.card.name} has no {kind} image of class {missing}; every class needs one"
            )
    return found


def per_class(examples: int, classes: int, available: int, name: str) -> int:
    """Training images of each class of a task.

    Args:
      examples: of all its classes together; 0: all.
      classes: of the task.
      available: training images of a class.
      name: of the data set.

    Raises:
      ConfigError: ``examples`` is negative, no multiple of the classes, or too large.
    """
    if examples % classes or not 0 <= examples <= classes * available:
        raise ConfigError(
            f"stream.examples: {examples} is not allowed; give a multiple of {classes} up to {classes * available} "
            f"({available} training images of {name} a class), or 0 for all"
        )
    return examples // classes or available
