"""matplotlib, in notebooks and without a display."""

from __future__ import annotations

import contextlib
import os


def import_matplotlib() -> None:
    """Imports matplotlib even if MPLBACKEND names a backend that is not installed.

    A notebook's kernel exports its own backend to every program that a cell starts. An installed backend is used as
    always. Call this before anything else imports matplotlib.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
