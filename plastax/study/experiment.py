"""An experiment: its settings, and how they become compiled programs, a run and a report.

`Experiment.main` goes from a command line to a report in four steps::

    parse   command line -> configuration                          (command_line.parse)
    share   configuration -> what all arms share: data, streams    (supervised, reinforcement)
    build   configuration -> arms -> compiled programs             (sweep, Experiment.prepare, parallel.batch)
    run     programs -> records, checkpoints, report               (loop.study, report.write)

`README.md` beside this file follows one setting through them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from plastax import machine, output, platforms, report, tracking
from plastax.errors import ConfigError
from plastax.program import parallel, segments
from plastax.records import environment, layout, lifecycle
from plastax.runs import beside, compilation, loop, memory, networks
from plastax.runs.compiled import fitting_chunk
from plastax.runs.plan import Plan, Saving
from plastax.study import command_line, forecast, settings, starting, sweep, tuning
from plastax.study.settings import Config, Registry
from plastax.types import Model, Probe, Program

C = TypeVar("C", bound=Config)


class Prepared(NamedTuple):
    """The training of one method.

    Attributes:
      plan: the segments of the run.
      make: ``{dotted setting: value} -> program`` of one network; the values may be traced.
      probes: what the program measures.
      model: the network.
    """

    plan: Plan
    make: Callable[[Mapping[str, Any]], Program]
    probes: Sequence[Probe]
    model: Model | None = None


class Shared(NamedTuple):
    """What all arms of a study share; it is made once.

    Attributes:
      value: a data set or streams, for `Experiment.prepare`.
      recorded: its entries in the settings of ``config.json``.
      said: a text about it for the console.
      style: the `rich` style of that text.
    """

    value: Any
    recorded: Mapping[str, Any] = {}
    said: str = ""
    style: str | None = None


class Built(NamedTuple):
    """A study that is ready to be compiled.

    Attributes:
      arms: all arms, those of other shards too.
      own: labels of the arms that this shard trains.
      batches: the programs of all arms. Those of this shard come first; no program is of two shards.
      plan: the segments of every arm.
      said: what was not found in a network of one's own.
    """

    arms: Sequence[sweep.Arm]
    own: frozenset[str]
    batches: list[parallel.Batch]
    plan: Plan
    said: tuple[str, ...] = ()


def _nothing(config: Any) -> None:
    """For experiments that download nothing."""


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """An experiment.

    Attributes:
      name: the folder of its runs.
      config: the class of its settings.
      presets: name -> dotted setting -> value, over the defaults; see `configuration.configure`.
      choices: field -> registry of which it names one entry.
      prepare: ``(config, method, shared) -> Prepared``, where ``shared`` is `Shared.value`. It compiles nothing and
        raises `ConfigError` for settings that do not fit together.
      share: ``config -> Shared``; raises `ConfigError` if data cannot be loaded.
      stand_in: ``config -> value`` of the shapes of `Shared.value`, so that settings can be refused before a download;
        None if there is nothing to download.
      rates: the settings that are step sizes. The probe ``trainability`` compares eigenvalues with them, so with that
        probe they are constants of the program and cannot be traced.
      fixed: groups of settings that cannot be swept.
    """

    name: str
    config: type[C]
    presets: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Registry]
    prepare: Callable[[C, str, Any], Prepared]
    share: Callable[[C], Shared]
    stand_in: Callable[[C], Any] = _nothing
    rates: Sequence[str] = ("training.learning_rate",)
    fixed: Sequence[str] = ()

    def parse(self, args: Sequence[str] | None = None, prog: str | None = None) -> C:
        """Parses a command line, `sys.argv[1:]` by default; see `command_line.parse`."""
        return command_line.parse(self.config, self.presets, self.choices, args, prog)

    def main(self, args: Sequence[str] | None = None, prog: str | None = None) -> None:
        """Runs the study of a command line, see `command_line.parse`; see `settings.main` for the exit status."""
        settings.main(lambda: self.run(self.parse(args, prog)))

    def build(self, config: C, value: Any = None) -> Built:
        """Builds the programs of all arms: one for all arms that differ in traced settings only.

        Args:
          config: from `parse`.
          value: `Shared.value` or a stand-in for it; by default, call `share`.

        Raises:
          ConfigError: ``prepare`` refuses an arm, or arms do not fit into one record.
        """
        value, config = self.share(config).value if value is None else value, _chosen(config)
        arms = sweep.arms(config, self.fixed)
        own = frozenset(arm.label for arm in settings.of_shard(arms, config.shard))
        static = tuple(self.rates) if "trainability" in config.probes else ()
        # Arms of other shards are built too, for the axes of the record, but not compiled.
        both = ([arm for arm in arms if (arm.label in own) is mine] for mine in (True, False))
        groups = [group for part in both for group in sweep.together(part, static)]
        prepared = [self.prepare(group[0].config, group[0].method, value) for group in groups]
        _check_one_record(groups, prepared)
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        devices = 0 if config.dry_run else config.devices  # A dry run may be for another machine.
        batches = [
            parallel.batch(
                one.make,
                {arm.label: sweep.traced_values(arm, static) for arm in group},
                seeds,
                config.seed_chunk or 0,
                devices,
            )
            for group, one in zip(groups, prepared)
        ]
        models = [one.model for one in prepared if one.model is not None]
        return Built(arms, own, batches, prepared[0].plan, forecast.lacking(models))

    def run(
        self,
        config: C,
        console: output.Console | None = None,
        *,
        callback: networks.Callback | None = None,
        verbose: bool = True,
        reuse: bool = False,
    ) -> Path | None:
        """Runs the study of a configuration and reports it.

        Args:
          config: from `parse`.
          console: where to print; by default a new one.
          callback: see `networks.Callback`.
          verbose: whether to print the card of the data and the summary.
          reuse: whether to return a finished run of the same settings and code instead of making another.

        Returns:
          The run directory; None for a dry run.

        Raises:
          ConfigError: a setting is refused; nothing was compiled.
          RunError: see `loop.study`.
          Stopped: a signal asked it to stop.
        """
        console = console or output.Console()
        tuned: Mapping[str, Any] = {}
        if config.tune_on and not config.arms:
            output.say(console, "arms compete on the first tasks:")
            tried = self.run(tuning.trial(config, tuple(self.fixed)), console, verbose=False, reuse=True)
            if tried is None:
                return None
            if (status := lifecycle.status(tried)).state != "finished":
                output.say(
                    console, f"{tried} is {status.state}; once it is finished, this command trains the best arms"
                )
                return tried
            config, tuned = tuning.winners(tried, config)
            output.say(console, f"the best arms on all tasks: {', '.join(config.arms)}")
        elif config.arms and config.resume is not None:
            tuned = layout.read_config(config.resume).get("tuning", {})
        machine.check()
        config = _chosen(config)
        tracking.check(config.track, config.wandb)
        starting.check_writable(config, self.name)
        with memory.explained(self.name, settings.to_json(config)):
            if (stand_in := self.stand_in(config)) is not None:
                self.build(config, stand_in)
            shared = self.share(config)
            built = self.build(config, shared.value)
            if shared.said and (verbose or shared.style):
                output.say(console, shared.said, shared.style, wrap=True)
            programs = sum(batch.arms[0] in built.own for batch in built.batches)
            for line in (*forecast.lines(config, built.arms, len(built.own), programs), *built.said):
                output.say(console, line, wrap=True)
            if config.dry_run:
                output.say(console, "nothing was run")
                return None
            return self._carry_out(config, shared, built, console, callback, verbose, tuned, reuse)

    def _carry_out(
        self,
        config: C,
        shared: Shared,
        built: Built,
        console: output.Console,
        callback: networks.Callback | None,
        verbose: bool,
        tuned: Mapping[str, Any],
        reuse: bool,
    ) -> Path:
        if config.compilation_cache:
            compilation.use_cache()
        for batch in built.batches:
            memory.check_state(batch, settings.to_json(config))
        if config.auto_chunk:
            config = self._chunked(config, shared, built, console)
            built = self.build(config, shared.value)
        arms = [arm.label for arm in built.arms]
        chosen = settings.to_json(config) | {"updates_per_task": built.plan.updates_per_task} | dict(shared.recorded)
        here = environment.environment(settings.used(config), _devices(config, len(arms)))
        directory, run_id, note = starting.run_directory(config, self.name, chosen, here, reuse=reuse)
        asides = settings.asides(config)
        mark = settings.identity(chosen, asides)
        for line in filter(None, [*settings.fleeting(config), forecast.duration(directory.parent, mark), note]):
            output.say(console, line)
        if reuse and lifecycle.status(directory).state == "finished":
            return directory
        output.say(console, f"run directory: {directory}")
        described = {"experiment": self.name, "run_id": run_id, "settings": chosen}
        described |= {"hash": mark, "asides": asides, **loop.axes(built.batches)}
        if own := settings.origins(config):
            described["own"] = own
        if arms != list(config.methods):
            described["arms"] = sweep.described(built.arms)
        if tuned:
            described["tuning"] = tuned
        read = functools.cache(report.load_run)
        batches = [batch for batch in built.batches if batch.arms[0] in built.own]
        count = min(beside.count(config.arms_at_once, callback is not None), len(batches))
        lines = tracking.Lines(console)
        sinks = [tracking.sinks(config.wandb, config.track, lines) for _ in range(max(1, count))]
        times = loop.study(
            directory,
            described,
            batches,
            built.plan,
            sinks[0],
            beside=sinks[1:],
            saving=Saving(
                config.checkpoint_every, config.checkpoint_minutes, config.checkpoint_keep, config.keep_params
            ),
            shard=config.shard,
            here=here,
            same=config.resume is None and bool(config.shard),
            report=(lambda: report.write(read(directory))) if config.report else None,
            callback=callback,
            waiting=functools.partial(output.waiting, console, clock=count == 1),
        )
        if (status := lifecycle.status(directory)).state != "finished":
            output.say(
                console,
                f"{status.done} of {len(arms) * built.plan.segments} segments are recorded in {directory}"
                f"{'; the last shard writes the report' * config.report}",
            )
            return directory
        if verbose and config.report:
            report.print_table(read(directory), console)
        if verbose:
            for method, spent in times.items():
                output.say(console, f"{method}: {spent}")
        if "wandb" in config.track:
            tracking.publish_safely(directory, config.wandb)
        output.say(console, f"\nEverything is in {directory}")
        for line in tracking.commands(config.track, directory):
            output.say(console, line)
        return directory

    def _chunked(self, config: C, shared: Shared, built: Built, console: output.Console) -> C:
        """The configuration with the largest ``seed_chunk`` that fits into device memory."""
        with output.waiting(console, "finding the largest seed_chunk that fits into memory"):
            chunk = fitting_chunk(
                lambda chunk: self.build(dataclasses.replace(config, seed_chunk=chunk), shared.value).batches,
                config.seeds,
                built.plan.updates_per_segment,
                settings.to_json(config),
            )
        output.say(console, f"seed_chunk {chunk}: {chunk or config.seeds} of {config.seeds} seeds fit at once")
        return dataclasses.replace(config, seed_chunk=chunk)


def with_defaults(
    defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Presets laid over the defaults of an experiment: name -> dotted setting -> value."""
    return {name: {**defaults, **changes} for name, changes in presets.items()}


def _check_one_record(groups: Sequence[Sequence[sweep.Arm]], prepared: Sequence[Prepared]) -> None:
    """Refuses arms whose records have other lengths or axes than the first arm."""
    first: dict[str, tuple[str, Any]] = {}
    for (arm, *_), (plan, _, probes, _) in zip(groups, prepared):
        coords = segments.labels(probes)[1]
        other, others = first.setdefault(arm.method, (arm.label, coords))
        if plan != prepared[0].plan or coords != others:
            what, than = ("updates", groups[0][0].label) if coords == others else ("axes", other)
            raise ConfigError(
                f"sweep: {arm.label} has other {what} than {than}, and all arms share one record; run it on its own"
            )


def _chosen(config: C) -> C:
    """The configuration with the ``seed_chunk`` of this device, if it has none."""
    if config.seed_chunk is not None:
        return config
    return dataclasses.replace(config, seed_chunk=platforms.chosen().seed_chunk)


def _devices(config: Config, arms: int) -> int:
    """The devices that networks are spread over."""
    return min(config.devices or len(jax.devices()), -(-arms * config.seeds // (config.seed_chunk or 1)))
