"""Experiments by name: those of plastax, a file of one's own, or an object of an importable module."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from plastax.errors import ConfigError

if TYPE_CHECKING:
    from plastax.study.experiment import Experiment

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "experiments"
"""Where a wheel has the experiments; a checkout has them at its top."""
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "experiments"


def described() -> dict[str, str]:
    """Name -> first line of the docstring, for every experiment of plastax. Runs none of them."""
    found = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("[!_]*.py"))}
    return {name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in found.items()}


def find(name: str) -> Experiment:
    """The experiment of a name.

    Args:
      name: an experiment of plastax (``rl_gymnax``), a file (``my_study.py``), or a module (``mylab.studies:LONG``).
        Files and modules without ``:object`` have the experiment in ``EXPERIMENT``.

    Raises:
      ConfigError: there is no such experiment.
    """
    place, _, attribute = name.partition(":")
    if place in (own := described()):
        if FOLDER == _INSTALLED:
            module = importlib.import_module(f"plastax.experiments.{place}")
        else:
            module = _from(_PACKAGE.parent, f"experiments.{place}")
    elif place.endswith(".py"):
        if not Path(place).is_file():
            raise ConfigError(f"experiment: there is no file {place}")
        module = _from(Path(place).resolve().parent, Path(place).stem)
    elif ":" in name or "." in name:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            # A module that the named one imports and that is missing is another matter: its traceback says who asks.
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(f"experiment: there is no module {place!r} ({error})") from error
    else:
        raise ConfigError.unknown("experiment", name, (*own, "<file>.py", "<module>:<object>"))
    attribute = attribute or "EXPERIMENT"
    found = getattr(module, attribute, None)
    from plastax.study.experiment import Experiment

    if not isinstance(found, Experiment):
        kind = "nothing" if found is None else f"an object of type {type(found).__name__}"
        raise ConfigError(f"experiment: {place} has {kind} called {attribute}; plastax.study.Experiment is needed")
    return found


def _from(folder: Path, name: str) -> ModuleType:
    """The module of a name in a folder, which is searched first from now on, as the folder of a script is."""
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)
