"""What the streams of images share: their arrays on the device, subsets, and how an input is made of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.keys import some
from plastax.types import Array, Key, Stream


class Images(NamedTuple):
    """A data set as it lies on the device: uint8 images ``[N, height, width, channels]``, int32 labels ``[N]``."""

    train_images: np.ndarray | Array
    train_labels: np.ndarray | Array
    test_images: np.ndarray | Array
    test_labels: np.ndarray | Array


@dataclass(frozen=True)
class ImageStream:
    """Base of the streams that are made of a data set of images."""

    needs_data: ClassVar[bool] = True

    examples: int = 0
    """Training images of a task, drawn for each seed; 0: all."""

    def build(self, dataset: Dataset) -> Stream:
        """The stream of these images."""
        raise NotImplementedError

    def count(self, dataset: Dataset) -> int:
        """Number of training images of a task.

        Raises:
          ConfigError: negative, or more than there are.
        """
        available = len(dataset.train_images)
        if not 0 <= self.examples <= available:
            message = (
                f"stream.examples: {self.examples} is not allowed; give 1 to {available}, the training images of "
                f"{dataset.card.name}, or 0 for all"
            )
            raise ConfigError(message)
        return self.examples or available


def images(dataset: Dataset) -> Images:
    """The arrays without the card."""
    return Images(*dataset[:4])


def pixels(values: Array) -> Array:
    """uint8 0 .. 255 as float32 0 .. 1, made in the step, so that images stay as small as they are."""
    return values.astype(jnp.float32) / 255.0


def rotation(shape: tuple[int, ...], angle: Array) -> Array:
    """Where the pixels of an image ``(height, width, ...)`` come from that is turned anticlockwise around its centre.

    Args:
      shape: of the image.
      angle: radians, a scalar.

    Returns:
      Rows and columns, ``[2, height, width]``.
    """
    centre = jnp.array([(side - 1) / 2 for side in shape[:2]]).reshape(2, 1, 1)
    y, x = jnp.stack(jnp.meshgrid(*(jnp.arange(side) for side in shape[:2]), indexing="ij")) - centre
    return jnp.stack([jnp.cos(angle) * y + jnp.sin(angle) * x, jnp.cos(angle) * x - jnp.sin(angle) * y]) + centre


def resampled(image: Array, source: Array) -> Array:
    """``[height, width, channels]`` with pixels from the places ``source``, bilinearly; zeros outside."""

    def plane(values: Array) -> Array:
        return map_coordinates(values, list(source), order=1)

    return jax.vmap(plane, in_axes=-1, out_axes=-1)(image)


def subset(key: Key, available: int, wanted: int) -> Array:
    """``wanted`` different ones of ``0 .. available - 1``, int32; which ones is random, their order means nothing.

    Tasks are made anew in every segment, so all of them come without a draw.
    """
    return jnp.arange(available, dtype=jnp.int32) if wanted == available else some(key, wanted, available)


def by_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """The examples of each class, int32 ``[classes, n]``: as many of each as of the class that has fewest."""
    count = int(np.bincount(labels, minlength=classes).min())
    return np.stack([np.flatnonzero(labels == k)[:count] for k in range(classes)]).astype(np.int32)


class Sorted(NamedTuple):
    """A data set by class: its ``images``, and the examples of each class, int32 ``[C, n]`` and ``[C, m]``."""

    images: Images
    train_of: np.ndarray | Array
    test_of: np.ndarray | Array


def sort(dataset: Dataset) -> Sorted:
    """The images by class; raises `ConfigError` where a class has none to train on, or none held out."""
    found = Sorted(
        images(dataset),
        by_class(dataset.train_labels, dataset.card.classes),
        by_class(dataset.test_labels, dataset.card.classes),
    )
    for table, labels in ((found.train_of, dataset.train_labels), (found.test_of, dataset.test_labels)):
        if not table.size:
            missing = int(np.argmin(np.bincount(labels, minlength=dataset.card.classes)))
            kind = "training" if table is found.train_of else "held-out"
            message = f"data: {dataset.card.name} has no {kind} image of class {missing}; every class needs one"
            raise ConfigError(message)
    return found


def per_class(examples: int, classes: int, available: int, name: str) -> int:
    """Training images a class, of ``available``, where ``classes`` of them have ``examples`` together; 0: all.

    Raises:
      ConfigError: negative, no multiple of the classes, or more than there are.
    """
    if examples % classes or not 0 <= examples <= classes * available:
        message = (
            f"stream.examples: {examples} is not allowed; give a multiple of {classes} up to {classes * available} "
            f"({available} training images of {name} a class), or 0 for all"
        )
        raise ConfigError(message)
    return examples // classes or available
