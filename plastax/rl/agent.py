"""What all agents share: settings, state, episodes, task switches and probes, put together to a `Program`.

An agent brings its `Network`, what a batch is, and what happens in one update. `ppo` and `dqn` are agents.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from plastax import ranges, tree
from plastax.curvature import running
from plastax.curvature.kronecker import Kind
from plastax.keys import fold
from plastax.program import segments
from plastax.program.learner import Learned, Learner, Network, learned_of
from plastax.rl import normalize
from plastax.rl.environment import Continuous, Environment, EnvironmentStream, Spaces
from plastax.rl.rollout import Actors, Transition, reset_actors
from plastax.types import Array, Key, Method, Model, Params, Probe, Program, Tree


@dataclass(frozen=True)
class Settings:
    """Settings that all agents have: of their environments, of Adam, and of running Kronecker factors."""

    group: ClassVar[str]
    """What messages call the settings."""
    traced: ClassVar[tuple[str, ...]] = ("learning_rate",)

    num_envs: int = 4
    """Environments a seed, stepped in parallel."""
    num_steps: int = 128
    """Steps of each environment in one update."""
    learning_rate: float = 2.5e-4
    """Adam's step size; constant (an annealed rate looks like loss of plasticity)."""
    b1: float = 0.9
    """Adam's decay of the gradient mean."""
    b2: float = 0.999
    """Adam's decay of the squared gradient; with (0.9, 0.999) agents lose plasticity (Dohare et al. 2024)."""
    eps: float = 1e-8
    """Adam's epsilon; CleanRL uses 1e-5, which hides part of the loss of plasticity."""
    max_grad_norm: float = 0.0
    """Largest global norm of a gradient; 0: no clipping (as in the plasticity literature; CleanRL clips at 0.5)."""
    gamma: float = 0.99
    """Discount of future rewards per step."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning (returns are reported unscaled)."""
    normalize_observations: normalize.Normalization = "none"
    """Running statistics: none | global (all tasks) | ema (1 % an update) | reset (global, restarted at a switch). They
    undo an observation offset, and reset tells the agent of the switch. Both change the question, hence none. Entries
    that are constant until a switch (MinAtar's channels, one-hot states) jump to observation_clip at it."""
    observation_clip: float = normalize.CLIP
    """Normalised observations are clipped to +- this, as elsewhere. 0: not clipped; an entry that moves for the first
    time then becomes up to 1e4, which destroys the network in one update."""
    kronecker_every: int = 16
    """Gradient steps between updates of the running Kronecker factors, from training's own backward pass; 0: off."""
    kronecker_kind: Kind = "empirical"
    """Whose gradients: empirical (the loss's own, no further cost) | sampled (labels drawn from the network, one more
    backward pass at an update of the factors) | exact (their expectation, one more backward pass an output)."""
    kronecker_decay: float = 0.95
    """Decay of the running Kronecker factors, an update of them (Martens and Grosse 2015, section 5)."""

    def __post_init__(self) -> None:
        ranges.check(self, self.group, "num_envs", "num_steps", least=1)
        ranges.check(self, self.group, "learning_rate", "eps", "reward_scale", above=0)
        ranges.check(self, self.group, "b1", "b2", "gamma", "kronecker_decay", least=0, most=1)
        ranges.check(self, self.group, "max_grad_norm", "observation_clip", "kronecker_every", least=0)
        kinds = {"normalize_observations": normalize.Normalization, "kronecker_kind": Kind}
        ranges.check_choices(self, self.group, **kinds)

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.num_envs * self.num_steps

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in one update."""
        raise NotImplementedError

    def check_task(self, updates: int) -> None:
        """Raises `ConfigError` if tasks of that many updates are too short."""

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, after an optional clipping of the gradient's global norm."""
        adam = optax.adam(self.learning_rate, self.b1, self.b2, self.eps)
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam) if self.max_grad_norm else adam

    def observe(self, statistics: normalize.Statistics, observation: Array) -> Array:
        """What the network gets of observations."""
        return normalize.apply(statistics, observation, self.normalize_observations, self.observation_clip)


