"""What a study found: statistics, tables and figures. Reads records, never imports a model."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from plastax import drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import xarray as xr
    from rich.console import Console

    from plastax.report.compare import Statistic

__all__ = ["print_comparison", "print_table", "read", "write", "write_side_by_side"]


def read(run_dir: str | os.PathLike[str]) -> xr.Dataset:
    """`plastax.load` with the attribute ``notice``: what must be said with every number, "" if there is nothing.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    from plastax.labelled import read_run
    from plastax.record import read_config
    from plastax.report.score import notice

    data = read_run(run_dir)
    config = read_config(run_dir)
    return data.assign_attrs(notice=notice(config.get("settings", {})))


def write(run_dir: str | os.PathLike[str], page: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes a run's report: a page, and beside it ``summary.csv`` and ``figures/`` (PNG, PDF, the numbers as CSV).

    Of a sweep also ``selection.csv``: the best arms, see `selection.select`.

    Works on a run that was killed or still goes on; a figure without data is left out.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.
      page: the page; by default ``report.html`` in the run directory.

    Returns:
      The directory of the figures.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    # Here and not on top: `plastax.tracking` uses the statistics and must not wait for matplotlib.
    drawing.import_matplotlib()
    from plastax.report import figures, html, selection, table

    page = pathlib.Path(page or pathlib.Path(run_dir) / "report.html")
    data = read(run_dir)
    page.parent.mkdir(parents=True, exist_ok=True)
    table.summary(data).to_csv(page.with_name("summary.csv"))
    if (best := selection.best(data)) is not None:
        best.to_csv(page.with_name("selection.csv"), index=False)
    html.write([run_dir], page)
    return figures.write(data, page.with_name("figures"))


def write_side_by_side(run_dirs: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes one HTML report of several runs; see `plastax.report.html.write`."""
    drawing.import_matplotlib()
    from plastax.report import html

    return html.write(run_dirs, path)


def _print_best(data: xr.Dataset, console: Console, statistic: Statistic = "mean", quantity: str = "") -> None:
    """Of a sweep the best arms, see `selection.select`."""
    from plastax.report import selection

    if (best := selection.best(data, statistic, quantity)) is not None:
        title = " ".join(str(data.attrs[name]) for name in ("experiment", "run_id") if name in data.attrs)
        console.print(selection.render(best, title))


def print_table(run_dir: str | os.PathLike[str], console: Console | None = None) -> None:
    """Prints the summary of a run as a table, or as several with some of the methods each if the terminal is narrow.

    Args:
      run_dir: ``runs/<experiment>/<run id>``.
      console: where to; the terminal by default.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used; the message names the file.
    """
    from plastax import output
    from plastax.report import table

    console = console or output.Console()
    data = read(run_dir)
    for one in table.render(data, console.width):
        console.print(one)
    _print_best(data, console)


def print_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    statistic: Statistic = "mean",
    console: Console | None = None,
    **options: str,
) -> pd.DataFrame:
    """Prints what `compare.compare_windows` finds in some runs, a table for every window of tasks; returns it.

    Args:
      run_dirs: run directories.
      statistic: ``mean`` or ``iqm``.
      console: where to; the terminal by default.
      **options: ``quantity`` and ``reference``, see `compare.compare`.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      plastax.record.RecordError: a record cannot be used, or no task is finished.
      plastax.errors.ConfigError: something cannot be compared, or is unknown.
    """
    from plastax import output
    from plastax.report import compare

    studies = [read(run) for run in run_dirs]
    frame = compare.compare_windows(studies, statistic, **options)
    console = console or output.Console()
    captions = {
        letter: " ".join(str(data.attrs[name]) for name in ("experiment", "run_id", "notice") if data.attrs.get(name))
        for letter, data in zip(compare.letters(len(studies)), studies)
    }
    for (quantity, window), part in frame.groupby(["quantity", "window"], sort=False):
        title = f"{quantity}, {statistic} over seeds and tasks, {window}"
        console.print(compare.render(part, title, captions))
    for data in studies:
        _print_best(data, console, statistic, options.get("quantity", ""))
    return frame
