"""What a data set is: arrays, a card that says where they come from, and the entry that the registry keeps of it."""

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

MEANT = "if you mean what is there, say verify=False (experiments: --no-data-verify, plastax data: --no-verify)"
"""How to use files that are not the published ones."""


class DataError(ConfigError):
    """Data that cannot be had or used; the message names the file and the remedy. Ends an experiment with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))  # It may quote a file.


class Card(NamedTuple):
    """Where a data set comes from; its fields are JSON types, and `str` prints them one a line.

    Attributes:
      name: its name in `plastax.data.DATA`.
      synthetic: True if the images were drawn by a generator. What is measured on them says nothing about real images.
      source: who made it and where it is published.
      licence: under what terms, as far as they are known.
      origin: what these arrays were read from: a path or a package, or the call that made them.
      checksum: ``sha256:<hex>`` of the four arrays' bytes in C order: the same for all origins of the same data.
      shape: (height, width, channels) of an image, or the shape of another example.
      classes: number of classes; labels are 0 .. classes - 1.
      train: number of training images.
      test: number of held-out images.
      notes: how training and held-out images were told apart, and what else to know.
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
    """A place that a data set can be fetched from.

    Attributes:
      label: what messages and cards call it.
      fetch: ``(folder) -> None``: puts the data set's files into the folder, or raises `SourceError`. What it leaves
        there may be continued by its next call.
    """

    label: str
    fetch: Callable[[Path], None]


class SourceError(Exception):
    """Why a source could not give its files."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(" ".join(message[:500].split())))  # It may quote a server.


class Entry(NamedTuple):
    """What the registry knows of a data set.

    Attributes:
      description: one line.
      source: who made it and where it is published.
      licence: under what terms, as far as they are known.
      notes: for the card.
      read: ``(folder, verify, **options) -> Arrays``; ``(**options) -> Arrays`` if the data set needs no files.
      files: what files to put into a folder, in words; "" for a data set that needs none.
      present: ``(folder) -> bool``: whether the folder holds the data set, whole or in part.
      folders: where the files may lie below ``PLASTAX_DATA``, other libraries' habits included.
      installed: folders of operating system packages that hold it.
      sources: where it can be fetched, best first.
      remedy: how to get the files where there is no source.
      synthetic: whether a generator draws it.
      name: of your own data; others have the registry's.
      published: of a set with sources, the sizes of what they bring: training images, held-out images, shape of an
        image, classes.
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
    """``sha256:<hex>`` of the four arrays' bytes, in the order of `Arrays`; of their form too if they are no images."""
    digest, images = hashlib.sha256(), arrays.train_images
    if images.dtype != np.uint8 or images.ndim != 4:
        digest.update(f"{images.dtype} {images.shape}".encode())
    for array in arrays[:4]:
        digest.update(np.ascontiguousarray(array).data)
    return f"sha256:{digest.hexdigest()}"


def verify(path: Path, content: bytes, expected: str) -> None:
    """Before it is parsed: refuses a file that is not the published one; ``expected`` is ``<algorithm>:<hex>``.

    Raises:
      DataError: the content has another digest.
    """
    algorithm, _, digest = expected.partition(":")
    found = hashlib.new(algorithm, content).hexdigest()
    if found != digest:
        raise DataError(
            f"{path}: not the published file, or a damaged one ({algorithm} {found[:12]}..., published: "
            f"{digest[:12]}...); delete it and get it again, or, {MEANT}"
        )


def affordable(*shape: int, working: int = 0) -> None:
    """Refuses images of more bytes than there are free.

    Args:
      shape: of the images, a byte each.
      working: bytes that it takes to make them.

    Raises:
      ConfigError: states the size.
    """
    there = machine.free_memory()
    if there is not None and (size := math.prod(shape) + working) > there:
        raise ConfigError(
            f"{' x '.join(map(str, shape))} bytes of images are asked for, which take {size / 2**30:,.1f} GiB, and "
            f"{there / 2**30:,.1f} GiB are free; ask for fewer classes, or fewer images a class"
        )


def positive(**values: int) -> None:
    """Refuses counts below one.

    Raises:
      ConfigError: names the first such count.
    """
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name}={value} is not a positive number of {name.replace('_', ' ')}")
