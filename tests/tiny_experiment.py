"""An experiment that compiles in no time: ``python -m tests.tiny_experiment <settings>``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plastax.program.training import Training
from plastax.runs.plan import Plan
from plastax.study import settings
from plastax.study.experiment import Experiment, Prepared, Shared
from plastax.study.preparing import method_of
from plastax.types import Program
from tests import killing


@dataclass(frozen=True)
class Config(settings.Config):
    """A tiny experiment."""

    methods: settings.Methods = ("l2", "weight_decay")
    """Methods."""
    probes: tuple[str, ...] = ()
    """None."""
    seeds: int = 2
    """Seeds."""
    tasks: int = 3
    """Tasks."""
    training: Training = field(default_factory=lambda: Training("adam"))
    """Training."""
    steps: int = 1
    """Steps of the environment in an update, which take time."""


def prepare(config: Config, name: str, shared: None) -> Prepared:
    """See `Experiment`."""

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        return killing.network(method_of(own, name).build(own.training.transformation()), steps=config.steps)

    return Prepared(Plan(config.tasks, killing.UPDATES, killing.LENGTH, config.seeds), make, [])


EXPERIMENT = Experiment("tiny", Config, {"default": {}}, {}, prepare, lambda config: Shared(None))

if __name__ == "__main__":
    EXPERIMENT.main()
