"""Reads a run once, for all of its reports."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from plastax.records.labelled import read_run
from plastax.records.layout import read_config, read_environment
from plastax.report.score import notice

if TYPE_CHECKING:
    import xarray as xr


class LoadedRun(NamedTuple):
    """Everything that reports need of a run.

    Attributes:
      directory: ``runs/<experiment>/<run id>``.
      config: content of its ``config.json``.
      environment: content of its ``environment.json``.
      data: from `plastax.load`, with the attributes ``notice``, which every number must be shown with, often "";
        ``axis``, see `wording.worded`; and ``tuning``, how its arms were chosen, often "".
    """

    directory: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: xr.Dataset


RunLike = str | os.PathLike[str] | LoadedRun
"""A run directory, a `plastax.Run`, or the result of `load_run`, so that several reports read a large run once."""


def load_run(run: RunLike) -> LoadedRun:
    """Reads a run, unless it is read already.

    Raises:
      FileNotFoundError: the run has no ``config.json``.
      plastax.errors.RecordError: a record cannot be used; the message names the file.
    """
    if isinstance(run, LoadedRun):
        return run
    directory = pathlib.Path(run)
    config = read_config(directory)
    environment: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        environment = read_environment(directory)
    attributes = {"notice": notice(config.get("settings", {})), "axis": config.get("axis", "task")}
    attributes["tuning"] = _tuned(config.get("tuning", {}))
    data = read_run(directory).assign_attrs(attributes)
    return LoadedRun(directory, config, environment, data)


def _tuned(entry: Mapping[str, Any]) -> str:
    """How the arms of a run were chosen, in words, from the entry ``tuning`` of its ``config.json``."""
    if not entry:
        return ""
    seeds, tasks = entry["seeds"], entry["tasks"]
    counts = ", ".join(f"best of {count} {method}" for method, count in entry["arms"].items() if count > 1)
    first = f"task{'s' * (tasks > 1)} 0{f' to {tasks - 1}' * (tasks > 1)}"
    return (
        f"arms chosen by their mean score on {first} with seeds {seeds[0]}-{seeds[-1]} (--tune-on "
        f"{entry['tune_on']:g}, run {entry['run']}): {counts}; reported on other seeds"
    )
