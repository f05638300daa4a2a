"""Supervised streams of tasks, one a file; `README.md` says how to add one.

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
"""Stream name -> its config, at its defaults. ``build(dataset)`` makes the `plastax.types.Stream`, ``build()`` where
the config does not say ``needs_data``."""

__all__ = [
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
