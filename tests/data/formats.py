"""Writes files byte by byte in the formats that data sets are published in."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Pickles as Python 2 with NumPy 1 did, which wrote the CIFAR archives: byte strings, NumPy's old module names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, obj: bytes) -> None:
        if self.proto == 0:
            self.write(b"S" + repr(obj)[1:].encode() + b"\n")
            self.memoize(obj)
            return
        short = len(obj) < 256
        self.write((b"U" + bytes([len(obj)]) if short else b"T" + struct.pack("<i", len(obj))) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes

    def save_str(self, obj: str) -> None:
        self.save_bytes(obj.encode("ascii"))

    dispatch[str] = save_str

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def python2_pickle(value: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=protocol).dump(value)
    return file.getvalue()


def planes(images: np.ndarray) -> np.ndarray:
    """``[N, 32, 32, 3]`` as the rows that CIFAR and the downsampled ImageNet store: red, green and blue planes."""
    return np.concatenate([images[..., c].reshape(len(images), -1) for c in range(3)], 1)


def cifar_members(train: int = 30, test: int = 10, seed: int = 0) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files ``train``, ``test`` and ``meta``, and the images and labels in them by split."""
    rng = np.random.default_rng(seed)
    members, truth = {}, {}
    for split, number in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (number, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 100, number).tolist()
        truth[split] = images, labels
        members[split] = python2_pickle(
            {
                b"data": planes(images),
                b"batch_label": b"training batch 1 of 1",
                b"fine_labels": labels,
                b"coarse_labels": [label // 5 for label in labels],
                b"filenames": [b"bos_taurus_s_%06d.png" % k for k in range(number)],
            }
        )
    members["meta"] = python2_pickle({b"fine_label_names": [b"apple"] * 100})
    return members, truth


def cifar_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def imagenet_batches(images: np.ndarray, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """``[classes, N, 32, 32, 3]`` as the official batches: classes mixed, labels from 1, each class in its order."""
    classes, per_class = images.shape[:2]
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))
    place = np.empty_like(labels)
    for k in range(classes):
        place[labels == k] = np.arange(per_class)
    rows = planes(images[labels, place])
    parts = zip(np.array_split(rows, number), np.array_split(labels, number))
    return [{"data": part, "labels": (k + 1).tolist(), "mean": rows.mean(0)} for part, k in parts]
