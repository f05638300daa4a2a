"""Statistics, tables and figures of a study, from its records alone.

Every function that takes a run raises the errors of `load_run`.
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from plastax import drawing
from plastax.report.reading import LoadedRun, RunLike, load_run
from plastax.report.score import score_of
from plastax.report.wording import axis_of, worded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import xarray as xr
    from rich.console import Console

    from plastax.report.compare import Statistic
    from plastax.report.figures import Drawing

__all__ = [
    "LoadedRun", "RunLike", "draw", "load_run", "print_comparison", "print_prediction", "print_table", "read", "write",
    "write_and_print",
]  # fmt: skip


def read(run: RunLike) -> xr.Dataset:
    """The data set of a run, see `LoadedRun` and `load_run`."""
    return load_run(run).data


def draw(run: RunLike, *names: str) -> dict[str, Drawing]:
    """The figures of a run's report by name, drawn for a notebook or program; writes nothing.

    Each is a `figures.Drawing`: ``figure``, which is matplotlib's, and ``frame``, its numbers. The style applies to
    these figures alone.

    Args:
      run: see `RunLike`.
      *names: such as ``overview``, ``ranks`` or ``spectra``, see `figures.FIGURES`; by default every one with data.

    Raises:
      plastax.errors.ConfigError: a name is unknown, or the run has no data for its figure.
    """
    drawing.import_matplotlib()
    from plastax.report import figures

    return figures.drawings(read(run), names)


def write_and_print(
    runs: Sequence[RunLike], page: str | os.PathLike[str] | None = None, console: Console | None = None
) -> pathlib.Path:
    """Writes the report of a run and prints its table; several runs share one page and one table.

    Args:
      runs: one or more.
      page: path of the page; by default ``report.html`` in the directory of a run, or ``comparison.html``.
      console: the terminal by default.

    Returns:
      The page's path.

    Raises:
      plastax.errors.ConfigError: the runs cannot be compared.
    """
    drawing.import_matplotlib()
    from plastax.report import html

    studies = [load_run(run) for run in runs]
    if len(studies) == 1:
        made = write(studies[0], page)
        print_table(studies[0], console)
    else:
        made = html.write(studies, page or "comparison.html")
        print_comparison(studies, console=console)
    return made


def write(run: RunLike, page: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes a run's report: a page, and beside it ``summary.csv`` and ``figures/`` (PNG, PDF, the numbers as CSV).

    A sweep also gets ``selection.csv``, its best arms, see `selection.select`. The run may be killed or still running;
    figures without data are left out. Each file appears when it is complete.

    Args:
      run: see `RunLike`.
      page: path of the page; by default ``report.html`` in the run directory.

    Returns:
      The page's path.
    """
    # Not imported at the top: `plastax.tracking` uses the statistics and must not wait for matplotlib.
    drawing.import_matplotlib()
    from plastax.records.loading import write_table
    from plastax.report import figures, html, selection, table

    study = load_run(run)
    page = pathlib.Path(page or study.directory / "report.html")
    write_table(table.summary(study.data).reset_index(), page.with_name("summary.csv"))
    if not isinstance(best := selection.best(study.data), str):
        write_table(best, page.with_name("selection.csv"))
    made = figures.write(study.data, page.with_name("figures"))
    return html.write([study], page, made["prediction"].frame if "prediction" in made else None)


def _print_best(data: xr.Dataset, console: Console, statistic: Statistic = "mean", quantity: str = "") -> None:
    """Prints the best arms of a sweep, see `selection.select`."""
    from plastax import output
    from plastax.report import notes, selection

    best = selection.best(data, statistic, quantity)
    if not isinstance(best, str):
        console.print(selection.render(best, notes.run_name(data), statistic, console.width))
    elif best:
        output.say(console, best)


def print_table(run: RunLike, console: Console | None = None) -> None:
    """Prints the summary of a run as a table: all of it if it fits the terminal, otherwise what matters most.

    Args:
      run: see `RunLike`.
      console: the terminal by default.
    """
    from plastax import output
    from plastax.report import table

    console = console or output.Console()
    data = read(run)
    console.print(table.render(data, console.width))
    _print_best(data, console)


def print_comparison(
    runs: Sequence[RunLike],
    statistic: Statistic = "mean",
    console: Console | None = None,
    **options: str,
) -> pd.DataFrame:
    """Prints the result of `compare.compare_windows`, one table for each window of tasks, and returns it.

    Args:
      runs: see `RunLike`.
      statistic: ``mean`` or ``iqm``.
      console: the terminal by default.
      **options: ``quantity`` and ``reference``, see `compare.compare`.

    Raises:
      plastax.errors.RecordError: no task is finished.
      plastax.errors.ConfigError: something cannot be compared, or is unknown.
    """
    from plastax import output
    from plastax.report import compare, comparison

    studies = [read(run) for run in runs]
    frame = compare.compare_windows(studies, statistic, **options)
    console = console or output.Console()
    captions = {letter: comparison.what(data) for letter, data in zip(compare.letters(len(studies)), studies)}
    score = score_of(studies[0])
    scored = score is not None and frame["quantity"].iloc[0] in [quantity.name for quantity in score.quantities]
    for (label, window), part in frame.groupby(["label", "window"], sort=False):
        title = f"{label}, {statistic} over seeds and tasks, {window}"
        better = "better" if scored else "larger"
        table = comparison.render(part, title, captions, statistic, console.width, better)
        table.title, table.caption = (worded(str(text), axis_of(studies)) for text in (table.title, table.caption))
        console.print(table)
    for line in frame.attrs["lacking"]:
        output.say(console, line)
    for data in studies if scored else ():
        _print_best(data, console, statistic, options.get("quantity", ""))
    return frame


def print_prediction(
    runs: Sequence[RunLike], out: str | os.PathLike[str] | None = None, console: Console | None = None
) -> pd.DataFrame:
    """Prints which measurement foretells plasticity, and writes the figure ``prediction`` as PNG, PDF and CSV.

    Args:
      runs: one or more of the same stream, see `RunLike`.
      out: the folder; by default ``figures`` in the directory of a run, or the working directory.
      console: the terminal by default.

    Returns:
      The table of `prediction.foretell`.

    Raises:
      plastax.errors.ConfigError: the runs are of different streams, or something that is needed was not recorded.
    """
    drawing.import_matplotlib()
    from plastax import output
    from plastax.errors import ConfigError
    from plastax.report import prediction, style
    from plastax.report.html import side_by_side

    studies = [load_run(run) for run in runs]
    names = ", ".join(str(study.directory) for study in studies)
    if streams := prediction.other_streams([study.config for study in studies]):
        raise ConfigError(f"{names} are of different streams ({streams}); give runs of one stream")
    data, _ = side_by_side(studies)
    try:
        frame = prediction.foretell(data)
    except ConfigError as error:
        raise ConfigError(f"{names}: {error}") from error
    console = console or output.Console()
    console.print(prediction.render(frame, f"What foretells plasticity: {names}", console.width))
    folder = pathlib.Path(out or (studies[0].directory / "figures" if len(studies) == 1 else "."))
    with style.styled():
        made = prediction.picture(frame)
        style.stamp(made.figure, data.attrs.get("notice", ""))
        style.save(*made, folder, "prediction")
    output.say(console, f"The figure and all numbers are in {folder}/prediction.png, .pdf and .csv")
    return frame
