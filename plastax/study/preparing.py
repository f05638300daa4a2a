"""What experiments use to prepare a method's program: its method, its probes, and how its run is cut."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable

import jax
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods import METHODS, compose
from plastax.probes import PROBES, TrainabilityProbe
from plastax.runs.plan import Plan
from plastax.study import settings
from plastax.study.settings import Config
from plastax.types import Method, MethodConfig, Model, Probe


def method_of(config: Config, name: str) -> MethodConfig:
    """The method of a name, or the composition of several, with its settings in a configuration."""
    return compose([settings.entry(config, METHODS, member) for member in settings.members(name)])


def transformation(method: MethodConfig, inner: optax.GradientTransformation, model: Model) -> Method:
    """What a method builds; raises `ConfigError` unless it is an optax transformation."""
    built = method.build(inner, model)
    if not isinstance(built, optax.GradientTransformation):
        name = type(method).__name__
        raise ConfigError(f"methods: {name}.build gives {type(built).__name__}; an optax transformation is needed")
    return optax.with_extra_args_support(built)


def probes_of(config: Config, model: Model, learning_rate: float, steps: int) -> list[Probe]:
    """The chosen probes, built for a model.

    Args:
      config: from `configuration.configure`.
      model: the network they measure.
      learning_rate: for the probe ``trainability``.
      steps: gradient steps of a task, for the same probe.

    Raises:
      ConfigError: a spectrum has more nodes or probe vectors than the network has parameters.
    """
    size = tree.size(jax.eval_shape(model.init, tree.key_like()))
    found = {settings.label(name): settings.entry(config, PROBES, name) for name in config.probes}
    for (name, probe), setting in itertools.product(found.items(), ("order", "probes")):
        if (asked := getattr(probe, setting, 0)) > size:
            raise ConfigError(f"{name}.{setting}: {asked} is not allowed for {size} parameters; give at most as many")
    configs = (p.within(learning_rate, steps) if isinstance(p, TrainabilityProbe) else p for p in found.values())
    built = [probe.build(model) for probe in configs]
    for i, (name, probe) in enumerate(zip(found, built)):
        if not isinstance(probe, Probe):
            raise ConfigError(f"probes: {name}.build gives {type(probe).__name__}; a plastax.types.Probe is needed")
        if probe.name in [other.name for other in built[:i]]:
            raise ConfigError(
                f"probes: {name} records its values as {probe.name}/..., as another probe does; rename it"
            )
    return built


def alike(config: Config, *others: Hashable) -> Hashable:
    """A value equal for programs that measure alike, see `types.Program.alike`; None for settings without a hash.

    Args:
      config: has the settings of the probes.
      others: all other settings that a measurement depends on: of the stream, the model, the training.
    """
    probes = tuple(settings.entry(config, PROBES, name) for name in config.probes)
    found = (config.probes, probes, config.probe_every, *others)
    with contextlib.suppress(TypeError):
        hash(found)
        return found
    return None


def cut(config: Config, segments_per_task: int, updates: int, examples: int, steps: int) -> Plan:
    """Cuts a run into segments.

    Args:
      config: from `configuration.configure`.
      segments_per_task: calls of the compiled program per task.
      updates: updates per task.
      examples: examples, or environment steps, of a seed per update.
      steps: gradient steps per update.

    Raises:
      ConfigError: the segments do not divide a task, or a run has more gradient steps than 32 bits count.
    """
    if config.tasks * updates * steps > settings.INT:
        raise ConfigError(
            f"tasks: {config.tasks} of {updates * steps} gradient steps are not allowed: they are counted in 32 bits, "
            f"up to {settings.INT}; lower tasks, or the epochs or updates of a task"
        )
    if segments_per_task < 1 or updates % segments_per_task:
        raise ConfigError(f"segments_per_task: {segments_per_task} does not divide a task's {updates} updates")
    return Plan(config.tasks, updates, updates // segments_per_task, config.seeds * examples)
