"""ImageNet at 32 x 32 pixels, from either of two forms.

- A folder ``classes/`` with a file ``<class>.npy`` for each class, uint8 ``[700, 3, 32, 32]``, as for Continual
  ImageNet (Dohare et al., Loss of plasticity in deep continual learning, Nature 632, 2024). The first 600 are training
  images, the last 100 are held out.
- The training batches of the official downsampled ImageNet (Chrabaszcz, Loshchilov and Hutter, arXiv:1707.08819),
  ``train_data_batch_1`` .. ``10`` as npz files or pickles, or the zip archive that holds them. Each has ``data``
  ``[N, 3072]`` and ``labels`` 1 .. 1000. Of each class they give the first 700 images, in the order of the files: 600
  to train on and 100 held out. The official validation images are not used.

Images are sorted by class, so that those of a class are one slice.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from plastax.data import bounded, pickles
from plastax.data.base import MEANT, Arrays, DataError, Entry, affordable, positive

CLASSES = 1000
BATCHES = range(1, 11)
SHAPE = (32, 32, 3)
CLASS = re.compile(r"(0|[1-9][0-9]*)\.npy")
BATCH = re.compile(r"(?:.*/)?train_data_batch_([1-9][0-9]?)(\.npz)?")
ZIPS = ("Imagenet32_train_npz.zip", "Imagenet32_train.zip")
LIMIT = 1 << 29
"""Most bytes of a file; the largest, a batch, holds 128,117 x 3,072 pixels."""
NAMES = ("data", "labels")
Opener = Callable[[], contextlib.AbstractContextManager[BinaryIO]]


def folders(path: Path) -> list[Path]:
    """``path``, and the folders in it that the two archives unpack to."""
    return [path, *(path / Path(name).stem for name in ZIPS)]


def class_files(path: Path) -> dict[int, Path]:
    """Class number -> its file, in ``path`` or its folder ``classes``; in order."""
    for folder in (path / "classes", path):
        files = ((CLASS.fullmatch(file.name), file) for file in folder.glob("*.npy") if file.is_file())
        if found := {int(match[1]): file for match, file in files if match}:
            return dict(sorted(found.items()))
    return {}


def batches(path: Path) -> dict[int, tuple[Path, Opener]]:
    """Number -> training batch in ``path``, a folder or a zip archive: its name, and what opens it; in order."""
    archive = path if path.is_file() else next((path / name for name in ZIPS if (path / name).is_file()), None)
    found: dict[int, tuple[Path, Opener]] = {}
    for folder in folders(path):
        for file in sorted(folder.glob("train_data_batch_*")):
            if file.is_file() and (match := BATCH.fullmatch(file.name)):
                found.setdefault(int(match[1]), (file, functools.partial(_opened, file)))
    if archive is not None and not found:
        with bounded.refusing(archive, "a zip archive"), archive.open("rb") as raw, bounded.archive(raw) as zipped:
            for name in zipped.namelist():
                if match := BATCH.fullmatch(name):
                    found[int(match[1])] = (archive / name, functools.partial(_member, archive, name))
    return dict(sorted(found.items()))


def _opened(file: Path) -> BinaryIO:
    return file.open("rb")


@contextlib.contextmanager
def _member(archive: Path, name: str) -> Iterator[BinaryIO]:
    """One member, in memory: reading an npz file seeks, which is slow in a compressed member."""
    with (
        archive.open("rb") as file,
        bounded.archive(file) as zipped,
        bounded.member(zipped, name, LIMIT) as (stream, size),
    ):
        yield io.BytesIO(bounded.exactly(stream, size))


def present(path: Path) -> bool:
    """Whether ``path`` holds one of the two forms."""
    zips = path.is_file() or any((path / name).is_file() for name in ZIPS)
    return zips or bool(class_files(path)) or any(any(folder.glob("train_data_batch_*")) for folder in folders(path))


def read(
    path: Path,
    verify: bool = True,
    *,
    classes: int | None = None,
    train_per_class: int = 600,
    test_per_class: int = 100,
) -> Arrays:
    """Reads ImageNet-32, sorted by class.

    Args:
      path: a folder with one of the two forms, or the official zip archive.
      verify: whether all ten batches, or all class files from 0 to the last, must be there: without one, other images
        would be the first of a class. No checksums of these files are published.
      classes: the number of classes, the first ones; all by default (2.2 GB).
      train_per_class: training images of a class, the first ones.
      test_per_class: held-out images of a class: the last ones of a class file, or those after the training images.

    Returns:
      ``[classes * train_per_class, 32, 32, 3]`` training and ``[classes * test_per_class, 32, 32, 3]`` held-out images.

    Raises:
      ConfigError: a count is below one.
      DataError: a file is missing, damaged or of another format, or a class has too few images.
    """
    positive(
        classes=CLASSES if classes is None else classes, train_per_class=train_per_class, test_per_class=test_per_class
    )
    if files := class_files(path):
        if verify:
            _whole(path, "class file", files, range(min(max(files) + 1, classes or CLASSES)), ".npy")
        return _from_class_files(list(files.values()), classes, train_per_class, test_per_class)
    found = batches(path)
    if verify and found:
        _whole(path, "training batch", found, BATCHES, "")
    return _from_batches(path, list(found.values()), classes, train_per_class, test_per_class)


def _whole(path: Path, kind: str, found: Container[int], expected: Iterable[int], suffix: str) -> None:
    """Refuses a gap: it would silently change the images."""
    if missing := [number for number in expected if number not in found]:
        few = ", ".join(f"{number}{suffix}" for number in missing[:10]) + ", ..." * (len(missing) > 10)
        raise DataError(f"{path}: {kind} {few} missing; add it; {MEANT}")


def _from_class_files(files: list[Path], classes: int | None, train: int, test: int) -> Arrays:
    if classes is not None and classes > len(files):
        raise DataError(f"{files[0].parent}: {len(files)} class files, fewer than classes={classes}; give more of them")
    files = files[:classes]
    affordable(len(files), train + test, *SHAPE)
    train_images = np.empty((len(files), train, *SHAPE), np.uint8)
    test_images = np.empty((len(files), test, *SHAPE), np.uint8)
    for k, file in enumerate(files):
        images = _class_images(file)
        if len(images) < train + test:
            raise DataError(
                f"{file}: {len(images)} images, expected at least {train} + {test}; replace it by the whole file"
            )
        train_images[k], test_images[k] = images[:train], images[-test:]
    return _sorted_by_class(train_images, test_images)


def _class_images(file: Path) -> np.ndarray:
    """uint8 ``[N, 32, 32, 3]`` of one class file; also of other types if their numbers are whole, 0 .. 255."""
    with bounded.refusing(file, "an .npy file of numbers"), file.open("rb") as stream:
        images = bounded.npy(stream, min(file.stat().st_size, LIMIT))
    if images.ndim != 4 or images.shape[1:] != (3, 32, 32) or images.dtype.kind not in "uif":
        raise DataError(
            f"{file}: {images.dtype} {images.shape}, expected uint8 [N, 3, 32, 32]; replace it by the right file"
        )
    if images.dtype != np.uint8:
        # NaN fails the comparison too.
        if not np.all((images >= 0) & (images <= 255) & (images == np.round(images))):
            raise DataError(f"{file}: {images.dtype} that are no whole numbers from 0 to 255; store levels as uint8")
        images = images.astype(np.uint8)
    return images.transpose(0, 2, 3, 1)


def _from_batches(path: Path, found: list[tuple[Path, Opener]], classes: int | None, train: int, test: int) -> Arrays:
    if not found:
        raise DataError(f"{path}: holds neither classes/<class>.npy nor train_data_batch_<number>")
    limit = CLASSES if classes is None else classes
    affordable(limit, train + test, *SHAPE)
    # Unwritten pages take no memory, so the full size is no waste if there are fewer classes.
    train_images = np.empty((limit, train, *SHAPE), np.uint8)
    test_images = np.empty((limit, test, *SHAPE), np.uint8)
    counts = np.zeros(CLASSES, np.int64)
    for label, opener in found:
        images, labels = pickles.images_and_labels(_batch(label, opener), label, "labels", 1, CLASSES)
        for k in np.unique(labels):
            new = np.flatnonzero(labels == k)
            place = counts[k] + np.arange(len(new))
            counts[k] += len(new)
            if k < limit:
                train_images[k, place[place < train]] = images[new[place < train]]
                held_out = (place >= train) & (place < train + test)
                test_images[k, place[held_out] - train] = images[new[held_out]]
    number = int(np.flatnonzero(counts)[-1]) + 1 if classes is None else classes
    few = np.flatnonzero(counts[:number] < train + test)
    if len(few):
        raise DataError(
            f"{path}: class {few[0] + 1} has {counts[few[0]]} images in {len(found)} training batches, and needs "
            f"{train} + {test}; add the other batches"
        )
    return _sorted_by_class(train_images[:number], test_images[:number])


def _batch(label: Path, opener: Opener) -> dict[str, np.ndarray]:
    """Images and labels of a pickle or an npz file."""
    with bounded.refusing(label, "a batch of images"), opener() as file:
        if label.suffix != ".npz":
            return pickles.load(bounded.whole(file, LIMIT), label, NAMES)
        with bounded.archive(file) as zipped:
            pickles.complete([name.removesuffix(".npy") for name in zipped.namelist()], label, NAMES)
            return {name: _array(zipped, f"{name}.npy") for name in NAMES}


def _array(zipped: zipfile.ZipFile, name: str) -> np.ndarray:
    with bounded.member(zipped, name, LIMIT) as (stream, size):
        return bounded.npy(stream, size)


def _sorted_by_class(train_images: np.ndarray, test_images: np.ndarray) -> Arrays:
    """`Arrays` of images ``[classes, images, 32, 32, 3]``."""

    def split(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.reshape(-1, *SHAPE), np.repeat(np.arange(len(images), dtype=np.int32), images.shape[1])

    return Arrays(*split(train_images), *split(test_images), len(train_images))


IMAGENET32 = Entry(
    description="ImageNet at 32 x 32, 600 + 100 colour images a class, up to 1,000 classes",
    source="P. Chrabaszcz, I. Loshchilov, F. Hutter: A downsampled variant of ImageNet, arXiv:1707.08819",
    licence="ImageNet terms of access: non-commercial research and education",
    notes="sorted by class; all from ImageNet's training set; no checksums of these files are published",
    read=read,
    files=f"{ZIPS[0]} or {ZIPS[1]} (or the ten train_data_batch_<number> in it), or classes/<class>.npy",
    present=present,
    folders=("imagenet32", "Imagenet32", "imagenet"),
    remedy="it needs a (free) account: image-net.org, Download, Downsampled image data, 32x32, training set",
)
