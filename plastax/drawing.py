"""matplotlib, which plastax draws files with, in whatever surroundings."""

from __future__ import annotations

import contextlib
import os


def import_matplotlib() -> None:
    """Imports matplotlib even where MPLBACKEND names a backend that is not installed.

    A notebook's kernel exports the name of its own to every program that is started from a cell. Where the backend is
    there, it is matplotlib's, as always. For before the first import, also of a package that imports matplotlib.
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
