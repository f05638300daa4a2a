"""Supervised streams of tasks, one a file; `README.md` says how to add one.

What a seed sees depends on its key alone, never on the method: methods are compared on the same tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plastax.streams.base import ImageStream
from plastax.streams.continual_imagenet import ContinualImageNet
from plastax.streams.grammar import Grammar
from plastax.streams.incremental_cifar import IncrementalCIFAR
from plastax.streams.label_permuted import LabelPermuted
from plastax.streams.permuted import Permuted
from plastax.streams.random_label import RandomLabel
from plastax.streams.recall import Recall
from plastax.streams.rotating import Rotating
from plastax.streams.slowly_changing_regression import SlowlyChangingRegression
from plastax.streams.text import Text
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

TOKENS: Mapping[str, Grammar | Recall | Text] = MappingProxyType(
    {"grammar": Grammar(), "recall": Recall(), "text": Text()}
)
"""Likewise of streams of tokens, which ``experiments/token_drift.py`` selects by ``--data``. ``build()`` makes them,
and ``build(plastax.data.text.read(path))`` the text."""

__all__ = [
    "STREAMS",
    "TOKENS",
    "ContinualImageNet",
    "Grammar",
    "ImageStream",
    "IncrementalCIFAR",
    "LabelPermuted",
    "Permuted",
    "RandomLabel",
    "Recall",
    "Rotating",
    "SlowlyChangingRegression",
    "Text",
    "WarmStart",
]
