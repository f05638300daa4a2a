"""Supervised streams of tasks, one a file.

`STREAMS` names them: each entry is the frozen configuration whose ``build`` makes the `plastax.types.Stream`, of a data
set (``build(plastax.data.load("digits"))``) where it ``needs_data``.

What a seed sees depends on its key alone, never on the method: methods are compared on the same tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plastax.streams.base import ImageStream
from plastax.streams.continual_imagenet import ContinualImageNet
from plastax.streams.incremental_cifar import IncrementalCIFAR
from plastax.streams.label_permuted import LabelPermuted
from plastax.streams.permuted import Permuted
from plastax.streams.random_label import RandomLabel
from plastax.streams.rotating import Rotating
from plastax.streams.slowly_changing_regression import SlowlyChangingRegression
from plastax.streams.warm_start import WarmStart

STREAMS: Mapping[str, ImageStream | SlowlyChangingRegression] = MappingProxyType(
    {
        "permuted": Permuted(),
        "random_label": RandomLabel(),
        "label_permuted": LabelPermuted(),
        "slowly_changing_regression": SlowlyChangingRegression(),
        "continual_imagenet": ContinualImageNet(),
        "incremental_cifar": IncrementalCIFAR(),
        "rotating": Rotating(),
        "warm_start": WarmStart(),
    }
)
"""Stream name -> its config, at its defaults; `dataclasses.replace` changes a setting, ``build`` makes the stream."""

DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "permuted": "images whose pixels are in a new random order every task (permuted MNIST)",
        "random_label": "a fixed set of images whose labels are drawn anew every task",
        "label_permuted": "images whose classes swap their labels every task",
        "slowly_changing_regression": "regression on bits of which most flip rarely; no data set",
        "continual_imagenet": "two classes of images to be told apart, two others every task",
        "incremental_cifar": "more classes of images with every task, by masks in arrays of one size",
        "rotating": "images that turn by some degrees from one task to the next",
        "warm_start": "a part of the images in the first task, all of them from the second on",
    }
)
"""Stream name -> one line about it."""

__all__ = [
    "DESCRIPTIONS",
    "STREAMS",
    "ContinualImageNet",
    "ImageStream",
    "IncrementalCIFAR",
    "LabelPermuted",
    "Permuted",
    "RandomLabel",
    "Rotating",
    "SlowlyChangingRegression",
    "WarmStart",
]
