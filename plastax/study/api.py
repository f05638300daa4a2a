"""A study from Python: the same configuration and the same run as by the command line."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastax import output, streams
from plastax.errors import ConfigError
from plastax.rl import STREAMS
from plastax.runs.networks import Callback
from plastax.study import catalogue, configuration, names, supervised
from plastax.study.experiment import Experiment
from plastax.study.run import Run

QUIET = 10.0
"""Seconds between two lines of progress where the output is not a terminal."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Study:
    """A study: methods on a stream of tasks, over seeds. `run` trains, records and reports it.

    It is the study of `plastax run EXPERIMENT` with the same settings: same numbers, same run directory, and either
    continues what the other began. Wherever a name is given, an object may stand for it, also one of a notebook:
    ``methods=["backprop", MyMethod(rate=0.1)]``, ``model=my_network``, ``data=(images, labels)``.

    Args:
      experiment: name of an experiment (`plastax list experiments`), a file or ``module:object`` that holds one, or an
        `Experiment`. By default, the one of ``stream``.
      stream: the stream of tasks (`plastax list streams`), with the defaults of the experiment that is about it; or
        your own, which is an experiment of its own.
      methods: what to compare.
      probes: what to measure; [] for nothing.
      seeds: networks of each method.
      tasks: tasks of the stream.
      model: the network: a name, an entry of `plastax.models` or your own; or a mapping of settings of the usual one.
      training: the group of settings of training (of PPO for an agent): a whole group, or a mapping of some of its
        settings.
      preset: a set of defaults of the experiment.
      settings: more settings, by their names on the command line: ``{"hessian.order": 64}``.
      name: the folder of its runs; by default the experiment's name.
      runs_dir: the directory of all runs; by default ``runs``.
      **more: more settings and groups: ``l2_er={"er_lr": 1e-3}``, ``sweep={"method.l2": [0, 1e-3]}``, ``data="mnist"``.

    Attributes:
      experiment: its `Experiment`.
      config: all settings.

    Raises:
      ConfigError: a setting cannot be used. Those that do not fit together are refused by `run`, before it compiles.

    Examples:
      >>> study = Study(stream="random_label", methods=["backprop", "l2_er"], seeds=4, training={"epochs": 10})
      >>> study
      Study(stream='random_label', methods=['backprop', 'l2_er'], seeds=4, training={'epochs': 10})
      >>> study.config.training.epochs, study.config.tasks
      (10, 40)
    """

    experiment: Experiment[Any]
    config: Any
    _given: Mapping[str, Any]

    def __init__(
        self,
        experiment: str | Experiment[Any] | None = None,
        *,
        stream: Any = None,
        methods: Sequence[Any] | None = None,
        probes: Sequence[Any] | None = None,
        seeds: int | None = None,
        tasks: int | None = None,
        model: Any = None,
        training: Any = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
        runs_dir: str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> None:
        named = {
            "stream": stream, "methods": methods, "probes": probes, "seeds": seeds, "tasks": tasks, "model": model,
            "training": training, "preset": preset, "runs_dir": runs_dir,
        }  # fmt: skip
        given = {key: value for key, value in (named | more).items() if value is not None}
        told = {"experiment": getattr(experiment, "name", experiment), **given, "settings": settings, "name": name}
        chosen, values = _experiment(experiment, given)
        if name is not None:
            if Path(name).name != name:
                raise ConfigError(f"name: {name!r} is not allowed; give the name of a folder in runs_dir")
            chosen = dataclasses.replace(chosen, name=name)
        object.__setattr__(self, "experiment", chosen)
        object.__setattr__(self, "config", _configured(chosen, values, settings or {}))
        object.__setattr__(self, "_given", {key: value for key, value in told.items() if value is not None})

    def __repr__(self) -> str:
        shown = (f"{key}={textwrap.shorten(repr(value), 80, placeholder='...')}" for key, value in self._given.items())
        return f"Study({', '.join(shown)})"

    def run(self, callback: Callback | None = None) -> Run:
        """Trains, records and reports the study; continues its interrupted run if there is one.

        Of a finished study this makes another run; `plastax.open` reads the first.

        A terminal shows a progress bar, a notebook or a log file now and then a line. Ctrl-C, and the stop button of a
        notebook, end the run after a checkpoint. In another thread than the main one signals are left alone.

        Args:
          callback: called for every arm after every task with a `TaskEnd`: the directory of the run, with the records
            of the task, and the trained networks as NumPy arrays. `plastax.runs.networks.Callback` says what it costs.
            What it raises ends the run, which `run` then continues.

        Raises:
          ConfigError: settings do not fit together; nothing was compiled.
          Stopped: it was interrupted.
          RunError: the run cannot continue; see `plastax.runs.loop.study`.
        """
        # A notebook's kernel calls itself a terminal, and shows standard error as if it were an error.
        notebook = output.Console().is_jupyter
        console = output.Console(force_jupyter=False, force_terminal=False) if notebook else output.Console(stderr=True)
        console.pause = QUIET
        directory = self.experiment.run(self.config, console, callback=callback, verbose=False)
        if directory is None:
            raise ConfigError("dry_run: True is not allowed here; it is for the command line")
        return Run(directory.absolute())


def _experiment(given: Any, values: dict[str, Any]) -> tuple[Experiment[Any], dict[str, Any]]:
    """The experiment of a study, and the values that are left to set."""
    stream = values.get("stream")
    if isinstance(given, Experiment):
        return given, values
    if isinstance(given, str):
        return catalogue.find(given), values
    if given is not None:
        raise ConfigError(f"experiment: {given!r} is not allowed; give a name or an Experiment, or stream=")
    if stream is None:
        raise ConfigError("stream: none is given; name one (plastax list streams), or an experiment")
    rest = {key: value for key, value in values.items() if key != "stream"}
    if isinstance(stream, str) and stream in streams.STREAMS:
        return _about(type(streams.STREAMS[stream])), rest
    if (isinstance(stream, str) and stream in streams.TOKENS) or _is_among(stream, streams.TOKENS):
        return catalogue.find("token_drift"), {**rest, "data": stream}
    known = [*streams.STREAMS, *STREAMS, *names.installed("streams"), *names.installed("environments")]
    if isinstance(stream, str) and stream not in known and ":" not in stream:
        raise ConfigError.unknown("stream", stream, [*known, "your own, module:object"])
    if _is_among(stream, streams.STREAMS):
        return _about(type(stream)), values
    own = _own_stream(stream)
    return (catalogue.find("rl_gymnax"), values) if own is None else (own, rest)


def _is_among(stream: Any, registry: Mapping[str, Any]) -> bool:
    """Whether an object is an entry of a registry, with any settings."""
    return any(type(stream) is type(known) for known in registry.values())


def _about(kind: type) -> Experiment[Any]:
    """The experiment whose stream is of a class."""
    found = (catalogue.find(name) for name in catalogue.described())
    return next(one for one in found if isinstance(getattr(one.config, "stream", None), kind))


def _own_stream(stream: Any) -> Experiment[Any] | None:
    """An experiment about an own stream of examples; None for a stream of environments."""
    try:
        names.find("environments", stream, STREAMS, "stream")
    except ConfigError as error:
        try:
            found = names.find("streams", stream, streams.STREAMS, "stream")
        except ConfigError as other:
            raise ConfigError(f"{other}; or an environment ({error})") from other
        return supervised.about(found)
    return None


def _configured(experiment: Experiment[Any], values: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    """The configuration of values as `Study` takes them."""
    values = dict(values)
    if "training" in values:
        preset = experiment.presets.get(values.get("preset", "default"), {})
        agent = values.get("agent") or preset.get("agent")
        values[agent or experiment.rates[0].partition(".")[0]] = values.pop("training")
    if isinstance(values.get("sweep"), Mapping):
        values["sweep"] = [f"{key}={','.join(map(_words, swept))}" for key, swept in values["sweep"].items()]
    return configuration.configure(experiment.config, experiment.presets, experiment.choices, values | dict(more))


def _words(value: Any) -> str:
    """A swept value as the command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
