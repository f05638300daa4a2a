"""Finds a data set: in a given folder, ``PLASTAX_DATA``, the cache, installed packages, or on the network.

The cache is ``$XDG_CACHE_HOME/plastax/data/<name>`` (``~/.cache`` by default). A source fetches into a hidden folder
beside it. There the files are read and verified, and one rename then puts them into the cache: what is there is whole.
A lock lets a second process wait for the first one's download.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plastax import locks, output
from plastax.data.base import Arrays, DataError, Entry, Source, SourceError
from plastax.errors import ConfigError


def cache() -> Path | None:
    """The folder of fetched data sets; None if the user has no home and ``XDG_CACHE_HOME`` is not set."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # in a container: no HOME, and no such user
        return None
    return Path(home) / "plastax" / "data"


def locate(
    name: str, entry: Entry, path: str | os.PathLike[str] | None, check: bool, fetch: bool, options: Mapping[str, Any]
) -> tuple[Arrays, str]:
    """Reads a data set from files.

    Args:
      name: its name.
      entry: its entry.
      path: of its files; None: look for them.
      check: whether the files must be the published ones; fetched files must be anyway.
      fetch: whether the network may be asked.
      options: for the reader.

    Returns:
      The arrays, and where they were found.

    Raises:
      ConfigError: ``path`` or ``PLASTAX_DATA`` does not exist.
      DataError: the data are not found or damaged, or the cache cannot be written.
      OSError: a folder or a file cannot be read.
    """
    if path is not None:
        top = _existing(f"path of {name}", Path(path))
        below = (folder for folder in (top, *(top / inner for inner in entry.folders)) if entry.present(folder))
        found = next(below, top)
        return entry.read(found, check, **options), str(found)
    root, looked = cache(), places(name, entry)
    kept = root / name if root else None
    for folder in looked:
        if entry.present(folder):
            return entry.read(folder, check or folder == kept, **options), str(folder)
    failures: list[str] = []
    if fetch and entry.sources:
        if kept is None:
            raise DataError(
                f"there is no home directory to keep {name} in; set XDG_CACHE_HOME to a directory for it, or "
                "PLASTAX_DATA to a directory that holds it"
            )
        try:
            arrays, failures = fetched(name, entry, kept, options)
        except OSError as error:
            raise DataError(
                f"{kept}: cannot be written ({error.strerror or error}); free some space there, or name another "
                "directory in XDG_CACHE_HOME"
            ) from error
        if arrays is not None:
            return arrays, str(kept)
    failed = [f"not from {failure}" for failure in failures] if fetch else ["the network was not asked"]
    raise DataError(_missing(name, entry, [f"not in {folder}" for folder in looked] + failed))


def places(name: str, entry: Entry) -> list[Path]:
    """Where a data set may be on this machine, best first; `ConfigError`: ``PLASTAX_DATA`` does not exist."""
    given: list[Path] = []
    if top := os.environ.get("PLASTAX_DATA"):
        given = [_existing("PLASTAX_DATA", Path(top)) / folder for folder in entry.folders]
    root = cache()
    return [*given, *([root / name] if root else []), *map(Path, entry.installed)]


def fetched(name: str, entry: Entry, folder: Path, options: Mapping[str, Any]) -> tuple[Arrays | None, list[str]]:
    """Fetches a data set into ``folder`` from the first source that has all of it.

    Returns:
      The arrays, or None if no source had them; and what went wrong with each source.
    """
    failures: list[str] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(folder.parent / f".{name}.lock", wait=True):
        if entry.present(folder):  # another process was faster
            return entry.read(folder, True, **options), failures
        for source in entry.sources:
            staging = folder.parent / f".{name}-{re.sub(r'[^a-z0-9]+', '-', source.label.lower())}"
            output.tell(f"{name}: asking {source.label}")
            try:
                arrays = _tried(source, entry, staging, options)
            except (SourceError, DataError) as error:
                failures.append(f"{source.label}: {str(error).removeprefix(source.label).lstrip(': ')}")
                output.tell(f"{name}: {failures[-1]}")
                continue
            if folder.exists():  # It holds nothing of this data set, but files of somebody.
                for other in folder.iterdir():
                    other.rename(staging / other.name)
                folder.rmdir()
            os.replace(staging, folder)
            for leftover in folder.parent.glob(f".{name}-*"):
                shutil.rmtree(leftover)
            output.tell(f"{name}: fetched from {source.label} into {folder}")
            return arrays, failures
    return None, failures


def _tried(source: Source, entry: Entry, staging: Path, options: Mapping[str, Any]) -> Arrays:
    """What one source brings, read and verified. It continues an earlier attempt that was cut, once."""
    continued = staging.exists() and any(staging.iterdir())
    staging.mkdir(exist_ok=True)
    source.fetch(staging)
    try:
        return entry.read(staging, True, **options)
    except DataError:
        shutil.rmtree(staging)
        if not continued:
            raise
    return _tried(source, entry, staging, options)


def _existing(setting: str, path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"{setting}: {path.absolute()} does not exist")
    return path


def _missing(name: str, entry: Entry, tried: list[str]) -> str:
    parents = "$PLASTAX_DATA/" + entry.folders[0] if entry.folders else "a folder given as path"
    root = cache()
    remedy = f"put {entry.files} into {f'{root / name} or ' if root else ''}{parents}"
    how = entry.remedy or f"make data NAME={name}, with a network"
    return "\n  ".join([f"data set {name!r} is not on this machine", *tried, f"get it: {how}", f"or {remedy}"])
