"""plastax: find out why neural networks stop learning, and stop it.

A study from Python, and what it found::

    study = plastax.Study(stream="random_label", methods=["backprop", "l2_er"], seeds=4)
    run = study.run()
    run.table()

`open` opens a run, `load` reads runs as one labelled data set, `table` as data frames.
The parts are modules: `curvature`, `methods`, `probes`, `models`, `streams`, `rl`, `data`, `report`, `testing`. Each
is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plastax.version import __version__

if TYPE_CHECKING:
    from plastax import curvature, data, methods, models, probes, report, rl, streams, testing
    from plastax.errors import ConfigError
    from plastax.inspecting import inspect
    from plastax.records.loading import load, table
    from plastax.study.api import Study
    from plastax.study.run import Run, open

_HOMES = {
    "ConfigError": "plastax.errors",
    "Run": "plastax.study.run",
    "Study": "plastax.study.api",
    "inspect": "plastax.inspecting",
    "load": "plastax.records.loading",
    "open": "plastax.study.run",
    "table": "plastax.records.loading",
}
"""Public name -> the module that defines it."""

__all__ = [
    "ConfigError", "Run", "Study", "__version__", "curvature", "data", "inspect", "load", "methods", "models", "open",
    "probes", "report", "rl", "streams", "table", "testing",
]  # fmt: skip


if not TYPE_CHECKING:  # A type checker knows all names from above, and refuses others.

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in __all__:
            return importlib.import_module(f"plastax.{name}")
        raise AttributeError(f"module 'plastax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
