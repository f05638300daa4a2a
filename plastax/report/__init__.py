"""What a study found: statistics, tables and figures. Reads records, never imports a model."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["print_table", "read", "write"]


def read(run_dir: str | os.PathLike[str]) -> xr.Dataset:
    """`plastax.load` with the attribute ``notice``: what must be said with every number, "" if there is nothing.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    from plastax.record import load, read_json
    from plastax.report.score import notice

    data = load(run_dir)
    config = read_json(pathlib.Path(run_dir) / "config.json")
    return data.assign_attrs(notice=notice(config.get("settings", {})))


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
    from plastax.report import figures, table

    directory = pathlib.Path(run_dir)
    data = read(directory)
    table.summary(data).to_csv(directory / "summary.csv")
    return figures.write(data, directory / "figures")


def print_table(run_dir: str | os.PathLike[str], console: Console | None = None) -> None:
    """Prints the summary of a run as a table, or as several with some of the methods each if the terminal is narrow.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.
      console: where to; the terminal by default.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    import rich.console

    from plastax.report import table

    console = console or rich.console.Console()
    for one in table.render(read(run_dir), console.width):
        console.print(one)
