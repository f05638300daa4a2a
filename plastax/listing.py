"""Runs in a directory, as a table: what has become of each, how far it is, and how well it does."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
import rich.text

from plastax import output, runs
from plastax.errors import ConfigError
from plastax.record import RecordError, read_json, read_segment
from plastax.tracking.base import reduce_segment, score_values

_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "killed": "red"}


def find(directory: Path) -> list[Path]:
    """The runs in a directory of runs, of an experiment's runs, or in the directory of one; by experiment and age.

    Raises:
      ConfigError: no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"directory: {directory} is not there; give a directory of runs (<runs-dir>)")
    found = [path.parent for depth in ("", "*/", "*/*/") for path in directory.glob(f"{depth}config.json")]
    return sorted(found)


def table(directory: Path) -> rich.table.Table:
    """One line a run; see `runs.Status` for the states.

    "best" is the best method by the study's score (`plastax.report.score`), mean over seeds, in its newest record.
    """
    out = rich.table.Table()
    for heading in ("run", "state", "progress", "left", "best", ""):
        # A run's name is there to be copied.
        out.add_column(heading, no_wrap=heading in ("run", "state", "left"), overflow="fold")
    for run in find(directory):
        status = runs.status(run)
        done = f"{status.done} segments"
        if status.total:
            done = f"{100 * status.done / status.total:.0f} % ({status.done}/{status.total})"
        left = "" if status.left is None else str(datetime.timedelta(seconds=round(status.left)))
        try:
            best = _best(run, read_json(run / "config.json"))
        except (RecordError, OSError) as error:
            best = str(error)
        name = run.name if run == directory else str(run.relative_to(directory))
        cells = (name, status.state, done, left, best, status.detail)
        texts = [rich.text.Text(output.plain(cell)) for cell in cells]
        texts[1].stylize(_STYLES.get(status.state, ""))
        out.add_row(*texts)
    return out


def _best(run: Path, config: Mapping[str, Any]) -> str:
    """The best method's score and name; "" before the first record."""
    values: dict[str, float] = {}
    for folder in sorted((run / "records").glob("*")):
        if not (files := sorted(folder.glob("[0-9]*.npz"))):
            continue
        score, found = score_values(reduce_segment(read_segment(files[-1]), config, folder.name))
        if score is None:
            continue
        quantity = score.main if score.main in found else score.curve
        if quantity in found:
            label, values[folder.name] = quantity.label, float(np.nanmean(found[quantity]))
            choose = max if score.higher_is_better else min
    if not values:
        return ""
    best = choose(values, key=lambda name: values[name])
    return f"{label} {values[best]:.4g} ({best})"
