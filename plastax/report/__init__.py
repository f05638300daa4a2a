"""What a study found: statistics, tables and figures. Reads records, never imports a model."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_table", "write"]


def write(run_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``summary.csv`` and ``figures/`` (PNG, PDF and the numbers behind each as CSV) into the run directory.

    Works on a run that was killed or still goes on; a figure without data is left out.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.

    Returns:
      The directory of the figures.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    # Here and not on top: `plastax.tracking` uses the statistics and must not wait for matplotlib.
    from plastax.record import load
    from plastax.report import figures, table

    directory = pathlib.Path(run_dir)
    data = load(directory)
    table.summary(data).to_csv(directory / "summary.csv")
    return figures.write(data, directory / "figures")


def print_table(run_dir: str | os.PathLike[str], console: Console | None = None) -> None:
    """Prints the summary of a run as a table.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.
      console: where to; the terminal by default.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    import rich.console

    from plastax.record import load
    from plastax.report import table

    data = load(run_dir)
    (console or rich.console.Console()).print(table.render(table.summary(data), data.attrs))
