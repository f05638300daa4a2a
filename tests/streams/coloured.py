"""A data set whose images say who they are."""

from __future__ import annotations

import numpy as np

from plastax.data import Card, Dataset
from plastax.streams import IncrementalCIFAR

# These tests compile much and compute little.
QUICK = {"xla_backend_optimization_level": 0}
SHAPE, CLASSES, TRAIN, TEST, KEPT = (4, 4, 1), 20, 4, 2, 1


def make_dataset() -> Dataset:
    """Images that say who they are: their first pixel is their number among all."""
    rng = np.random.default_rng(0)
    number = CLASSES * (TRAIN + TEST)
    values = rng.integers(0, 256, (number, *SHAPE)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(number)
    labels = rng.permutation(np.arange(number) % CLASSES).astype(np.int32)
    # The same number of each class on both sides, in no order.
    place = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    train, test = place < TRAIN, place >= TRAIN
    card = Card("colours", True, "", "", "", "", SHAPE, CLASSES, int(train.sum()), int(test.sum()), "")
    return Dataset(values[train], labels[train], values[test], labels[test], card)


COLOURS = make_dataset()
LABELS = {
    int(image[0, 0, 0]): int(label)
    for images, labels in (COLOURS[:2], COLOURS[2:4])
    for image, label in zip(images, labels)
}
INCREMENTAL = IncrementalCIFAR(new_classes=1, validation_per_class=KEPT)
