"""Experiments on streams of environments: what they share, and how PPO becomes a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plastax.errors import ConfigError
from plastax.models import ACTOR_CRITICS
from plastax.program import segments
from plastax.rl import STREAMS, Own, ppo
from plastax.rl.environment import EnvironmentStream
from plastax.study import names, settings
from plastax.study.experiment import Experiment, Prepared, Shared, with_defaults
from plastax.study.preparing import alike, cut, method_of, probes_of, transformation
from plastax.types import Program


@dataclass(frozen=True)
class Config(settings.Config):
    """Settings of all experiments on streams of environments."""

    stream: str = "cartpole_chain"
    """What changes from task to task (`plastax list streams`), or your own stream or environment, module:object."""
    model: str = "mlp"
    """Network: mlp, conv for image observations (minatar_chain), or your own, module:object."""
    steps_per_task: int = 40_960
    """Environment steps of a seed in each task; a multiple of ppo.num_envs x ppo.num_steps."""
    segments_per_task: int = 1
    """Calls of the compiled program per task. More calls show progress and save checkpoints more often."""
    ppo: ppo.PPO = field(default_factory=ppo.PPO)
    """The agent."""


def experiment(
    name: str, config: type[Config], defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment[Any]:
    """An experiment on a stream of environments.

    Args:
      name: its name.
      config: its settings.
      defaults: dotted setting -> value, over the defaults of ``config``.
      presets: name -> dotted setting -> value, over ``defaults``.
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


def share(config: Config) -> Shared:
    """Builds streams, one for all arms with the same stream settings.

    The source of your own environment is part of the settings that ``config.json`` keeps.

    Raises:
      ConfigError: there is no such environment, or an object is in the place of its name.
    """
    stream, recorded = settings.choice(config, "stream"), {}
    env = getattr(stream, "env", "")
    if not isinstance(env, str):
        raise ConfigError(
            f"stream.env: a {type(env).__name__} is given; give it a name, plastax.rl.ENVIRONMENTS['mine'] = ..., and "
            "that name here"
        )
    if not isinstance(stream, Own) and (":" in env or env in names.installed("environments")):
        recorded["env_source"] = names.find("environments", env, STREAMS, "stream.env").origin["source"]
    return Shared(functools.cache(lambda stream: stream.build()), recorded)


def prepare(config: Config, name: str, stream_of: Callable[[Any], EnvironmentStream]) -> Prepared:
    """See `Experiment`. `make` builds the stream, after all checks: gymnax compiles as it makes environments."""
    stream, agent = settings.choice(config, "stream"), config.ppo
    spaces = stream.spaces()
    if config.steps_per_task < 1 or config.steps_per_task % agent.steps_per_update:
        raise ConfigError(
            f"steps_per_task: {config.steps_per_task} is not a multiple of an update's {agent.steps_per_update} steps"
        )
    updates, steps = config.steps_per_task // agent.steps_per_update, agent.epochs * agent.minibatches
    plan = cut(config, config.segments_per_task, updates, agent.steps_per_update, steps)
    method = method_of(config, name)
    size, continuous = ppo.action_size(spaces)
    chosen = settings.choice(config, "model")
    options = settings.with_options(chosen, config.model, name, method.model_options)
    model = options.build(spaces.observation_shape, size, continuous=continuous)
    model = model._replace(batch_like=ppo.batch_like(agent, spaces))
    probes = probes_of(config, model, agent.learning_rate, updates * steps)
    transformation(method, agent.optimizer(), model)  # Raises what it would raise in `make`.

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method = method_of(own, name)
        return ppo.program(
            own.ppo,
            stream_of(stream),
            model,
            transformation(method, own.ppo.optimizer(), model),
            probes,
            updates_per_task=updates,
            needs_boundary=method.needs_boundary,
            due=segments.task_borders(updates, config.probe_every),
            alike=None if values else alike(config, stream, options, agent, updates),
        )

    return Prepared(plan, make, probes, model)