class State(NamedTuple):
    """Everything that a seed's next update needs, apart from the clock; it has the fields of `learner.Learned`.

    ``previous`` holds the parameters at the end of the previous task, for probes that need them; else it is empty.
    ``alive``: see `segments.program`. ``memory`` is what the agent itself keeps, see `Agent`.
    """

    key: Key
    params: Params
    stats: Tree
    opt_state: Tree
    actors: Actors
    statistics: normalize.Statistics
    factors: running.Running
    previous: Params
    alive: Array
    memory: Tree = ()


Purpose = enum.IntEnum("Purpose", "INIT TASKS SWITCH UPDATE PROBE FACTORS TARGETS", start=0)
"""What a draw from a seed's key is for, see `keys.fold`; the numbers are part of every result."""


def _nothing(*of: Any) -> Tree:
    return ()


class Agent(NamedTuple):
    """An agent, for one seed.

    Attributes:
      config: its settings.
      model: its network.
      network: the network and its loss as functions of a batch.
      batch_like: shapes of a minibatch.
      steps_before: ``(clock) -> int32``: gradient steps before update number ``clock``.
      update: ``(learner, state, task, clock, key) -> (state, rollout, metrics)``: one update, with the rollout
        ``[T, N]`` that it made. It returns the same episode statistics and probe fields that it was given.
      healthy: ``metrics -> bool``: whether the losses are finite.
      batch: ``(state, actors, key, task) -> batch``: what probes look at, from fresh experience in ``task``. The state
        is a view, without optimiser, environments and most of the memory.
      remember: ``(params) -> memory``: what the agent keeps beside the network, at the start of a run; empty.
      switch: ``(memory, params) -> memory``: at the switch to a task, after the method acted.
      shown: ``memory -> memory``: the part that ``batch`` needs.
    """

    config: Settings
    model: Model
    network: Network
    batch_like: Tree
    steps_before: Callable[[Array], Array]
    update: Callable[[Learner, State, Tree, Array, Key], tuple[State, Transition, dict[str, Array]]]
    healthy: Callable[[dict[str, Array]], Array]
    batch: Callable[[State, Actors, Key, Tree], Tree]
    remember: Callable[[Params], Tree] = _nothing
    switch: Callable[[Tree, Params], Tree] = _nothing
    shown: Callable[[Tree], Tree] = _nothing


