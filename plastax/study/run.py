"""A run and everything that is known of it: numbers, tables, figures, report, trained networks."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastax import report
from plastax.errors import ConfigError
from plastax.records import lifecycle, loading
from plastax.records.layout import arm_labels, read_config
from plastax.records.lifecycle import Status

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from plastax.report.figures import Drawing
    from plastax.report.reading import LoadedRun
    from plastax.runs.networks import Part
    from plastax.types import Tree


@functools.lru_cache(2)
def _loaded(directory: Path, done: int) -> LoadedRun:
    """The run when ``done`` segments were recorded."""
    return report.load_run(directory)


@dataclass(frozen=True, repr=False)
class Run:
    """A run: finished, interrupted or still running. `plastax.open` and `Study.run` return it.

    Every function of plastax that takes a run directory takes this, too. Numbers are read when they are asked for, and
    again once more has been recorded.

    Attributes:
      directory: ``<runs-dir>/<experiment>/<run id>``, absolute.
    """

    directory: Path

    def __fspath__(self) -> str:
        return os.fspath(self.directory)

    def __repr__(self) -> str:
        settings, status = self.config["settings"], self.status
        sizes = f"{len(self.arms)} arms x {settings.get('seeds')} seeds x {settings.get('tasks')} tasks"
        done = f"{status.done} of {status.total} segments" if status.total else f"{status.done} segments"
        return f"<Run {self.directory}: {status.state}, {done}, {sizes}>"

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``: its ``settings`` are all that the run was told."""
        return read_config(self.directory)

    @property
    def arms(self) -> list[str]:
        """The labels of the arms: methods, and in a sweep methods with their values."""
        return arm_labels(self.config)

    @property
    def status(self) -> Status:
        """Whether the run is finished, how much of it is recorded, and how long it still takes."""
        return lifecycle.status(self.directory)

    @property
    def data(self) -> xr.Dataset:
        """All numbers as one labelled data set, see `plastax.load`."""
        return self._read().data

    def _read(self) -> LoadedRun:
        return _loaded(self.directory, self.status.done)

    def table(self, *what: str) -> pd.DataFrame:
        """A tidy table.

        Args:
          *what: see `plastax.table`, such as ``"train"``, ``"probe"`` or ``"hessian/rank"``; by default the summary of
            the report, a row for each arm.
        """
        if what:
            return loading.table(self.data, what)
        from plastax.report import table

        return table.summary(self.data)

    def report(self) -> Path:
        """Writes the report, as far as the run is recorded, and returns its page, ``report.html``."""
        return report.write(self._read())

    @property
    def figures(self) -> dict[str, Drawing]:
        """Name -> figure of the report, for those with data; see `plot`."""
        return report.draw(self._read())

    def plot(self, name: str = "overview") -> Drawing:
        """A figure of the report, which a notebook shows: ``figure`` is matplotlib's, ``frame`` its numbers.

        Raises:
          ConfigError: the name is unknown, or the run has no data for it.
        """
        return report.draw(self._read(), name)[name]

    def params(
        self,
        method: str | None = None,
        seed: int | None = None,
        task: int | None = None,
        *,
        arm: str | None = None,
        part: Part = "params",
    ) -> Tree:
        """The parameters of trained networks, as a nested dict of NumPy arrays.

        The newest checkpoint of a method is always kept, for a finished run that of its end. ``keep_params=1`` (on the
        command line ``--keep-params 1``) keeps the networks after every task. `plastax.runs.networks` says how to read
        the files without plastax.

        Args:
          method: whose; may be left out if there is only one.
          seed: which network; None: all, along a first axis.
          task: after which task, from 0; None: the newest.
          arm: label of an arm of a sweep, in place of the method, see `arms`.
          part: ``stats`` for the running statistics of batch normalisation, ``statistics`` for those of an agent's
            observations, {} where there are none.

        Raises:
          ConfigError: there is no such arm or seed, or its networks are not kept; the message says what is there.
          RecordError: a file is damaged.
        """
        from plastax.runs import networks

        config = self.config
        chosen = self._arm(config, method, arm)
        if part not in networks.PARTS:
            raise ConfigError.unknown("part", part, networks.PARTS)
        settings = config["settings"]
        first, count = int(settings.get("first_seed", 0)), int(settings.get("seeds", 1))
        if seed is not None and not first <= seed < first + count:
            raise ConfigError(f"seed: {seed} is not in this run; its seeds are {first} to {first + count - 1}")
        found = networks.read(self.directory, config, chosen, task)[part]
        return found if seed is None else _indexed(found, seed - first)

    def _arm(self, config: Mapping[str, Any], method: str | None, arm: str | None) -> str:
        """The label of the arm that a method or a label names."""
        labels = arm_labels(config)
        if arm is not None and arm not in labels:
            raise ConfigError.unknown("arm", arm, labels)
        methods = {label: config.get("arms", {}).get(label, {}).get("method", label) for label in labels}
        if method is not None and method not in methods.values():
            raise ConfigError.unknown("method", method, methods.values())
        fitting = [label for label, own in methods.items() if arm in (None, label) and method in (None, own, label)]
        if len(fitting) != 1:
            raise ConfigError(f"arm: {len(fitting)} arms fit; give one of {', '.join(fitting or labels)}")
        return fitting[0]


def _indexed(found: Tree, index: int) -> Tree:
    if isinstance(found, Mapping):
        return {name: _indexed(inner, index) for name, inner in found.items()}
    return found[index]


def open(path: str | os.PathLike[str]) -> Run:
    """Opens a run, which may be finished, interrupted or still running.

    Args:
      path: its directory, ``<runs-dir>/<experiment>/<run id>``, or a pattern that names one run.

    Raises:
      FileNotFoundError: there is no such run.
      ConfigError: the pattern names several.
    """
    found = loading.find(path)
    if len(found) > 1:
        listed = ", ".join(map(str, found[:3])) + ", ..." * (len(found) > 3)
        raise ConfigError(f"path: {path} names {len(found)} runs ({listed}); give one")
    return Run(found[0].absolute())
