"""CIFAR-100 from its Python archive, ``cifar-100-python.tar.gz``, or the folder that it unpacks to."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from plastax.data import pickles
from plastax.data.base import Arrays, DataError, Entry, verify
from plastax.data.sources import mirror

ARCHIVE = "cifar-100-python.tar.gz"
FOLDER = "cifar-100-python"
CLASSES = 100
CHUNK = 1 << 20
DIGESTS = {"train": "md5:16019d7e3df5f24257cddd939b257f8d", "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"}
"""Of the two members that are read: they hold for the archive and for what was unpacked from it."""


def archive(path: Path) -> Path | None:
    """The archive that ``path`` is, or holds."""
    return next((p for p in (path, path / ARCHIVE) if p.is_file()), None)


def unpacked(path: Path) -> Path | None:
    """The unpacked folder that ``path`` is, or holds."""
    return next((p for p in (path, path / FOLDER) if any((p / name).is_file() for name in DIGESTS)), None)


def present(path: Path) -> bool:
    """Whether ``path`` is or holds the archive or the unpacked folder."""
    return (archive(path) or unpacked(path)) is not None


def members(path: Path) -> dict[str, tuple[Path, bytes]]:
    """What the files ``train`` and ``test`` contain, and what messages call them.

    Raises:
      DataError: one is missing, or the archive is damaged.
    """
    folder, found = unpacked(path), archive(path)
    try:
        if folder is not None:
            return {name: (folder / name, (folder / name).read_bytes()) for name in DIGESTS}
        if found is None:
            message = f"{path}: holds neither {ARCHIVE} nor {FOLDER}/"
            raise DataError(message)
        with tarfile.open(found, "r:gz") as tar:
            contents = {}
            for name in DIGESTS:
                file = tar.extractfile(f"{FOLDER}/{name}")
                if file is None:
                    message = f"{found}: {FOLDER}/{name} is not a file; replace the archive by {ARCHIVE}"
                    raise DataError(message)
                contents[name] = (found / FOLDER / name, file.read())
        # tarfile stops behind the last member; only at its end does gzip compare its checksum.
        with gzip.open(found) as whole:
            while whole.read(CHUNK):
                pass
        return contents
    except KeyError as error:
        message = f"{found}: no CIFAR-100 archive ({error.args[0]}); replace it by {ARCHIVE}"
        raise DataError(message) from error
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        message = f"{found or path}: damaged, cut short or not readable ({error}); delete it and get it again"
        raise DataError(message) from error


def read(path: Path, verify_: bool) -> Arrays:
    """Reads CIFAR-100 with its fine labels.

    Args:
      path: the archive, the unpacked folder, or a folder that holds one of them.
      verify_: whether they must be the published files.

    Raises:
      DataError: something is missing, damaged, of another format, or not the published file.
    """
    contents = members(path)

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        label, content = contents[name]
        if verify_:
            verify(label, content, DIGESTS[name])
        images, labels = pickles.images_and_labels(pickles.load(io.BytesIO(content), label), label, "fine_labels")
        if labels.min() < 0 or labels.max() >= CLASSES:
            message = f"{label}: labels from {labels.min()} to {labels.max()}, expected 0 to {CLASSES - 1}"
            raise DataError(message)
        return np.ascontiguousarray(images), labels

    return Arrays(*split("train"), *split("test"), CLASSES)


CIFAR100 = Entry(
    description="50,000 + 10,000 colour images of objects, 32 x 32, 100 classes",
    source="A. Krizhevsky: Learning multiple layers of features from tiny images, 2009, www.cs.toronto.edu/~kriz",
    licence="none published by its author, who asks to cite the report",
    notes="the published split; fine labels",
    read=lambda path, verify: read(path, verify),
    files=f"{ARCHIVE}, or the folder {FOLDER}/ that it unpacks to,",
    present=present,
    folders=("cifar100", "CIFAR100", "."),
    published=(50_000, 10_000, (32, 32, 3), CLASSES),
    sources=(mirror("https://www.cs.toronto.edu/~kriz/", (ARCHIVE,)),),
)
