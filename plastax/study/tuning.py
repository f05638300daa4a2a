"""Tuning that does not peek: arms compete on the first part of the stream, and the best of each method starts over.

`trial` is the competition: all arms of a sweep, the first tasks, the first half of the seeds. `winners` is the study
that is reported: of each method the best arm, all tasks, the other seeds. Both are runs of their own.

References:
  Mesbahi et al., "Position: lifetime tuning is incompatible with continual reinforcement learning", arXiv 2404.02113:
  hyperparameters that were tuned on the whole stream hide the loss of plasticity.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from plastax.errors import ConfigError
from plastax.study import sweep
from plastax.study.configuration import checked
from plastax.study.settings import C


def trial(config: C, fixed: tuple[str, ...] = ()) -> C:
    """The configuration of the competition, which measures no probes.

    Args:
      config: of the study, with ``tune_on`` in (0, 1).
      fixed: groups of settings that cannot be swept.

    Raises:
      ConfigError: there is nothing to choose from, or there are too few tasks or seeds.
    """
    tasks, seeds = int(config.tune_on * config.tasks + 1e-9), (config.seeds + 1) // 2
    if config.resume is not None:
        raise ConfigError(f"tune_on: {config.tune_on} is not allowed with --resume; repeat the command without it")
    if len(sweep.arms(config, fixed)) == len(config.methods):
        raise ConfigError("tune_on: no method has several arms to choose from; give --sweep method.X=A,B")
    if tasks < 1:
        raise ConfigError(
            f"tune_on: {config.tune_on} of {config.tasks} tasks is less than one; give --tasks "
            f"{math.ceil(1 / config.tune_on)} or more, or a larger part"
        )
    if config.seeds < 2:
        raise ConfigError("tune_on: 1 seed cannot both choose and report; give --seeds 2 or more (6 for intervals)")
    checked(_reported(config, ()))
    return checked(dataclasses.replace(config, tune_on=0.0, tasks=tasks, seeds=seeds, probes=(), keep_params=0))


def winners(run: Path, config: C) -> tuple[C, dict[str, Any]]:
    """The configuration of the reported study, and what its ``config.json`` says of how its arms were chosen.

    The best arm has the best mean score over all tasks and seeds of the competition; an arm with a diverged seed is
    chosen only if all arms of its method have one.

    Args:
      run: the finished competition.
      config: of the study, see `trial`.
    """
    from plastax.report import read, selection  # Imported on use: with it come pandas and xarray.

    data = read(run)
    best, values = selection.chosen(data, tasks=lambda count: slice(0, count))
    entry = {
        "run": run.name,
        "tune_on": config.tune_on,
        "tasks": data.sizes["task"],
        "seeds": data.seed.values.tolist(),
        "arms": {method: data.method.values.tolist().count(method) for method in best},
        "values": {label: None if value != value else value for label, value in values.items()},
    }
    return _reported(config, tuple(best.values())), entry


def _reported(config: C, arms: tuple[str, ...]) -> C:
    """The study of some arms on the seeds that do not choose."""
    chose = (config.seeds + 1) // 2
    return dataclasses.replace(config, arms=arms, first_seed=config.first_seed + chose, seeds=config.seeds - chose)
