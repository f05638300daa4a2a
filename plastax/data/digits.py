"""The 8 x 8 digits that scikit-learn ships: real images without a download."""

from __future__ import annotations

import numpy as np

from plastax.data.base import Arrays, Entry

HELD_OUT = 6
"""Every sixth image is held out. Images are sorted by writer, so some of each writer's are among them."""


def read() -> Arrays:
    """The digits: 1,498 training and 299 held-out images ``[8, 8, 1]``, levels 0 .. 16 rescaled to 0 .. 255."""
    # Imported here because it takes a second, and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    test = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    return Arrays(images[~test], labels[~test], images[test], labels[test], 10)


DIGITS = Entry(
    description="1,498 + 299 grey images of handwritten digits, 8 x 8, 10 classes; comes with scikit-learn",
    source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (test set), UCI repository, 1998",
    licence="CC BY 4.0",
    notes="every sixth image is held out; levels 0..16 rescaled to 0..255",
    read=read,
)
