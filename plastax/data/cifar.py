"""CIFAR-100 from its Python archive, ``cifar-100-python.tar.gz``, or from the unpacked folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plastax.data import pickles
from plastax.data.base import Arrays, DataError, Entry, verify
from plastax.data.bounded import content, refusing, unpacked
from plastax.data.bounded import members as of_archive
from plastax.data.sources import mirror

ARCHIVE = "cifar-100-python.tar.gz"
FOLDER = "cifar-100-python"
CLASSES = 100
LIMIT = 1 << 28
"""Most bytes of the archive and of a member; the largest holds 50,000 x 3,072 pixels."""
DIGESTS = {"train": "md5:16019d7e3df5f24257cddd939b257f8d", "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"}
"""Of the two members that are read, in the archive or unpacked."""


def archive(path: Path) -> Path | None:
    """The archive that ``path`` is or holds, also as a tar file that a browser has decompressed."""
    return next((p for p in (path, path / ARCHIVE, path / ARCHIVE.removesuffix(".gz")) if p.is_file()), None)


def folder_of(path: Path) -> Path | None:
    """The unpacked folder that ``path`` is or holds."""
    return next((p for p in (path, path / FOLDER) if any((p / name).is_file() for name in DIGESTS)), None)


def present(path: Path) -> bool:
    """Whether ``path`` is or holds the archive or the unpacked folder."""
    return (archive(path) or folder_of(path)) is not None


def members(path: Path) -> dict[str, tuple[Path, bytes]]:
    """The files ``train`` and ``test``: their place, for messages, and their content.

    Raises:
      DataError: one is missing, or the archive is damaged.
    """
    folder, found = folder_of(path), archive(path)
    if folder is not None:
        return {name: (folder / name, content(folder / name, LIMIT)) for name in DIGESTS}
    if found is None:
        raise DataError(f"{path}: holds neither {ARCHIVE} nor {FOLDER}/")
    names = {f"{FOLDER}/{name}": name for name in DIGESTS}
    with refusing(found, "CIFAR-100's archive"), unpacked(found, LIMIT) as stream:
        contents = of_archive(stream, dict.fromkeys(names, LIMIT))
    if missing := sorted(names.keys() - contents):
        raise DataError(f"{found}: no CIFAR-100 archive (has no {' and no '.join(missing)}); replace it by {ARCHIVE}")
    return {names[name]: (found / name, data) for name, data in contents.items()}


def read(path: Path, verify_: bool) -> Arrays:
    """Reads CIFAR-100 with its fine labels.

    Args:
      path: the archive, the unpacked folder, or a folder that holds one of them.
      verify_: whether they must be the published files.

    Raises:
      DataError: a file is missing, damaged, of another format, or not the published one.
    """
    contents = members(path)

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        label, data = contents[name]
        if verify_:
            verify(label, data, DIGESTS[name])
        batch = pickles.load(data, label, ("data", "fine_labels"))
        images, labels = pickles.images_and_labels(batch, label, "fine_labels", 0, CLASSES)
        return np.ascontiguousarray(images), labels

    return Arrays(*split("train"), *split("test"), CLASSES)


CIFAR100 = Entry(
    description="50,000 + 10,000 colour images of objects, 32 x 32, 100 classes",
    source="A. Krizhevsky: Learning multiple layers of features from tiny images, 2009, www.cs.toronto.edu/~kriz",
    licence="none published by its author, who asks to cite the report",
    notes="the published split; fine labels",
    read=lambda path, verify: read(path, verify),
    files=f"{ARCHIVE}, or its unpacked folder {FOLDER}/,",
    present=present,
    folders=("cifar100", "CIFAR100", "."),
    published=(50_000, 10_000, (32, 32, 3), CLASSES),
    sources=(mirror("https://www.cs.toronto.edu/~kriz/", {ARCHIVE: LIMIT}),),
)
