"""plastax: find out why neural networks stop learning, and stop it.

``plastax run EXPERIMENT`` trains networks and reports; ``plastax list experiments`` names the experiments. Every
command has a ``--help``. ``python -m plastax`` is the same command.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import rich.table
import tyro

from plastax import __version__, output
from plastax.errors import ConfigError, RunError
from plastax.records import loading
from plastax.records.layout import RecordError
from plastax.study import catalogue, launch

Runs = Annotated[tuple[str, ...], tyro.conf.Positional]
"""Run directories and patterns, see `plastax.records.loading.find`."""

REGISTRIES: dict[str, dict[str, tuple[str, str]]] = {
    "methods": {"": ("plastax.methods", "METHODS")},
    "streams": {
        "rl": ("plastax.rl", "STREAMS"),
        "supervised": ("plastax.streams", "STREAMS"),
        "token_drift": ("plastax.streams", "TOKENS"),
    },
    "probes": {"": ("plastax.probes", "PROBES")},
    "models": {"rl": ("plastax.models", "ACTOR_CRITICS"), "supervised": ("plastax.models", "SUPERVISED")},
    "data": {"": ("plastax.data", "DATA")},
}
"""What `list` lists -> for which experiments -> module and name of the registry."""
KINDS = ("experiments", *REGISTRIES)


def first_line(text: str | None) -> str:
    """The first line of a docstring; "" if it is missing."""
    return (text or "").strip().partition("\n")[0].strip()


def entries(registry: Mapping[str, Any]) -> dict[str, str]:
    """Name -> one line about the entry: its ``description``, or the first docstring line of its class or function."""

    def described(entry: Any) -> str:
        if isinstance(entry, ConfigError):
            return str(entry)
        if isinstance(description := getattr(entry, "description", None), str):
            return description
        return first_line((entry if inspect.isroutine(entry) or isinstance(entry, type) else type(entry)).__doc__)

    return {name: described(entry) for name, entry in registry.items()}


def run(args: Sequence[str]) -> None:
    """Trains networks and reports; `plastax run NAME --help` lists the settings."""

    def command(experiment: tyro.conf.Positional[str], /) -> None:
        """Trains networks and reports; `plastax run NAME --help` lists the settings.

        Args:
          experiment: a name of `plastax list experiments`, a file (my_study.py) or mylab.studies:EXPERIMENT, followed
            by its settings.
        """

    if not args or args[0].startswith("-"):
        with output.refusals():
            tyro.cli(command, args=args[:1], prog="plastax run")
    catalogue.find(args[0]).main(args[1:], f"plastax run {args[0]}")


def list_(kind: Annotated[str, tyro.conf.Positional], /) -> None:
    """Prints what plastax and other installed packages have: a line each.

    Args:
      kind: experiments, methods, streams, probes, models or data. An experiment is rl or supervised and takes the
        models that are marked so, by `--model NAME`. An rl experiment takes any rl stream, by `--stream NAME`; a
        supervised one has its own, with settings `--stream.SETTING`. token_drift takes its streams by `--data NAME`.
    """
    if kind not in KINDS:
        raise ConfigError.unknown("kind", kind, KINDS)
    if kind == "experiments":
        rows = [(name, *said) for name, said in catalogue.described().items()]
    else:
        rows = []
        names = importlib.import_module("plastax.study.names")
        takers = _experiments_of_streams() if kind == "streams" else {}
        for group, (module, attribute) in REGISTRIES[kind].items():
            registry = getattr(importlib.import_module(module), attribute)
            installed = names.of_packages("environments" if (kind, group) == ("streams", "rl") else kind, registry)
            said = [*entries(registry).items(), *entries(installed).items()]
            rows += [(name, takers.get(type(registry.get(name)), group), text) for name, text in said]
    console = output.Console()
    table = rich.table.Table.grid(padding=(0, 2))
    for column in range(3):
        table.add_column(no_wrap=column < 2)
    for row in rows:
        table.add_row(*row) if any(group for _, group, _ in rows) else table.add_row(row[0], row[2])
    # In a pipe, a line stays a line.
    lines = console.render_lines(
        table, console.options if console.is_terminal else console.options.update(width=10_000)
    )
    for line in lines:
        print("".join(segment.text for segment in line).rstrip())


def _experiments_of_streams() -> dict[type, str]:
    """Class of a supervised stream -> the experiment about it."""
    found = {name: catalogue.find(name).config for name, (kind, _) in catalogue.described().items() if kind != "rl"}
    return {type(getattr(config, "stream", None)): name for name, config in found.items()}


def report(runs: Runs, /, out: pathlib.Path | None = None) -> None:
    """Writes the report of one run, or of several side by side, and prints it.

    Args:
      runs: run directories, `runs/<experiment>/<run id>`, or patterns, `'runs/rl_gymnax/*'`.
      out: the page; by default `report.html` in the directory of a run, or `comparison.html`. Of a single run, its
        tables and figures go beside the page.
    """
    print(output.plain(str(importlib.import_module("plastax.report").write_and_print(_found(runs), out))))


def compare(
    runs: Runs,
    /,
    statistic: Literal["mean", "iqm"] = "mean",
    quantity: str = "",
    reference: str = "",
    csv: pathlib.Path | None = None,
) -> None:
    """Prints methods of one or several runs side by side, with 95 % intervals.

    Args:
      runs: run directories, `runs/<experiment>/<run id>`, or patterns, `'runs/rl_gymnax/*'`.
      statistic: mean, or the interquartile mean of all seeds and tasks. Values and paired differences have t intervals
        over seeds, all tasks of a seed kept together; probabilities of improvement have bootstrap intervals.
      quantity: what to compare: test_accuracy, or any measurement, such as hessian/rank, features/norm/end or
        train/loss; by default what the experiment is judged by.
      reference: what to compare with, such as reset, or A:reset of several runs; by default the same arm in the
        first run, and there its reset or backprop, in a sweep under the same values.
      csv: also write the table into this file.
    """
    report = importlib.import_module("plastax.report")
    frame = report.print_comparison(_found(runs), statistic, quantity=quantity, reference=reference)
    if csv is not None:
        loading.write_table(frame, csv)


def predict(runs: Runs, /, out: pathlib.Path | None = None) -> None:
    """Ranks measurements by how well they foretell what a network then gains.

    Args:
      runs: run directories, `runs/<experiment>/<run id>`, or patterns, of one stream. Measurements are those at each
        task's start. Gains are over a fresh network on the same task and seed: after a few updates as the probe gain
        records them, and over the task against the method reset.
      out: the folder of prediction.png, .pdf and .csv; by default `figures` in the directory of a run, or the working
        directory.
    """
    importlib.import_module("plastax.report").print_prediction(_found(runs), out)


def export(runs: Runs, /, format: Literal["parquet", "csv"] = "parquet", out: pathlib.Path | None = None) -> None:
    """Writes what runs recorded as plain tables, one file for each set of axes.

    Args:
      runs: run directories, or patterns, `'runs/rl_gymnax/*'`.
      format: parquet or csv.
      out: the folder; needed for several runs, by default `export` in the run's directory.
    """
    for path in loading.export([str(run) for run in _found(runs)], format, out):
        print(output.plain(str(path)))


def wandb_export(
    run: Annotated[pathlib.Path, tyro.conf.Positional],
    /,
    per_seed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    mode: Literal["offline", "online"] = "offline",
    project: str | None = None,
    out: pathlib.Path | None = None,
) -> None:
    """Writes W&B runs from a run's records, as if W&B had watched it.

    Args:
      run: the directory of a run, `runs/<experiment>/<run id>`.
      per_seed: one W&B run a seed, grouped by run and method, instead of one a method.
      mode: offline files, to be uploaded by `wandb sync`, or online.
      project: W&B project; by default WANDB_PROJECT or the experiment's name.
      out: the folder in whose `wandb` W&B's files go; by default the run's directory.
    """
    directory = _found([str(run)])[0]
    place = out or directory
    # W&B goes to a temporary directory where it cannot write, and to many it would be the same as nowhere.
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place):
        pass
    tracking = importlib.import_module("plastax.tracking")
    count = tracking.replay(directory, mode, project, per_seed=per_seed, out=place)
    print(output.plain(f"{count} W&B runs, {f'in {place}/wandb' if mode == 'offline' else 'online'}"))


def wandb_dashboard(
    project: Annotated[str, tyro.conf.Positional],
    run: Annotated[pathlib.Path | None, tyro.conf.Positional] = None,
    /,
) -> None:
    """Creates the W&B dashboard "spectra over tasks"; needs wandb-workspaces.

    Args:
      project: ENTITY/PROJECT.
      run: a run directory; only panels of what it has measured, instead of all that there can be.
    """
    print(importlib.import_module("plastax.tracking.dashboard").create(project, run))


def _found(runs: Sequence[str]) -> list[pathlib.Path]:
    if not runs:
        raise ConfigError("no run is given; name one or more of runs/<experiment>/<run id>")
    return loading.find(*runs)


def data(name: Annotated[str, tyro.conf.Positional], /, path: pathlib.Path | None = None, verify: bool = True) -> None:
    """Downloads a data set unless it is here, checks it and prints its card.

    Args:
      name: one of `plastax list data`, an .npz file, or a folder of images by class.
      path: the folder or archive of its files; by default they are searched for, then downloaded.
      verify: refuse files that are not the published ones, or incomplete.
    """
    print(output.plain(str(importlib.import_module("plastax.data").load(name, path, verify=verify).card)))


def runs(directory: Annotated[pathlib.Path, tyro.conf.Positional] = pathlib.Path("runs"), /) -> None:
    """Lists runs: state, progress, time left, best method so far.

    Args:
      directory: a directory of runs, of an experiment's runs, or of a single run.
    """
    output.Console().print(importlib.import_module("plastax.study.listing").table(directory))


def inspect_(args: Sequence[str]) -> None:
    """Reports on checkpoints of networks that were trained anywhere."""
    made = importlib.import_module("plastax.inspecting.command").run(args)
    importlib.import_module("plastax.report").print_table(made)
    print(output.plain(f"Everything is in {made.directory}"))


HERE = launch.Jobs()
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def sweep(args: Sequence[str]) -> None:
    """Runs an experiment in shards, here or as jobs; repeat it to continue."""

    def command(
        experiment: tyro.conf.Positional[str], /, jobs: tyro.conf.OmitArgPrefixes[launch.Jobs] = HERE
    ) -> tuple[str, launch.Jobs]:
        """Runs an experiment in shards, here or as jobs; repeat it to continue.

        Args:
          experiment: see `plastax run`, followed by its settings.
          jobs: how the shards are run.
        """
        return experiment, jobs

    with output.refusals():
        (experiment, jobs), settings = tyro.cli(command, args=args, return_unknown_args=True, prog="plastax sweep")
    submitted = launch.launch(experiment, jobs, settings)
    for i, job in enumerate(submitted):
        print(output.plain(f"shard {i}/{len(submitted)}: job {job.job_id}, {job.paths.stdout}"))
    if jobs.launcher == "local":
        failed = [job for job in submitted if job.exception() is not None]
        if failed:
            logs = ", ".join(str(job.paths.stderr) for job in failed)
            raise RunError(f"{len(failed)} of {len(submitted)} shards failed; the ends of their logs say why: {logs}")


def _later(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A command that returns the call, ready to be made, instead of making it."""

    @functools.wraps(command)
    def bound(*args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **options)

    return bound


