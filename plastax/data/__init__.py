"""Data sets as arrays, each with a card that says where it comes from.

`load` takes a path or looks for a published data set: in the directory that ``PLASTAX_DATA`` names, in the cache
(``~/.cache/plastax/data``), in installed packages, then on the network. ``plastax data mnist`` fetches it ahead of time
and prints its card. Your own data are in `plastax.data.own`.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np

from plastax.data import own
from plastax.data.base import Arrays, Card, DataError, Dataset, Entry, Source, SourceError, checksum
from plastax.data.bounded import reading
from plastax.data.cifar import CIFAR100
from plastax.data.digits import DIGITS
from plastax.data.find import cache, locate, places
from plastax.data.idx import FASHION_MNIST, MNIST
from plastax.data.imagenet import IMAGENET32
from plastax.data.synthetic import SYNTHETIC
from plastax.errors import ConfigError

DATA: dict[str, Entry] = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
    "cifar100": CIFAR100,
    "imagenet32": IMAGENET32,
    "synthetic": SYNTHETIC,
}
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def load(
    name: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    download: bool = True,
    **options: Any,
) -> Dataset:
    """A data set by name, or your own.

    Args:
      name: one of `DATA`; or a path or a Python object, see `plastax.data.own`.
      path: the folder or archive that holds the files of a published data set. By default they are looked for, and
        fetched if they are not found.
      verify: refuse files that differ from the published ones, and incomplete sets. False takes any files of the right
        format, such as a subset.
      download: whether the network may be asked.
      **options: for the reader of ``synthetic`` (`plastax.data.synthetic.read`) or ``imagenet32``
        (`plastax.data.imagenet.read`).

    Returns:
      uint8 images ``[N, height, width, channels]``, 0 .. 255 (of your own data also float32, and any shape), int32
      labels, and the card.

    Raises:
      ConfigError: the name or an option is unknown, or the path does not exist.
      DataError: data are missing, damaged or of another format; the message says which file, and what to do.

    Examples:
      >>> digits = load("digits")
      >>> digits.train_images.shape, digits.train_labels.dtype, digits.card.classes
      ((1498, 8, 8, 1), dtype('int32'), 10)
      >>> load("synthetic", classes=3, train_per_class=4, test_per_class=2).card.train
      12
      >>> mine = load((np.random.default_rng(0).random((60, 5)), np.arange(60) % 3))
      >>> mine.card.train, mine.card.test, mine.card.shape, mine.card.classes
      (51, 9, (5,), 3)
    """
    if isinstance(name, Dataset):
        return name
    given, (name, entry) = name, _entry(name)
    known = [option for option, found in inspect.signature(entry.read).parameters.items() if found.kind == KEYWORD]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError.unknown(f"option of {name}", unknown[0], known or ["none"])
    if entry.files:
        with reading(name):
            arrays, origin = locate(name, entry, path, verify, download, options)
    elif path is None:
        with reading(name):
            arrays = entry.read(**options)
        spelled = repr(os.fspath(given)) if isinstance(given, str | os.PathLike) else entry.source
        origin = f"plastax.data.load({', '.join([spelled, *_spelled(options)])})"
    else:
        raise ConfigError(f"data: {name} is not read from files; leave out the path {path}")
    unverified = "" if verify or not entry.files else "; files NOT verified against the published ones"
    return _dataset(name, entry, arrays, origin, checksum(arrays), unverified)


def blank(name: Any) -> Dataset | None:
    """A stand-in for a data set that has to be fetched: its published sizes, and pixels 0, in hardly any memory.

    With it, settings are checked before a download.

    Returns:
      The stand-in; None if the data set is on this machine or cannot be fetched.

    Raises:
      ConfigError: the name is unknown, or ``PLASTAX_DATA`` does not exist.
    """
    name, entry = _entry(name)
    with reading(name):
        if entry.published is None or any(entry.present(folder) for folder in places(name, entry)):
            return None
    *sizes, shape, classes = entry.published
    parts = [(np.broadcast_to(np.uint8(0), (n, *shape)), np.arange(n, dtype=np.int32) % classes) for n in sizes]
    return _dataset(name, entry, Arrays(*parts[0], *parts[1], classes), "not fetched yet", "")


def _entry(given: Any) -> tuple[str, Entry]:
    """The name and the entry of a data set."""
    if isinstance(given, str):
        if given in DATA:
            return given, DATA[given]
        if not (os.sep in given or given.endswith(".npz") or os.path.exists(given)):
            raise ConfigError.unknown("data", given, [*DATA, "an .npz file or a folder of images"])
    found = own.entry(given)
    return found.name or "own", found


def _dataset(name: str, entry: Entry, arrays: Arrays, origin: str, checksum: str, notes: str = "") -> Dataset:
    card = Card(
        name=name,
        synthetic=entry.synthetic,
        source=entry.source,
        licence=entry.licence,
        origin=origin,
        checksum=checksum,
        shape=arrays.train_images.shape[1:],
        classes=arrays.classes,
        train=len(arrays.train_images),
        test=len(arrays.test_images),
        notes=entry.notes + arrays.notes + notes,
        labels=arrays.labels,
    )
    return Dataset(*arrays[:4], card)


def _spelled(options: dict[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in options.items()]


__all__ = [
    "DATA",
    "Arrays",
    "Card",
    "DataError",
    "Dataset",
    "Entry",
    "Source",
    "SourceError",
    "blank",
    "cache",
    "checksum",
    "load",
    "own",
]