def program(
    agent: Agent,
    stream: EnvironmentStream,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    needs_boundary: bool = False,
    due: segments.Due | None = None,
    alike: Hashable = None,
) -> Program:
    """One seed's agent on ``stream``, learning through ``method``, looked at through ``probes``.

    Every update records how many episodes ended in it (``episodes``), the mean of their returns (``episode_return``,
    NaN without any) and the sum (``episode_return_sum``). The mean of ``episode_return`` over updates is a mean over
    time: updates in which no episode ended are left out, and all others count the same. The sum of
    ``episode_return_sum`` divided by that of ``episodes`` is the mean over episodes, where many are short. What the
    method records (`Recorded`) is a mean over gradient steps.

    Args:
      agent: the agent.
      stream: environment and tasks; the task changes every ``updates_per_task`` updates. A switch resets all
        environments, so no return and no bootstrapped value crosses it.
      method: optimiser with its plasticity-preserving method.
      probes: measured on fresh experience at both ends of the task: before its first update and after its last.
      updates_per_task: length of a task; a segment may be shorter but must not cross a switch.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      due: when to probe, at the borders of segments; None: at both ends of every task.
      alike: equal for equal agent, stream, model, probes and ``updates_per_task``, see `Program.alike`.
    """
    environment, config, model = stream.environment, agent.config, agent.model
    learns = Learner(
        model, agent.network, method, config, agent.batch_like, Purpose.FACTORS, needs_boundary=needs_boundary
    )
    needs_previous = any(probe.needs_previous for probe in probes)

    def update(state: State, data: Tree, task: Tree, clock: Array) -> tuple[State, dict[str, Array]]:
        state, seen, metrics = agent.update(learns, state, task, clock, fold(state.key, Purpose.UPDATE, clock))
        done = jnp.maximum(seen.terminated, seen.truncated)
        episodes, returns = done.sum(), seen.finished_return.sum()
        metrics |= {
            "episodes": episodes,
            # NaN, not 0, where no episode ended.
            "episode_return": jnp.where(episodes > 0, returns / jnp.maximum(episodes, 1), jnp.nan),
            "episode_return_sum": returns,
        }
        statistics = normalize.update(state.statistics, flat(seen.observation), config.normalize_observations)
        return state._replace(statistics=statistics), metrics

    def healthy(state: State, metrics: dict[str, Array]) -> Array:
        return agent.healthy(metrics) & tree.finite(state.params)

    def begin_task(state: State, data: Tree, task: Tree, clock: Array) -> State:
        env_key, method_key = jax.random.split(fold(state.key, Purpose.SWITCH, clock))
        learned = learns.switch(learned_of(state), agent.steps_before(clock), method_key)
        statistics = state.statistics
        if config.normalize_observations == "reset":
            statistics = normalize.start(environment.observation_shape)
        return state._replace(
            actors=reset_actors(environment, config.num_envs, env_key, task),
            statistics=statistics,
            previous=state.params if needs_previous else (),
            memory=agent.switch(state.memory, learned.params),
            **learned._asdict(),
        )

    def measure(state: State, data: Tree, task: Tree, border: Array) -> dict[str, Array]:
        """All probes on fresh experience, which leave the state as it is."""
        key, env_key, roll_key = jax.random.split(fold(state.key, Purpose.PROBE, border), 3)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        batch = agent.batch(state, actors, roll_key, task)
        seen = learns.seen(learned_of(state), batch, key, fold(state.key, Purpose.INIT), state.previous)
        return segments.look(probes, seen, segments.task_of(border, updates_per_task))

    def init(key: Key, data: Tree) -> State:
        learned: Learned = learns.start(key, model.init(fold(key, Purpose.INIT)))
        first = stream.task(fold(key, Purpose.TASKS), jnp.int32(0))
        actors = reset_actors(environment, config.num_envs, fold(key, Purpose.SWITCH), first)
        return State(
            key,
            actors=actors,
            statistics=normalize.start(environment.observation_shape),
            # A copy of its own: the state is donated.
            previous=jax.tree.map(jnp.copy, learned.params) if needs_previous else (),
            alive=jnp.bool_(True),
            memory=agent.remember(learned.params),
            **learned._asdict(),
        )

    def task_of(state: State, data: Tree, index: Array) -> Tree:
        return stream.task(fold(state.key, Purpose.TASKS), index)

    def view(state: State) -> State:
        return state._replace(opt_state=(), actors=cast(Any, ()), memory=agent.shown(state.memory))

    def freeze(alive: Array, new: State, old: State) -> State:
        # A choice between two replay buffers would copy one with every update, and no one looks into a frozen seed's.
        return segments.where(alive, new, old._replace(memory=new.memory))

    parts = segments.Parts(init, task_of, begin_task, update, healthy, view, measure, freeze)
    return segments.program(parts, probes, updates_per_task=updates_per_task, due=due, alike=alike)


def observation_like(environment: Environment | Spaces, size: int) -> Any:
    """Shapes of ``size`` observations."""
    return jax.ShapeDtypeStruct((size, *environment.observation_shape), jnp.float32)


def flat(x: Array) -> Array:
    """``[T, N, ...] -> [T * N, ...]``."""
    return x.reshape(-1, *x.shape[2:])


def action_size(environment: Environment | Spaces) -> tuple[int, bool]:
    """How many outputs the policy has, and whether actions are continuous: arguments of a model's ``build``."""
    space = environment.action_space
    return (space.size, True) if isinstance(space, Continuous) else (space.n, False)