def main(args: list[str] | None = None) -> None:
    """Runs the command line; a file or value that cannot be used ends it with one line and status 2."""
    output.make_lossy()
    commands: dict[str, Callable[..., Any]] = {
        "run": run,
        "list": list_,
        "report": report,
        "compare": compare,
        "predict": predict,
        "export": export,
        "wandb-export": wandb_export,
        "wandb-dashboard": wandb_dashboard,
        "data": data,
        "runs": runs,
        "sweep": sweep,
        "inspect": inspect_,
    }
    if args is None:
        args = sys.argv[1:]
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # As under `python -m`: methods and experiments may be modules here.
    if args[:1] == ["--version"]:
        return print(f"plastax {__version__}")
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    try:
        if args[:1] in (["run"], ["sweep"], ["inspect"]):
            return {"run": run, "sweep": sweep, "inspect": inspect_}[args[0]](args[1:])
        if args and not args[0].startswith("-") and args[0] not in commands:
            raise ConfigError.unknown("command", args[0], commands)
        with output.refusals():
            command = tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in commands.items()},
                prog="plastax",
                description=first_line(__doc__),
                args=args,
            )
        command()
    except (ConfigError, RecordError) as error:
        output.fail(f"error: {error}")
    except RunError as error:
        output.fail(f"error: {error}", error.status)
    except KeyboardInterrupt:
        output.fail("interrupted", 130)
    except OSError as error:
        # An OSError without a file is a bug, unless the disk is full.
        if error.filename is None and error.errno not in (None, *_FULL):
            raise
        said = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        elsewhere = args[0] in ("report", "predict", "export", "wandb-export") and error.errno in (*_CLOSED, *_FULL)
        output.fail(f"error: {said}{'; --out names another place to write to' if elsewhere else ''}")


if __name__ == "__main__":
    main()
