"""An experiment that compiles in no time: ``python -m tests.tiny_experiment <settings>``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments import _study
from plastax import run, settings
from plastax.methods import METHODS
from plastax.training import Training
from plastax.types import Probe, Program
from tests import killing

GROUPS: dict[str, Mapping[str, Any]] = {"methods": METHODS, "probes": {}}


@dataclass(frozen=True)
class Config(settings.Study):
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


def prepare(config: Any, name: str) -> tuple[run.Plan, _study.Make, list[Probe]]:
    """See `_study.Prepare`."""

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        return killing.network(_study.method_of(own, name).build(own.training.transformation()), steps=config.steps)

    return run.Plan(config.tasks, killing.UPDATES, killing.LENGTH, config.seeds), make, []


def main(args: list[str] | None = None) -> None:
    """Runs the study that the command line asks for."""
    config = settings.parse(Config, {"default": {}}, {}, GROUPS, args)
    _study.carry_out("tiny", config, GROUPS, lambda config: _study.build(config, GROUPS, prepare))


if __name__ == "__main__":
    settings.main(main)
