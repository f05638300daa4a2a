"""A data set so small that programs on it compile and run in no time."""

from __future__ import annotations

import numpy as np

from plastax.data import Card, Dataset

SHAPE, CLASSES, TRAIN, TEST = (4, 4, 1), 3, 30, 12


def make_dataset() -> Dataset:
    """Images that differ from one another: the first pixels spell the image's number."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (TRAIN + TEST, *SHAPE)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(TRAIN + TEST)
    labels = rng.permutation(np.arange(TRAIN + TEST) % CLASSES).astype(np.int32)
    card = Card("tiny", True, "", "", "", "", SHAPE, CLASSES, TRAIN, TEST, "")
    return Dataset(values[:TRAIN], labels[:TRAIN], values[TRAIN:], labels[TRAIN:], card)


DATASET = make_dataset()
