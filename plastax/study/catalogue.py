"""Experiments by name: those of plastax, a file of one's own, or an object of an importable module."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plastax.errors import ConfigError
from plastax.study import objects

if TYPE_CHECKING:
    from plastax.study.experiment import Experiment

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "experiments"
"""Where a wheel has the experiments; a checkout has them at its top."""
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "experiments"


def described() -> dict[str, tuple[str, str]]:
    """Name -> what it trains on, and the first line of its docstring, of plastax's experiments. Runs none of them.

    Files without an ``EXPERIMENT`` are studies of several experiments, and are left out.

    They train on ``rl`` (streams of environments) or ``supervised`` streams, and take streams and models of that kind.
    """
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        tree = ast.parse(path.read_bytes())
        named = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        if "EXPERIMENT" not in (target.id for target in named if isinstance(target, ast.Name)):
            continue
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        kind = "rl" if "reinforcement" in imported else "supervised"
        found[path.stem] = kind, (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def find(name: str) -> Experiment:
    """The experiment of a name.

    Args:
      name: an experiment of plastax (``rl_gymnax``), a file (``my_study.py``), or a module (``mylab.studies:LONG``).
        Files and modules without ``:object`` have the experiment in ``EXPERIMENT``. The object may also be a supervised
        stream (``mylab.streams:Noisy``, or that of an installed package), which is an experiment of its own.

    Raises:
      ConfigError: there is no such experiment.
    """
    place, _, attribute = name.partition(":")
    attribute = attribute or "EXPERIMENT"
    if place in (own := described()):
        if FOLDER == _INSTALLED:
            place = f"plastax.experiments.{place}"
        else:
            place = f"experiments.{place}"
            if str(FOLDER.parent) not in sys.path[:1]:  # Searched first, as the folder of a script is.
                sys.path.insert(0, str(FOLDER.parent))
        found = getattr(importlib.import_module(place), attribute, None)
    elif place.endswith(".py") or ":" in name or "." in name:
        _, found = objects.load("experiment", name, f"{place}:{attribute}")
    elif any(point.name == name for point in importlib.metadata.entry_points(group="plastax.streams")):
        return _about(name)
    else:
        raise ConfigError.unknown("experiment", name, (*own, "<file>.py", "<module>:<object>"))
    from plastax.study.experiment import Experiment

    if not isinstance(found, Experiment) and hasattr(found, "build"):
        return _about(name)
    if not isinstance(found, Experiment):
        raise ConfigError(
            f"experiment: {place} has an object of type {type(found).__name__} called {attribute}; "
            "plastax.study.experiment.Experiment is needed"
        )
    return found


def _about(stream: str) -> Experiment:
    """The experiment about a supervised stream of one's own."""
    from plastax.streams import STREAMS
    from plastax.study import names, supervised

    return supervised.about(names.find("streams", stream, STREAMS, "experiment"))
