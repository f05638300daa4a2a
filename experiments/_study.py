"""What all experiments share: from a configuration to a finished run and its report."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from plastax import (
    compilation,
    environment,
    memory,
    output,
    parallel,
    report,
    run,
    runs,
    segments,
    settings,
    starting,
    sweep,
    tracking,
    tree,
)
from plastax.errors import ConfigError
from plastax.methods import METHODS, compose
from plastax.probes import PROBES, TrainabilityProbe
from plastax.types import MethodConfig, Model, Probe, Program

Make = Callable[[Mapping[str, Any]], Program]
"""``(dotted setting -> value, maybe traced) -> program`` of one network."""

Prepare = Callable[[Any, str], tuple[run.Plan, Make, Sequence[Probe]]]
"""``(config, name of the method)`` -> how the run is cut, its programs, what they measure; raises `ConfigError`, and
compiles nothing."""

Build = Callable[[Any], tuple[list[parallel.Batch], run.Plan]]
"""``(config) -> (the programs over all networks; the plan)``; raises `ConfigError` before anything compiles."""


def method_of(config: Any, name: str) -> MethodConfig:
    """The method of this name under its settings in a configuration."""
    return compose([getattr(config, member, METHODS[member]) for member in settings.members(name)])


def looks(config: Any, model: Model, learning_rate: float, steps: int) -> list[Any]:
    """The settings of the chosen probes; that of trainability also knows the step size and the steps of a task.

    Raises:
      ConfigError: a spectrum of more nodes, or from more probe vectors, than the network has parameters.
    """
    size = tree.size(jax.eval_shape(model.init, tree.key_like()))
    for name, setting in itertools.product(config.probes, ("order", "probes")):
        if (asked := getattr(getattr(config, name, None), setting, 0)) > size:
            raise ConfigError(f"{name}.{setting}: {asked} is not allowed for {size} parameters; give at most as many")
    found = [getattr(config, name, PROBES[name]) for name in config.probes]
    return [look.within(learning_rate, steps) if isinstance(look, TrainabilityProbe) else look for look in found]


def rare(config: Any) -> list[str]:
    """Which of the chosen probes are due in so few tasks that there is no course over tasks, in lines."""
    lines = []
    for name in config.probes:
        every = math.lcm(config.probe_every, getattr(config, name, PROBES[name]).every)
        count = len(range(0, config.tasks, every))
        if count < min(3, config.tasks):
            said = "--probe-every" if every == config.probe_every else f"--{name.replace('_', '-')}.every"
            lines.append(f"{name} will be measured in {count} of {config.tasks} tasks, every {every} ({said})")
    return lines


def cut(config: Any, updates: int, examples: int, steps: int) -> run.Plan:
    """How a run is cut.

    Args:
      config: from `settings.parse`.
      updates: of a task.
      examples: of a seed in an update, or its environment steps.
      steps: gradient steps in an update.

    Raises:
      ConfigError: the segments do not divide a task, or there are more gradient steps than an optimiser counts.
    """
    if config.tasks * updates * steps > settings.INT:
        raise ConfigError(
            f"tasks: {config.tasks} of {updates * steps} gradient steps are not allowed: they are counted in 32 bits, "
            f"up to {settings.INT}; lower tasks, or the epochs or updates of a task"
        )
    if config.segments_per_task < 1 or updates % config.segments_per_task:
        raise ConfigError(f"segments_per_task: {config.segments_per_task} does not divide a task's {updates} updates")
    return run.Plan(config.tasks, updates, updates // config.segments_per_task, config.seeds * examples)


def build(
    config: Any,
    groups: Mapping[str, settings.Registry],
    prepare: Prepare,
    *,
    fixed: Sequence[str] = (),
    static: Sequence[str] = (),
) -> tuple[list[parallel.Batch], run.Plan]:
    """The programs of all arms: one for all those that differ only in numbers which may be traced.

    Args:
      config: from `settings.parse`.
      groups: of the settings.
      prepare: the programs of one method.
      fixed: groups of settings that no sweep may change.
      static: settings that are constants of the programs whatever their type.

    Returns:
      The batches, those of this shard first and none of both; the plan.

    Raises:
      ConfigError: from ``prepare``; or arms that cannot lie in one record.
    """
    arms = sweep.arms(config, groups, fixed)
    own = {arm.label for arm in settings.share_of(arms, config.shard)}
    # Arms of other shards are built too, for the names of the record's axes; who trains them compiles them.
    both = ([arm for arm in arms if (arm.label in own) is mine] for mine in (True, False))
    groups_of_arms = [group for part in both for group in sweep.together(part, static)]
    prepared = [prepare(group[0].config, group[0].method) for group in groups_of_arms]
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    plan = prepared[0][0]
    first: dict[str, tuple[str, Any]] = {}
    for group, (own_plan, _, probes) in zip(groups_of_arms, prepared):
        arm, coords = group[0], segments.labels(probes)[1]
        other, others = first.setdefault(arm.method, (arm.label, coords))
        if own_plan != plan or coords != others:
            what, than = ("updates", groups_of_arms[0][0].label) if coords == others else ("axes", other)
            raise ConfigError(
                f"sweep: {arm.label} has other {what} than {than}, and a record has them once; make it a run of its own"
            )
    batches = [
        parallel.batch(
            make, {arm.label: sweep.traced_values(arm, static) for arm in group}, seeds, config.seed_chunk,
            0 if config.dry_run else config.devices,  # Those of another machine than this one, maybe.
        )
        for group, (_, make, _) in zip(groups_of_arms, prepared)
    ]  # fmt: skip
    return batches, plan


def _used(config: Any, groups: Mapping[str, settings.Registry]) -> list[object]:
    """What a configuration is made of, for `environment.own_sources`."""
    entries = [
        registry[member]
        for field, registry in groups.items()
        for name in getattr(config, field)
        for member in settings.members(name)
    ]
    names = {name for registry in groups.values() for name in registry}
    others = (getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in names)
    return [*type(config).__mro__[1:-1], *entries, *filter(dataclasses.is_dataclass, others)]


def _devices(config: Any, arms: int) -> int | None:
    """How many devices networks are spread over, None where each trains chunks of the same size anyway."""
    return None if config.seed_chunk else min(config.devices or len(jax.devices()), arms * config.seeds)


def carry_out(
    experiment: str,
    config: Any,
    groups: Mapping[str, settings.Registry],
    build: Build,
    extra: Mapping[str, Any] | None = None,
    console: output.Console | None = None,
) -> None:
    """Runs the study of a configuration and reports it.

    Args:
      experiment: its name.
      config: from `settings.parse`.
      groups: of the settings.
      build: the programs of a configuration.
      extra: what else belongs to the stored settings.
      console: where to print.
    """
    console = console or output.Console()
    if config.dry_run:
        count, plan = len(sweep.arms(config, groups)), build(config)[1]
        output.say(console, f"{count} arms, {config.seeds} seeds, {plan.segments} segments each: nothing was run")
        return
    if config.compilation_cache:
        compilation.use_cache()
    batches, plan = build(config)
    for batch in batches:
        memory.check_state(batch, settings.to_json(config, groups))
    if config.auto_chunk:
        chunk = memory.fitting_chunk(
            lambda chunk: build(dataclasses.replace(config, seed_chunk=chunk))[0],
            config.seeds,
            plan.updates_per_segment,
            settings.to_json(config, groups),
        )
        output.say(console, f"seed_chunk {chunk}: {chunk or config.seeds} of {config.seeds} seeds fit side by side")
        config = dataclasses.replace(config, seed_chunk=chunk)
        batches, plan = build(config)
    chosen = settings.to_json(config, groups) | {"updates_per_task": plan.updates_per_task} | dict(extra or {})
    arms = [arm for batch in batches for arm in batch.arms]
    own = settings.share_of([arm.label for arm in sweep.arms(config, groups)], config.shard)
    mine = [batch for batch in batches if batch.arms[0] in own]
    here = environment.environment(_used(config, groups), _devices(config, len(arms)))
    directory, run_id, note = starting.run_directory(config, experiment, chosen, here)
    for line in filter(None, [note, *rare(config)]):
        output.say(console, line)
    described = {"experiment": experiment, "run_id": run_id, "hash": settings.identity(chosen), "settings": chosen}
    described |= run.axes(batches)
    if config.sweep:
        described["arms"] = sweep.described(sweep.arms(config, groups))
    sinks = tracking.sinks(config.wandb, console)
    saving = run.Saving(config.checkpoint_every, config.checkpoint_minutes, config.checkpoint_keep)
    read = functools.cache(report.load)
    shares = run.study(
        directory, described, mine, plan, sinks, saving=saving, shard=config.shard, here=here,
        same=config.resume is None and bool(config.shard), report=lambda: report.write(read(directory)),
    )  # fmt: skip
    if (status := runs.status(directory)).state != "finished":
        output.say(
            console,
            f"{status.done} of {len(arms) * plan.segments} segments are recorded in {directory}; the last shard writes "
            "the report",
        )
        return
    report.print_table(read(directory), console)
    for method, share in shares.items():
        output.say(console, f"{method}: {share}")
    tracking.publish_safely(directory, config.wandb)
    output.say(console, f"\nEverything is in {directory}")
    if command := tracking.upload_command(directory):
        output.say(console, f"Upload to W&B: {command}")
