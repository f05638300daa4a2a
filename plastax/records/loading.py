"""Recorded runs as one labelled data set, and as plain tables for other tools."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pathlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plastax.errors import ConfigError
from plastax.records.files import PathLike, write_atomic
from plastax.records.labelled import read_run
from plastax.records.layout import RecordError, read_config

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Format = Literal["parquet", "csv"]


def find(*paths: PathLike) -> list[pathlib.Path]:
    """The run directories that paths and patterns name, each once, in order.

    Args:
      *paths: run directories, or patterns of `glob.glob` (``runs/rl_gymnax/*``), of whose matches only run directories
        count.

    Raises:
      FileNotFoundError: a path is not a run directory, or a pattern matches none.
    """
    found: dict[pathlib.Path, None] = {}
    for path in (os.fspath(path) for path in paths):
        if is_pattern(path):
            runs = [pathlib.Path(p) for p in sorted(glob.glob(path, recursive=True)) if _is_run(pathlib.Path(p))]
        else:
            runs = [pathlib.Path(path)] if _is_run(pathlib.Path(path)) else []
        if not runs:
            inside = sorted(pathlib.Path(path).glob("*/config.json")) if not is_pattern(path) else []
            hint = f"; the {len(inside)} runs in it are '{path.rstrip('/')}/*'" if inside else ""
            raise FileNotFoundError(
                f"{path!r} is not a run directory (runs/<experiment>/<run id>, with a config.json){hint}"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def is_pattern(path: PathLike) -> bool:
    """Whether a path is a pattern; an existing directory never is, whatever its name."""
    return not pathlib.Path(path).exists() and glob.has_magic(os.fspath(path))


def _is_run(path: pathlib.Path) -> bool:
    return (path / "config.json").is_file()


def load(path: PathLike | Sequence[PathLike]) -> xr.Dataset:
    """Reads one run, or several as one labelled data set; they may be finished, killed or still running.

    For the variables and dimensions of one run see `labelled.read_run`. Several runs have the first dimension ``run``,
    with the coordinates ``experiment``, ``hash`` and ``settings/<name>`` for every setting in which they differ. Their
    other axes are unions, NaN where a run has nothing (fewer tasks or Lanczos nodes, an arm or probe that it lacks)::

        data = plastax.load("runs/rl_gymnax/*")
        data["train/episode_return"].mean("seed").sel(run=data["settings/tasks"] == 12).to_dataframe()

    For data frames use `table`: ``.to_dataframe()`` of the whole data set has a row for every combination of all axes,
    which may be 100 GiB of a small run.

    Args:
      path: a run directory; or a pattern (``runs/rl_gymnax/*``) or a sequence of paths and patterns, whose data set has
        the dimension ``run`` even if it is a single run.

    Raises:
      FileNotFoundError: there is no such run.
      RecordError: a file is corrupt, or does not fit its configuration; the message names it.

    Examples:
      A run of one method with two seeds, of which the first of two tasks is recorded:

      >>> import pathlib, tempfile
      >>> from plastax.records import files, layout
      >>> run = pathlib.Path(tempfile.mkdtemp())
      >>> settings = {"methods": ["l2"], "seeds": 2, "tasks": 2, "updates_per_task": 3}
      >>> files.write_json(run / "config.json", {"experiment": "demo", "run_id": "r0", "settings": settings})
      >>> recorded = layout.Segment({"loss": [[3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]}, {}, {})
      >>> path = layout.write_segment(run / "records" / "l2", 0, recorded, {"clock": 0, "length": 3, "task": 0})
      >>> loss = load(run)["train/loss"]
      >>> loss.sel(arm="l2").mean("seed").values
      array([3.5, 2.5, 1.5, nan, nan, nan])
    """
    if isinstance(path, str | os.PathLike) and not is_pattern(path):
        return read_run(find(path)[0])
    runs = find(*([path] if isinstance(path, str | os.PathLike) else path))
    if not runs:
        raise FileNotFoundError("no run is given; name a run directory or a pattern")
    return join([read_run(run) for run in runs], [read_config(run) for run in runs], runs)


def join(runs: Sequence[xr.Dataset], configs: Sequence[Mapping[str, Any]], paths: Sequence[pathlib.Path]) -> xr.Dataset:
    """The data sets of several runs along the dimension ``run``, see `load`."""
    import xarray as xr

    names = [str(config.get("run_id", path.name)) for config, path in zip(configs, paths)]
    if len(set(names)) < len(names):
        names = [os.fspath(path) for path in paths]
    tasks = [run.update_task for run in runs]
    of_arms = _coords_of_arms(runs)
    bare = [run.drop_vars(["update_task", *(name for name in of_arms if name in run.coords)]) for run in runs]
    # Axes without labels get numbers, so that shorter ones can be padded.
    counted = [run.assign_coords({d: range(n) for d, n in run.sizes.items() if d not in run.coords}) for run in bare]
    labels: dict[Hashable, list[Any]] = {}
    for run in counted:
        for dim in run.dims:
            mine = run[dim].values.tolist()
            both = [*labels.get(dim, ()), *(label for label in mine if label not in set(labels.get(dim, ())))]
            labels[dim] = both if any(isinstance(label, str) for label in both) else sorted(both)
    whole = [run.reindex(labels) for run in counted]
    data = xr.concat(whole, "run", data_vars="all", join="exact", combine_attrs="drop").assign_coords(run=names)
    of_updates = xr.concat([task.reindex(update=labels["update"]) for task in tasks], "run").assign_coords(run=names)
    longest = of_updates.max("run")
    if bool(((of_updates == longest) | of_updates.isnull()).all()):
        of_updates = longest.astype(int)
    data = data.assign_coords(update_task=of_updates.drop_vars("update_task", errors="ignore"))
    columns = {name: [config.get(name, "") for config in configs] for name in ("experiment", "hash")}
    columns |= {f"settings/{name}": values for name, values in differing(configs).items()}
    data = data.assign_coords({name: ("run", values) for name, values in columns.items()})
    return data.assign_coords({name: ("arm", [of[arm] for arm in labels["arm"]]) for name, of in of_arms.items()})


def _coords_of_arms(runs: Sequence[xr.Dataset]) -> dict[Hashable, dict[str, Any]]:
    """Coordinate along ``arm`` -> label of an arm in any run -> its value, which the label determines."""
    arms = dict.fromkeys(arm for run in runs for arm in run.arm.values.tolist())
    found: dict[Hashable, dict[str, Any]] = {}
    for run in runs:
        for name, coord in run.coords.items():
            if name != "arm" and coord.dims == ("arm",):
                missing = "" if coord.dtype.kind == "U" else np.nan
                values = found.setdefault(name, dict.fromkeys(arms, missing))
                values |= {
                    arm: value
                    for arm, value in zip(run.arm.values.tolist(), coord.values.tolist())
                    if value == value and value != ""
                }
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted setting in which the runs differ -> its value in each, "" for a missing one.

    Lists become text. The settings that change no number (``runs_dir``, ``wandb``, ...) are left out.
    """
    flat = [dict(_flat(config.get("settings", {}))) for config in configs]
    asides = {name for config in configs for name in config.get("asides", ())}
    names = dict.fromkeys(name for one in flat for name in one if name.split(".")[0] not in asides)
    rows = {name: [one.get(name, "") for one in flat] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str | int | float) else json.dumps(value)


def table(run: xr.Dataset | PathLike | Sequence[PathLike], what: str | Sequence[str]) -> pd.DataFrame:
    """Measurements of a run as a tidy table, with a column for each axis and each measurement.

    Args:
      run: a run, a pattern or several of them, see `load`; or its result.
      what: a table of `tables`, such as ``train`` or ``probe``; or the names of measurements that have the same axes,
        ``["hessian/rank", "features/effective_rank"]``.

    Returns:
      A row for every point of the axes (arm, seed, update; or arm, seed, task, mark, ...) at which any of them was
      measured. What is known of an arm or update (``method``, ``update_task``, settings of a sweep) has columns too.

    Raises:
      ConfigError: a name is unknown, or two measurements have different axes.
      FileNotFoundError: there is no such run.
      RecordError: see `load`.

    Examples:
      >>> import xarray as xr
      >>> loss = ("arm", "seed", "update"), [[[3.0, 2.0], [4.0, np.nan]]]
      >>> data = xr.Dataset({"train/loss": loss}, {"arm": ["l2"], "seed": [0, 1], "update": [0, 1]})
      >>> print(table(data, "loss").to_string(index=False))
      arm  seed  update  train/loss
       l2     0       0         3.0
       l2     0       1         2.0
       l2     1       0         4.0
    """
    data: xr.Dataset = run if hasattr(run, "data_vars") else load(run)  # type: ignore[arg-type,assignment]
    asked = [what] if isinstance(what, str) else list(what)
    groups = _groups(data)
    if len(asked) == 1 and asked[0] in groups:
        return _frame(data, groups[asked[0]])
    short = {str(name).partition("/")[2]: name for name in data.data_vars}
    found = short | {name: name for name in data.data_vars}
    for name in asked:
        if name not in found:
            raise ConfigError.unknown("table", name, (*groups, *short))
    axes = {name: [str(dim) for dim in data[found[name]].dims] for name in asked}
    for name in asked:
        if axes[name] != axes[asked[0]]:
            several = " and ".join(f"{one} has {', '.join(axes[one])}" for one in (asked[0], name))
            raise ConfigError(f"table: {several}; ask for measurements of different axes one by one")
    if not asked:
        raise ConfigError("table: nothing is asked for; give a table or names of measurements")
    return _frame(data, [found[name] for name in asked])


def tables(data: xr.Dataset) -> dict[str, pd.DataFrame]:
    """A data set as tables: one for every combination of axes, with a column for every variable.

    Args:
      data: see `load`.

    Returns:
      ``train`` (arm, seed, update), ``host`` (arm, segment), ``probe`` (arm, seed, task, mark) and
      ``probe_by_<axis>...`` for variables with more axes. With several runs ``run`` comes first, and ``runs`` describes
      them. Rows in which nothing was measured are left out.
    """
    return {key: _frame(data, names) for key, names in _groups(data).items()}


def _of_runs(data: xr.Dataset) -> list[Hashable]:
    """The coordinates that describe the runs of a data set."""
    return [name for name, coord in data.coords.items() if name != "run" and coord.dims == ("run",)]


def _groups(data: xr.Dataset) -> dict[str, list[Hashable]]:
    """Table -> the variables in it, which have the same axes."""
    groups: dict[str, list[Hashable]] = {"runs": _of_runs(data)} if "run" in data.dims else {}
    for name, array in data.data_vars.items():
        kind = str(name).partition("/")[0]
        more = [str(dim) for dim in array.dims if dim not in ("run", "arm", "seed", "task", "mark")]
        key = "_".join([f"{kind}_by", *(dim.replace("/", "_") for dim in more)]) if kind == "probe" and more else kind
        groups.setdefault(key, []).append(name)
    return groups


def _frame(data: xr.Dataset, names: list[Hashable]) -> pd.DataFrame:
    """The table of variables with the same axes, without rows in which nothing was measured."""
    order = [dim for dim in data[names[0]].dims if dim != "run"]
    order = ["run", *order] if "run" in data[names[0]].dims else order
    bare = data.drop_vars([name for name in _of_runs(data) if name not in names])[names]
    return bare.to_dataframe(dim_order=order).dropna(how="all", subset=names).reset_index()


def export(paths: Sequence[PathLike], format: Format = "parquet", out: PathLike | None = None) -> list[pathlib.Path]:
    """Writes the `tables` of runs.

    Args:
      paths: run directories or patterns, see `load`.
      format: ``parquet`` or ``csv``.
      out: the folder; by default ``export`` in the run directory.

    Returns:
      The files.

    Raises:
      ConfigError: the format is unknown, or there are several runs and no folder.
      FileNotFoundError: there is no such run.
      RecordError: a record cannot be used; the message names the file.
    """
    if format not in ("parquet", "csv"):
        raise ConfigError(f"format={format!r} is not known; allowed: parquet, csv")
    alone = len(paths) == 1 and not is_pattern(paths[0])
    if out is None and not alone:
        raise ConfigError(f"out is not given; name a folder for the tables of {' '.join(map(str, paths))}")
    data = load(paths[0] if alone else paths)
    folder = pathlib.Path(paths[0]) / "export" if out is None else pathlib.Path(out)
    if not data.data_vars:
        raise RecordError(f"{' '.join(map(str, paths))}: nothing has been recorded yet")
    written = []
    for name, frame in tables(data).items():
        written.append(folder / f"{name}.{format}")
        write_table(frame, written[-1])
    return written


def write_table(frame: pd.DataFrame, path: PathLike) -> None:
    """Writes a table without its index; the file appears when it is complete.

    A text that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage
    return, and is not a number) begins with an apostrophe in a CSV file.

    Args:
      frame: the table.
      path: ending in ``.csv`` or ``.parquet``.
    """
    path = pathlib.Path(path)
    if path.suffix == ".parquet":
        write_atomic(path, lambda file: frame.to_parquet(file, index=False))
        return
    texts = frame.select_dtypes(exclude="number").map(_no_formula)
    safe = frame.assign(**texts).rename(columns=_no_formula)
    write_atomic(path, lambda file: safe.to_csv(file, index=False))


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would compute gets an apostrophe in front; other values stay."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}"
