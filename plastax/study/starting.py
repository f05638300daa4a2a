"""The directory of a run: a new one, or that of an interrupted run to continue."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plastax.errors import ConfigError, RecordError, Unreadable
from plastax.records import lifecycle
from plastax.records.environment import changes, edits, environment
from plastax.records.layout import FORMAT, read_config, read_environment
from plastax.study.settings import Config, asides, identity, origins


def check_writable(config: Config, experiment: str) -> None:
    """Raises `ConfigError` unless the directory of a run can be made and written; makes nothing."""
    setting, directory = ("resume", config.resume) if config.resume else ("runs_dir", config.runs_dir / experiment)
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    _check_room(there, setting, directory)


def run_directory(
    config: Config,
    experiment: str,
    settings: Mapping[str, Any],
    here: Mapping[str, Any] | None = None,
    *,
    reuse: bool = False,
) -> tuple[Path, str, str]:
    """Makes and returns the directory of this run: a new one, or that of an interrupted run to continue.

    Without ``resume`` and ``fresh``, this is the interrupted run of the same settings that was worked on last, if code,
    versions and device have not changed since it began: then its numbers are those of an uninterrupted run. If only its
    report is missing, they may have changed. Shards share a directory whose name depends on the settings alone;
    `loop.study` compares their environments.

    Args:
      config: from `configuration.configure`.
      experiment: its name.
      settings: from `settings.to_json`.
      here: the environment of the run, by default `environment`.
      reuse: whether a finished run of the same settings, code, versions and device is as good as a new one.

    Returns:
      The directory; the run's id; a note about the choice for the user, or "".

    Raises:
      ConfigError: the directory cannot be written; the resumed run has other settings; a run has records but its
        ``config.json`` or ``environment.json`` is damaged; or ``fresh`` is set for a shard that has begun.
    """
    here = environment() if here is None else here
    folder, mark = config.runs_dir / experiment, identity(settings, asides(config))
    if config.resume is not None:
        run_id, note = _resumed(config, experiment, settings, here)
        return _writable(config.resume, "resume"), run_id, note
    if config.shard:
        directory = _writable(_shared(folder / mark, config), "runs_dir")
        return directory, directory.name, ""
    notes = []
    for previous in [] if config.fresh else lifecycle.unfinished(folder, mark, or_finished=reuse):
        state = lifecycle.status(previous).state
        if state == "running":
            notes.append(f"starting a new run: {previous} of the same settings is running")
            continue
        other, unknown = _changed(previous, here)
        if not other or state == "recorded":
            doing = "using" if state == "finished" else "continuing"
            note = f"{doing} {previous}, which was {state} (--fresh starts a new run){unknown}"
            return _writable(previous, "runs_dir"), _run_id(previous), note
        notes.append(f"starting a new run: {previous} was {state}, but since then {', '.join(other)} changed")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    # Two starts within a second are two runs, with two names.
    directory = next(path for path in _following(folder / f"{stamp}-{mark}") if not path.exists())
    return _writable(directory, "runs_dir"), directory.name, notes[0] if notes else ""


def _run_id(run: Path) -> str:
    with contextlib.suppress(OSError, RecordError, KeyError):
        return read_config(run)["run_id"]
    return run.name


def _resumed(config: Config, experiment: str, settings: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, str]:
    """The id of the run that ``--resume`` names, and a note for the user."""
    run = config.resume
    assert run is not None
    try:
        stored = read_config(run)
        if stored["experiment"] != experiment:
            raise ConfigError(f"resume: {run} is a run of {stored['experiment']}, not of {experiment}")
        if stored.get("format", 0) != FORMAT:
            raise ConfigError(
                f"resume: {run} is of format {stored.get('format', 0)} and this plastax continues format {FORMAT} "
                "only; continue with the version that began it (environment.json names it), or start a new run"
            )
        differing = lifecycle.differences(stored["settings"], settings, asides(config))
        if newer := [name for name, (then, _) in differing.items() if then is None]:
            raise ConfigError(
                f"resume: an earlier version began {run}, without {', '.join(newer)}; continue with "
                "that version (environment.json names it), or start a new run"
            )
        if differing:
            listed = lifecycle.in_words(differing)
            raise ConfigError(f"resume: {run} is another configuration ({listed}); drop these settings")
        run_id = stored["run_id"]
    except (RecordError, OSError, KeyError) as error:
        raise ConfigError(f"resume: {run} is not a run directory ({error})") from error
    if own := origins(config):
        with contextlib.suppress(OSError, RecordError):  # `_changed` tells them apart.
            programs = any(origin["module"] == "__main__" for origin in own.values())
            then = read_environment(run)
            if edited := [name for name in edits(then, here) if programs or not name.endswith(".py")]:
                listed = ", ".join(origin["name"] for origin in own.values())
                raise ConfigError(
                    f"resume: the source of {', '.join(edited)} has changed since {run} began, with {listed}; put it "
                    "back, or start a new run without --resume"
                )
    other, unknown = _changed(run, here)
    note = f"not what this run began with: {', '.join(other)}; its numbers may be others from here on" if other else ""
    return run_id, note + unknown


def _changed(run: Path, here: Mapping[str, Any]) -> tuple[list[str], str]:
    """What has changed since an interrupted run began, and a note for the user if that is unknown."""
    try:
        format_ = read_config(run).get("format", 0)
        then = read_environment(run)
        return changes(then, here) + (["the format"] if format_ != FORMAT else []), ""
    except FileNotFoundError as error:
        if lifecycle.blank(run):
            return [], ""
        return [], f"; {error.filename} is missing: whether code, versions and device are the same is not known"
    except RecordError as error:
        if lifecycle.blank(run):
            return [], ""
        if isinstance(error, Unreadable):
            raise
        raise ConfigError(
            f"{run} has records, but {error}; put that file back from a copy, or move it away to continue without it, "
            "or start a new run with --fresh"
        ) from error


def _following(path: Path) -> Iterator[Path]:
    """A path, then the same path with -2, -3, ... appended."""
    return itertools.chain([path], (path.with_name(f"{path.name}-{k}") for k in itertools.count(2)))


def _shared(first: Path, config: Config) -> Path:
    """The directory that all shards share: the newest of these settings."""
    directory = first
    for new in _following(first):
        if not new.exists():
            break
        directory = new
    if not config.fresh or not lifecycle.begun(directory, config.shard):
        return directory
    if lifecycle.shard_numbers(config.shard)[1] > 1:
        # Nobody could tell whether the other shards have started again too.
        raise ConfigError(
            f"fresh: shard {config.shard} has begun in {directory}, which all shards share; move that directory away, "
            "or name another --runs-dir"
        )
    return new


def _writable(directory: Path, setting: str) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(setting, directory, error) from error
    _check_room(directory, setting, directory)
    return directory


def _check_room(place: Path, setting: str, directory: Path) -> None:
    try:
        str(directory.absolute()).encode()
    # orbax takes paths as text only.
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{setting}: {directory} is not valid in this system's file name encoding ({sys.getfilesystemencoding()}); "
            "set a UTF-8 locale (LC_ALL=C.UTF-8), or name another directory"
        ) from error
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))  # Any run writes more: find a full disk now.
    except OSError as error:
        raise _unwritable(setting, directory, error) from error


def _unwritable(setting: str, directory: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{setting}: {directory} cannot be written ({error.strerror}); name another directory")
