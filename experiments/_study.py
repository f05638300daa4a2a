"""What all experiments share: from a configuration to a finished run and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from plastax import compilation, memory, parallel, report, run, settings, tracking
from plastax.types import Program

Build = Callable[[Any], tuple[dict[str, Program], run.Plan]]
"""``(config) -> (one program a method, over seeds; the plan)``; raises `ConfigError` before anything compiles."""


def carry_out(
    experiment: str,
    config: Any,
    groups: Mapping[str, settings.Registry],
    build: Build,
    extra: Mapping[str, Any] | None = None,
    console: Console | None = None,
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
    console = console or Console()
    if config.compilation_cache:
        compilation.use_cache()
    programs, plan = build(config)
    keys = parallel.seed_keys(range(config.first_seed, config.first_seed + config.seeds))
    if config.auto_chunk:
        chunk = memory.fitting_chunk(
            lambda chunk: build(dataclasses.replace(config, seed_chunk=chunk))[0],
            keys,
            plan.updates_per_segment,
            settings.to_json(config, groups),
        )
        console.print(f"seed_chunk {chunk}: {chunk or config.seeds} of {config.seeds} seeds fit side by side")
        config = dataclasses.replace(config, seed_chunk=chunk)
        programs, plan = build(config)
    chosen = settings.to_json(config, groups) | {"updates_per_task": plan.updates_per_task} | dict(extra or {})
    directory, run_id, note = settings.run_directory(config, experiment, chosen)
    if note:
        console.print(note, markup=False, soft_wrap=True)
    described = {"experiment": experiment, "run_id": run_id, "hash": settings.identity(chosen), "settings": chosen}
    sinks = tracking.sinks(config.wandb, console)
    saving = run.Saving(config.checkpoint_every, config.checkpoint_minutes, config.checkpoint_keep)
    shares = run.study(directory, described, programs, keys, plan, sinks, saving=saving)
    report.write(directory)
    report.print_table(directory, console)
    for method, share in shares.items():
        console.print(f"{method}: {share}", markup=False, highlight=False)
    tracking.publish_safely(directory, config.wandb)
    console.print(f"\nEverything is in [bold]{directory}[/bold]")
