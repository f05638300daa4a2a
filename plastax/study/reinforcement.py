"""Experiments on streams of environments: PPO, and what they share beside their defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plastax.errors import ConfigError
from plastax.models import ACTOR_CRITICS
from plastax.program import segments
from plastax.rl import STREAMS, ppo
from plastax.rl.environment import EnvironmentStream
from plastax.study import settings
from plastax.study.experiment import Experiment, Prepared, Shared, cut, method_of, probes_of, with_defaults
from plastax.types import Program


@dataclass(frozen=True)
class Config(settings.Study):
    """What every experiment on a stream of environments can be told."""

    stream: str = "cartpole_chain"
    """What changes from task to task (`python -m plastax list streams`)."""
    model: str = "mlp"
    """Network: mlp, or conv for image observations (minatar_chain)."""
    steps_per_task: int = 40_960
    """Environment steps of one seed in each task; a multiple of ppo.num_envs x ppo.num_steps."""
    segments_per_task: int = 1
    """Calls of the compiled program a task: more show progress and checkpoint more often."""
    ppo: ppo.PPO = field(default_factory=ppo.PPO)
    """The agent."""


def experiment(
    name: str, config: type[Config], defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment[Any]:
    """An experiment on a stream of environments.

    Args:
      name: of the experiment.
      config: its settings.
      defaults: dotted setting -> value, over those of ``config``.
      presets: name -> what it changes in the defaults.
    """
    return Experiment(
        name,
        config,
        with_defaults(defaults, presets),
        {"stream": STREAMS, "model": ACTOR_CRITICS},
        prepare,
        share,
        rate="ppo.learning_rate",
    )


def share(config: Any) -> Shared:
    """What builds the stream of its settings, one for all arms that have the same."""
    return Shared(functools.cache(lambda stream: stream.build()))


def prepare(config: Any, name: str, stream_of: Callable[[Any], EnvironmentStream]) -> Prepared:
    """See `Experiment`. The stream is built by the programs, in the end: gymnax compiles as it makes environments."""
    spaces, agent = config.stream_settings.spaces(), config.ppo
    if config.steps_per_task < 1 or config.steps_per_task % agent.steps_per_update:
        raise ConfigError(
            f"steps_per_task: {config.steps_per_task} is not a multiple of an update's {agent.steps_per_update} steps"
        )
    updates, steps = config.steps_per_task // agent.steps_per_update, agent.epochs * agent.minibatches
    plan = cut(config, config.segments_per_task, updates, agent.steps_per_update, steps)
    method = method_of(config, name)
    size, continuous = ppo.action_size(spaces)
    options = settings.with_options(config.model_settings, config.model, name, method.model_options)
    model = options.build(spaces.observation_shape, size, continuous=continuous)
    model = model._replace(batch_like=ppo.batch_like(agent, spaces))
    probes = probes_of(config, model, agent.learning_rate, updates * steps)
    method.build(agent.optimizer(), model)  # Refused now, if at all.

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method = method_of(own, name)
        return ppo.program(
            own.ppo,
            stream_of(config.stream_settings),
            model,
            method.build(own.ppo.optimizer(), model),
            probes,
            updates_per_task=updates,
            needs_boundary=method.needs_boundary,
            due=segments.task_borders(updates, config.probe_every),
        )

    return Prepared(plan, make, probes)
