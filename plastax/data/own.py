"""Data of your own: an ``.npz`` file, a folder of images, or arrays and data sets in Python.

uint8 values are levels 0 .. 255, which streams scale to 0 .. 1; all other numbers become float32 and stay as they are.
An example may have any shape; ``[height, width]`` is an image of one channel. Labels may be any integers, or strings.
Sorted, they become 0 .. C - 1, and the card has the list. If no held-out examples are given, every sixth example of a
class is held out, in the order given; of a class of two to five, the last.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plastax import machine
from plastax.data import bounded
from plastax.data.base import Arrays, DataError, Entry, affordable

HELD_OUT = 6
"""Every sixth example of a class is held out."""
TAKEN = (
    "an .npz file with x and y (and x_test and y_test), a folder <class>/*.png, or in Python (x, y), (x, y, x_test, "
    "y_test), a data set of (image, label), or {'train': ..., 'test': ...} of two"
)
SPELLINGS = {"x": ("x", "x_train"), "y": ("y", "y_train"), "x_test": ("x_test",), "y_test": ("y_test",)}
"""Argument of `arrays` -> its names in a file or a dictionary."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "PPM")
"""The formats that Pillow may read, whatever a file is called: some others start programs."""
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of images with 8 bits a channel."""


def entry(given: Any, name: str = "own") -> Entry:
    """What `plastax.data.DATA` would hold of these data. It reads nothing; `plastax.data.load` does.

    Args:
      given: a path, or a Python object, see the module; a function is called for one.
      name: what messages and the card call an object; a file has its own name.

    Raises:
      DataError: there is no such file, or the object cannot be read as data.
    """
    if isinstance(given, Entry):
        return given
    if isinstance(given, str | os.PathLike):
        path = Path(given).expanduser().absolute()
        if not path.exists():
            raise DataError(f"data: {path} does not exist; give {TAKEN}")
        name, source, read = path.stem, str(path), functools.partial(folder if path.is_dir() else npz, path)
    else:
        if not callable(given) and not _is_sequence(given):
            raise _refused(given)
        source, read = f"{type(given).__name__} in Python", functools.partial(_of_object, given)
    return Entry("data of your own", source, "not stated", "", read, name=name)


def arrays(x: Any, y: Any, x_test: Any = None, y_test: Any = None) -> Arrays:
    """Checks examples and labels, and holds some out if none are given.

    Args:
      x: examples ``[N, ...]``, uint8 or other numbers.
      y: integers or strings ``[N]``.
      x_test: held-out examples.
      y_test: their labels.

    Raises:
      DataError: they are no numbers or not finite, do not fit together, or are of fewer than two classes.

    Examples:
      >>> found = arrays(np.arange(24.0).reshape(12, 2), np.arange(12) % 2 * 7)
      >>> found.train_images.shape, found.test_images.shape, found.train_labels, found.labels
      ((10, 2), (2, 2), array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1], dtype=int32), (0, 7))
    """
    if (x_test is None) != (y_test is None):
        raise DataError("data: only one of x_test and y_test is given; give both, or neither")
    images, given = _examples(x, "x"), _labels(y, "y")
    _fit(images, given, "x", "y")
    split = len(images)
    if x_test is not None:
        held_out, more = _examples(x_test, "x_test"), _labels(y_test, "y_test")
        _fit(held_out, more, "x_test", "y_test")
        if (held_out.shape[1:], held_out.dtype) != (images.shape[1:], images.dtype):
            raise DataError(
                f"data: x_test has examples {held_out.dtype} {held_out.shape[1:]}, those of x are {images.dtype} "
                f"{images.shape[1:]}; give both in one form"
            )
        given = np.concatenate([given, more])
    known, labels = np.unique(given, return_inverse=True)
    if len(known) < 2:
        raise DataError(f"data: all labels are {known[0]!s}; give two classes or more")
    labels = labels.astype(np.int32)
    names = () if np.array_equal(known, np.arange(len(known))) else tuple(known.tolist())
    levels = f"{images.dtype} from {images.min():g} to {images.max():g}, "
    levels += "divided by 255" if images.dtype == np.uint8 else "as they are"
    if x_test is not None:
        parts = images, labels[:split], held_out, labels[split:]
        return Arrays(*parts, len(known), names, f"{levels}; held-out examples as given")
    test = _held_out(labels)
    if not test.any():
        raise DataError("data: every class has one example, so none can be held out; give x_test and y_test")
    notes = f"{levels}; of each class, every {HELD_OUT}th example is held out, or the last"
    return Arrays(images[~test], labels[~test], images[test], labels[test], len(known), names, notes)


def npz(path: Path) -> Arrays:
    """`arrays` of an ``.npz`` file: ``x`` and ``y`` (or ``x_train``, ``y_train``), perhaps ``x_test`` and ``y_test``.

    Raises:
      DataError: it is damaged, holds anything but numbers, or more of them than fit into memory.
    """
    limit = machine.free_memory() or 1 << 40
    kind, remedy = "an .npz file of numbers", "write it again by numpy.savez(path, x=..., y=...)"
    with bounded.refusing(path, kind, remedy), path.open("rb") as file, bounded.archive(file) as zipped:
        names = _spelled([name.removesuffix(".npy") for name in zipped.namelist()], str(path))
        found = {}
        for argument, name in names.items():
            with bounded.member(zipped, f"{name}.npy", limit) as (stream, size):
                found[argument] = bounded.npy(stream, size)
    return arrays(**found)


def folder(path: Path) -> Arrays:
    """Images by class, ``<class>/*.png``, or in two such folders ``train`` and ``test`` (or ``val``).

    All images have one size. If all of them are grey they have one channel, otherwise three. Folders whose names are
    numbers are in the order of numbers.

    Raises:
      DataError: there are none, one is damaged, or they differ in size.
    """
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if held_out is None or not (path / "train").is_dir():
        return arrays(*_decoded(_files(path)))
    train = _files(path / "train")
    images, labels = _decoded([*train, *_files(held_out)])
    split = len(train)
    return arrays(images[:split], labels[:split], images[split:], labels[split:])


def _files(path: Path) -> list[Path]:
    files = sorted(file for file in path.glob("[!.]*/[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"data: {path} holds no images <class>/*.png ({', '.join(SUFFIXES)})")
    return files


