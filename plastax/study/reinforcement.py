"""Experiments on streams of environments: what they share, and how an agent becomes a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plastax.errors import ConfigError
from plastax.models import ACTOR_CRITICS
from plastax.program import segments
from plastax.rl import STREAMS, Own, dqn, ppo
from plastax.rl.agent import Settings, action_size
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
    agent: Literal["ppo", "dqn"] = "ppo"
    """ppo, or dqn: double deep Q-learning with replay, for discrete actions."""
    model: str = "mlp"
    """Network: mlp, conv for image observations (minatar_chain), or your own, module:object."""
    steps_per_task: int = 40_960
    """Environment steps of a seed in each task; a multiple of the agent's num_envs x num_steps."""
    segments_per_task: int = 1
    """Calls of the compiled program per task. More calls show progress and save checkpoints more often."""
    ppo: ppo.PPO = field(default_factory=ppo.PPO)
    """Of the agent ppo."""
    dqn: dqn.DQN = field(default_factory=dqn.DQN)
    """Of the agent dqn."""

    @property
    def unused(self) -> frozenset[str]:
        """The other agent. Runs of PPO have the hash that they had before there was another."""
        return frozenset({"agent", "dqn"} if self.agent == "ppo" else {"ppo"})


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
        rates=("ppo.learning_rate", "dqn.learning_rate"),
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
    stream, module = settings.choice(config, "stream"), {"ppo": ppo, "dqn": dqn}[config.agent]
    agent: Settings = getattr(config, config.agent)
    spaces = stream.spaces()
    batch_like = module.batch_like(agent, spaces)
    if config.steps_per_task < 1 or config.steps_per_task % agent.steps_per_update:
        raise ConfigError(
            f"steps_per_task: {config.steps_per_task} is not a multiple of an update's {agent.steps_per_update} steps"
        )
    updates = config.steps_per_task // agent.steps_per_update
    agent.check_task(updates)
    plan = cut(config, config.segments_per_task, updates, agent.steps_per_update, agent.gradient_steps)
    method = method_of(config, name)
    size, continuous = action_size(spaces)
    chosen = settings.choice(config, "model")
    options = settings.with_options(chosen, config.model, name, method.model_options)
    model = options.build(spaces.observation_shape, size, continuous=None if config.agent == "dqn" else continuous)
    model = model._replace(batch_like=batch_like)
    probes = probes_of(config, model, agent.learning_rate, updates * agent.gradient_steps)
    transformation(method, agent.optimizer(), model)  # Raises what it would raise in `make`.

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method, agent = method_of(own, name), getattr(own, own.agent)
        return module.program(
            agent,
            stream_of(stream),
            model,
            transformation(method, agent.optimizer(), model),
            probes,
            updates_per_task=updates,
            needs_boundary=method.needs_boundary,
            due=segments.task_borders(updates, config.probe_every),
            alike=None if values else alike(config, stream, options, agent, updates),
        )

    return Prepared(plan, make, probes, model)
