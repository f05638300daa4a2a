"""A data set so small that programs on it compile and run in no time: that of `plastax.testing`."""

from plastax.testing.streams import CLASSES, SHAPE, TEST, TRAIN, make_dataset

__all__ = ["CLASSES", "DATASET", "SHAPE", "TEST", "TRAIN"]

DATASET = make_dataset()