def _decoded(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    from PIL import Image  # comes with matplotlib

    def opened(file: Path) -> Image.Image:
        return Image.open(file, formats=FORMATS)

    kinds = []
    for file in files:
        with bounded.refusing(file, "an image", "replace or remove it"), opened(file) as image:
            kinds.append((image.size, image.mode))
        if kinds[-1][1] not in (*GREY, *COLOUR):
            raise DataError(f"{file}: an image of mode {kinds[-1][1]}; give 8 bits a channel, grey or colour")
        if kinds[-1][0] != kinds[0][0]:
            (size, _), (first, _) = kinds[-1], kinds[0]
            raise DataError(f"{file}: {size} pixels, where {files[0].name} has {first}; resize it")
    mode, channels = ("L", 1) if all(mode in GREY for _, mode in kinds) else ("RGB", 3)
    (wide, high), _ = kinds[0]
    affordable(len(files), high, wide, channels, working=8 * high * wide)  # Pillow's own copies of an image
    images = np.empty((len(files), high, wide, channels), np.uint8)
    for place, file in zip(images, files):
        with bounded.refusing(file, "an image", "replace or remove it"), opened(file) as image:
            place[:] = np.asarray(image.convert(mode)).reshape(place.shape)
    labels = np.array([file.parent.name for file in files])
    return images, labels.astype(int) if all(map(str.isdecimal, labels.tolist())) else labels


def _of_object(given: Any) -> Arrays:
    if isinstance(given, Mapping) and "train" in given:
        held_out = next((given[name] for name in ("test", "validation") if name in given), None)
        return arrays(*_items(given["train"]), *(() if held_out is None else _items(held_out)))
    if isinstance(given, Mapping):
        return arrays(**{argument: given[name] for argument, name in _spelled(given, "data").items()})
    if isinstance(given, tuple) and len(given) in (2, 4):
        return arrays(*given)
    if _is_sequence(given):
        return arrays(*_items(given))
    if callable(given):
        return _of_object(given())
    raise _refused(given)


def _is_sequence(given: Any) -> bool:
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def _refused(given: Any) -> DataError:
    return DataError(f"data: an object of type {type(given).__name__} is given; give {TAKEN}")


def _spelled(names: Iterable[str], label: str) -> dict[str, str]:
    there = list(names)
    found = {key: next((name for name in spelled if name in there), None) for key, spelled in SPELLINGS.items()}
    if missing := [key for key in ("x", "y") if found[key] is None]:
        raise DataError(f"{label}: has no {' and no '.join(missing)}; it holds {there[:10]!a}")
    return {key: name for key, name in found.items() if name is not None}


def _items(given: Any) -> tuple[np.ndarray, list[Any]]:
    """Images and labels of a data set with ``(image, label)`` or ``{"image": ..., "label": ...}`` as items."""
    images: np.ndarray | None = None
    labels = []
    for i in range(len(given)):
        try:
            image, label = _pair(given[i])
        except Exception as error:
            reason = " ".join(str(error)[:200].split())
            raise DataError(f"data: item {i}: {type(error).__name__} ({reason}); give {TAKEN}") from error
        if images is None:
            affordable(len(given), *image.shape, image.dtype.itemsize)
            images = np.empty((len(given), *image.shape), image.dtype)
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            raise DataError(
                f"data: item {i}: {image.dtype} {image.shape}, item 0 {images.dtype} {images.shape[1:]}; give one form"
            )
        images[i] = image
        labels.append(label)
    if images is None:
        raise DataError("data: the data set is empty")
    return images, labels


def _pair(item: Any) -> tuple[np.ndarray, Any]:
    if isinstance(item, Mapping):
        found = [[key for key in keys if key in item][:1] for keys in (("image", "img", "x"), ("label", "y"))]
        if [] in found:
            raise ValueError(f"it has {', '.join(map(ascii, item))}, and needs 'image' and 'label'")
        item = [item[key] for (key,) in found]
    image, label = item
    if getattr(image, "mode", "L") not in ("L", "RGB"):  # Pillow's: a palette's numbers are no levels
        image = image.convert("RGB")
    return np.asarray(image), np.asarray(label).item()


def _examples(values: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"data: {name} is no array ({error}); give numbers [examples, ...]") from error
    if found.dtype.kind not in "buif" or found.ndim < 2 or not found.size:
        raise DataError(f"data: {name} is {found.dtype} {found.shape}; give numbers [examples, ...]")
    if found.dtype != np.uint8:
        affordable(*found.shape, np.dtype(np.float32).itemsize)
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise DataError(f"data: {name} has NaN or infinite values; leave these examples out, or fill them in")
    if found.ndim == 4 and found.shape[1] in (1, 3) and found.shape[3] > 4:
        raise DataError(
            f"data: {name} has images {found.shape[1:]} with their channels first; give [height, width, channels]: "
            f"{name}.transpose(0, 2, 3, 1), or a torchvision data set without ToTensor"
        )
    return found[..., None] if found.ndim == 3 else found


def _labels(values: Any, name: str) -> np.ndarray:
    found = np.asarray(values)
    found = found.reshape(-1) if found.ndim == 2 and found.shape[1] == 1 else found
    if found.dtype.kind not in "biuU" or found.ndim != 1:
        how = f"{name}.argmax(1)" if found.ndim == 2 else f"{name}.astype(int)"
        raise DataError(
            f"data: {name} is {found.dtype} {found.shape}; give classes as integers [examples], {how} perhaps"
        )
    return found if found.dtype.kind == "U" else found.astype(np.int64)


def _fit(images: np.ndarray, labels: np.ndarray, *names: str) -> None:
    if len(images) != len(labels):
        raise DataError(f"data: {len(images)} examples {names[0]}, {len(labels)} labels {names[1]}; give one for each")


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Which examples are held out, bool ``[N]``; none of a class of one."""
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    place = np.empty_like(labels)  # of an example in its class
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = counts[labels]
    return (place % HELD_OUT == np.minimum(size, HELD_OUT) - 1) & (size > 1)
