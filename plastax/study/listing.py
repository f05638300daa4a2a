"""A table of the runs in a directory: state, progress and best method of each."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.table
import rich.text

from plastax import output
from plastax.errors import ConfigError
from plastax.records import lifecycle
from plastax.records.layout import arm_labels, owner, read_config, read_segment, records_folder, segment_files
from plastax.report.arms import value_text
from plastax.tracking.base import reduce_segment, score_values

_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow"} | dict.fromkeys(
    ("failed", "killed", "damaged"), "red"
)


def find(directory: Path) -> list[Path]:
    """The runs in a directory of runs, in that of an experiment, or a single run; sorted by experiment and age.

    Raises:
      ConfigError: the directory does not exist.
    """
    if not directory.is_dir():
        raise ConfigError(f"directory: {directory} does not exist; give a directory of runs (<runs-dir>)")
    found = [path.parent for depth in ("", "*/", "*/*/") for path in directory.glob(f"{depth}config.json")]
    return sorted(found)


def table(directory: Path) -> rich.table.Table:
    """One row per run; see `lifecycle.Status` for the states.

    Below a run's name are its details, and the arm with the best score in its newest record (`plastax.report.score`;
    mean over seeds): as columns they would fit no narrow terminal.
    """
    out = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("run", "state", "progress", "left"):
        # Never cut a run's name: users copy it.
        out.add_column(heading, no_wrap=heading != "run", overflow="fold")
    for run in find(directory):
        name = run.name if run == directory else str(run.relative_to(directory))
        state, progress, left, best, detail = _row(run)
        lines = [
            output.plain(line) for line in (name, f"  best: {best}" if best else "", f"  {detail}".rstrip()) if line
        ]
        style = _STYLES.get(state, "")
        out.add_row(rich.text.Text("\n".join(lines)), rich.text.Text(output.plain(state), style), progress, left)
    return out


def _row(run: Path) -> tuple[str, str, str, str, str]:
    """State, progress, time left, best method and detail of one run."""
    # A damaged run, or a folder of something else, must not hide the other runs.
    try:
        config, status = read_config(run), lifecycle.status(run)
    except Exception as error:
        return "damaged", "", "", "", str(error) or repr(error)
    try:
        best = _best(run, config)
    except Exception as error:
        best = str(error) or repr(error)
    done = f"{status.done} segments"
    if status.total:
        done = f"{100 * status.done / status.total:.0f} % ({status.done}/{status.total})"
    left = "" if status.left is None else str(datetime.timedelta(seconds=round(status.left)))
    return status.state, done, left, best, status.detail


def _best(run: Path, config: Mapping[str, Any]) -> str:
    """The best method's score and name; "" before the first record."""
    values: dict[str, float] = {}
    for arm in arm_labels(config):
        if not (files := segment_files(records_folder(run, config, arm))):
            continue
        segment = read_segment(files[max(files)], owner(config, arm))
        score, found = score_values(reduce_segment(segment, config, arm))
        if score is None:
            continue
        quantity = score.main if score.main in found else score.curve
        if quantity in found:
            label, values[arm] = quantity.label, float(np.nanmean(found[quantity]))
            choose = max if score.higher_is_better else min
    if not values:
        return ""
    best = choose(values, key=lambda name: values[name])
    arm = config.get("arms", {}).get(best, {"method": best, "settings": {}})
    named = ", ".join(
        [
            arm["method"],
            *(f"{name.rpartition('.')[2]} = {value_text(value)}" for name, value in arm["settings"].items()),
        ]
    )
    return f"{named} ({label} {values[best]:.4g})"
