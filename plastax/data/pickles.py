"""Data sets that are published as Python pickles, read without running what a pickle may contain.

A pickle is a program: it may name any function and call it. The published files need only what rebuilds NumPy arrays,
so nothing else can be named (Python library reference, pickle, "Restricting Globals").
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from plastax.data.base import DataError


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into pickles that Python 2 can read."""
    if encoding not in ("latin1", "latin-1"):
        message = f"encoding {encoding!r} is not allowed"
        raise pickle.UnpicklingError(message)
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            message = f"it asks for {module}.{name}, which is not data"
            raise pickle.UnpicklingError(message)
        return ALLOWED[module, name]


def load(file: BinaryIO, label: str | Path) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3 that holds only arrays, numbers, strings and containers of them.

    Args:
      file: the pickle.
      label: what messages call it.

    Returns:
      The dictionary with its keys as strings; strings of Python 2 stay bytes.

    Raises:
      DataError: damaged, cut short, not a dictionary, or it asks for anything but data.
    """
    try:
        content = _ArraysOnly(file, encoding="bytes").load()
    # A damaged pickle may raise nearly anything (its documentation says so).
    except Exception as error:
        message = f"{label}: not a pickle of plain arrays ({error or type(error).__name__}); delete it and get it again"
        raise DataError(message) from error
    if not isinstance(content, dict):
        message = f"{label}: holds a {type(content).__name__}, expected a dictionary; replace it by the right file"
        raise DataError(message)
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def images_and_labels(batch: dict[str, Any], label: str | Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one batch in the layout that CIFAR and the downsampled ImageNet share.

    Args:
      batch: ``data``, uint8 ``[N, 3072]``: rows of a red, a green and a blue plane of 32 x 32, and labels.
      label: what messages call it.
      key: the name of the labels.

    Returns:
      uint8 ``[N, 32, 32, 3]`` (a view) and int32 ``[N]``.

    Raises:
      DataError: one of them is missing or of another shape or type.
    """
    missing = [name for name in ("data", key) if name not in batch]
    if missing:
        message = f"{label}: has no {' and no '.join(missing)} (only {', '.join(batch)}); replace it by the right file"
        raise DataError(message)
    data, labels = batch["data"], np.asarray(batch[key])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        message = f"{label}: images are {found}, expected uint8 [N, 3072]; replace it by the right file"
        raise DataError(message)
    if labels.shape != (len(data),) or not len(data) or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {labels.shape}"
        message = f"{label}: labels are {found}, expected {len(data)} integers; replace it by the right file"
        raise DataError(message)
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int32)
