"""What a data set is: arrays, a card that says where they come from, and an entry in the registry."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plastax import machine
from plastax.errors import ConfigError
from plastax.output import plain

MEANT = "to use what is there, give verify=False (plastax run: --no-data-verify, plastax data: --no-verify)"
"""How to use files that are not the published ones."""


class DataError(ConfigError):
    """Data that are missing or cannot be used; the message says which file, and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))  # It may quote a file.


class Card(NamedTuple):
    """Where a data set comes from. `str` gives a line for each field.

    Attributes:
      name: its name in `plastax.data.DATA`.
      synthetic: whether a generator drew the images. Results on them say nothing about real images.
      source: who made it and where it is published.
      licence: its terms, as far as they are known.
      origin: where these arrays were read: a path, or the call that made them.
      checksum: of the arrays, see `checksum`; the same for all origins of the same data.
      shape: (height, width, channels) of an image, or the shape of another example.
      classes: number of classes; labels are 0 .. classes - 1.
      train: number of training images.
      test: number of held-out images.
      notes: how held-out images were chosen, and what else to know.
      labels: the label that each class had in your own data; () where it was the same.
    """

    name: str
    synthetic: bool
    source: str
    licence: str
    origin: str
    checksum: str
    shape: tuple[int, ...]
    classes: int
    train: int
    test: int
    notes: str
    labels: tuple[int | str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; ``labels`` only if there are any."""
        fields = self._asdict() if self.labels else dict(zip(self._fields[:-1], self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def __str__(self) -> str:
        fields = self.to_json() | {"shape": self.shape}
        lines = [f"{name + ':':<11}{value}" for name, value in fields.items()]
        warning = "*** SYNTHETIC IMAGES: drawn by a generator, not a real data set ***"
        return "\n".join([warning] * self.synthetic + lines)


class Arrays(NamedTuple):
    """What a reader returns.

    Attributes:
      train_images: uint8 ``[train, height, width, channels]``, 0 .. 255; of your own data also float32, and any shape.
      train_labels: int32 ``[train]``.
      test_images: as ``train_images``, ``[test, ...]``; none of them is a training image.
      test_labels: int32 ``[test]``.
      classes: number of classes.
      labels: of your own data, see `Card`.
      notes: what the reader adds to those of the `Entry`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    labels: tuple[int | str, ...] = ()
    notes: str = ""


class Dataset(NamedTuple):
    """A data set in memory: `Arrays` with a card.

    Attributes:
      train_images: uint8 ``[train, height, width, channels]``, 0 .. 255; of your own data also float32, and any shape.
      train_labels: int32 ``[train]``.
      test_images: as ``train_images``, ``[test, ...]``; none of them is a training image.
      test_labels: int32 ``[test]``.
      card: what it is and where it comes from.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    card: Card


class Source(NamedTuple):
    """A place to fetch a data set from.

    Attributes:
      label: its name in messages.
      fetch: ``(folder) -> None``: puts the files into the folder, or raises `SourceError`. The next call may continue
        what it leaves there.
    """

    label: str
    fetch: Callable[[Path], None]


class SourceError(Exception):
    """Why a source could not give its files."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(" ".join(message[:500].split())))  # It may quote a server.


class Entry(NamedTuple):
    """A data set in the registry.

    Attributes:
      description: one line.
      source: who made it and where it is published.
      licence: its terms, as far as they are known.
      notes: for the card.
      read: ``(folder, verify, **options) -> Arrays``; ``(**options) -> Arrays`` for a data set without files.
      files: the files that a folder needs, in words; "" for a data set without files.
      present: ``(folder) -> bool``: whether the folder holds the data set, whole or in part.
      folders: where the files may be below ``PLASTAX_DATA``, also by the habits of other libraries.
      installed: folders of operating system packages that hold it.
      sources: where to fetch it, best first.
      remedy: how to get the files if there are no sources.
      synthetic: whether a generator draws it.
      name: of your own data; others are named by the registry.
      published: what the sources bring: the number of training images and of held-out images, the shape of an image,
        the number of classes.
    """

    description: str
    source: str
    licence: str
    notes: str
    read: Callable[..., Arrays]
    files: str = ""
    present: Callable[[Path], bool] = Path.is_dir
    folders: tuple[str, ...] = ()
    installed: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    remedy: str = ""
    synthetic: bool = False
    name: str = ""
    published: tuple[int, int, tuple[int, int, int], int] | None = None


def checksum(arrays: Arrays) -> str:
    """``sha256:<hex>`` of the four arrays' bytes in C order, and of the examples' form if they are no uint8 images."""
    digest, images = hashlib.sha256(), arrays.train_images
    if images.dtype != np.uint8 or images.ndim != 4:
        digest.update(f"{images.dtype} {images.shape}".encode())
    for array in arrays[:4]:
        digest.update(np.ascontiguousarray(array).data)
    return f"sha256:{digest.hexdigest()}"


def verify(path: Path, content: bytes, expected: str) -> None:
    """Refuses a file that is not the published one, before it is parsed.

    Args:
      path: for the message.
      content: of the file.
      expected: ``<algorithm>:<hex>``.

    Raises:
      DataError: the content has another digest.
    """
    algorithm, _, digest = expected.partition(":")
    found = hashlib.new(algorithm, content).hexdigest()
    if found != digest:
        raise DataError(
            f"{path}: not the published file, or a damaged one ({algorithm} {found[:12]}..., published: "
            f"{digest[:12]}...); delete it and get it again; {MEANT}"
        )


def affordable(*shape: int, working: int = 0) -> None:
    """Refuses images that do not fit into free memory.

    Args:
      shape: of all images, one byte a number.
      working: more bytes, to make them.

    Raises:
      ConfigError: they do not fit.
    """
    there = machine.free_memory()
    if there is not None and (size := math.prod(shape) + working) > there:
        raise ConfigError(
            f"{' x '.join(map(str, shape))} bytes of images take {size / 2**30:,.1f} GiB, and {there / 2**30:,.1f} GiB "
            "are free; take fewer classes, or fewer images"
        )


def positive(**values: int) -> None:
    """Raises `ConfigError` for a count below one."""
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}={value} is not a positive number of {name.replace('_', ' ')}")
