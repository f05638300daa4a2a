"""Double deep Q-learning with uniform replay on a stream of tasks, as a `Program`.

`action_values` has the loss and its targets, `replay` the buffer, `agent` all that is not particular to DQN. An update
is a number of turns; in each, the environments make ``train_every`` steps, and then the network its gradient steps.

At a task switch, and within a task, methods act as follows.

- Target network: it becomes a copy of the network, after the method has acted. Within a task no method touches it:
  units that a method replaces stay in it until its next update, as in the code of ReDo (arXiv 2302.12902).
  ``README.md`` has a table of the methods.
- Adam's moments: they are the method's, as under every program. ``reset`` starts them again, methods that replace units
  clear the moments of what they replace, and all others leave them.
- Replay: no method touches it. It is kept or cleared by ``buffer_at_switch``. A transition never reaches over a switch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState

from plastax import ranges
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.program.learner import Learned, Learner, learned_of
from plastax.program.segments import missing
from plastax.rl import action_values, agent, normalize, replay
from plastax.rl.action_values import ValueBatch
from plastax.rl.agent import Purpose, State, flat
from plastax.rl.environment import Discrete, Environment, EnvironmentStream, Spaces
from plastax.rl.replay import Steps
from plastax.rl.rollout import Actors, Transition, rollout
from plastax.types import Array, Key, Method, Model, Params, Probe, Program, Tree

AtSwitch = Literal["keep", "clear"]
Targets = Literal["td", "regression"]


@dataclass(frozen=True)
class DQN(agent.Settings):
    """Settings of DQN and of its optimiser (Adam).

    With rewards scaled by 0.05, the defaults solve CartPole: see ``tests/rl/test_dqn_reference.py``.
    """

    group: ClassVar[str] = "dqn"

    learning_rate: float = 1e-3
    """Adam's step size; constant."""
    train_every: int = 4
    """Steps of each environment between gradient steps; must divide num_steps."""
    replay_ratio: float = 0.25
    """Gradient steps for each environment step. High ratios bring the primacy bias (Nikishin et al. 2022)."""
    batch_size: int = 128
    """Transitions in a gradient step (CleanRL)."""
    capacity: int = 51_200
    """Steps that the replay buffer of a seed holds; a multiple of num_envs."""
    warmup: int = 1_000
    """Environment steps before learning: of the run, or of each task if the buffer is cleared at switches."""
    n_step: int = 3
    """Steps of a return before it is bootstrapped (Rainbow: 3; DQN: 1)."""
    double: bool = True
    """Whether the network, and not the target network, chooses the action that the target network values."""
    huber: float = 1.0
    """Errors beyond this count linearly; 0: all are squared."""
    target_every: int = 100
    """Gradient steps from one update of the target network to the next."""
    target_rate: float = 1.0
    """How far the target network then moves towards the network; 1: it becomes a copy."""
    epsilon: float = 0.02
    """Share of random actions, to which it falls linearly from 1."""
    epsilon_steps: int = 10_000
    """Environment steps of that fall."""
    epsilon_at_switch: Literal["restart", "keep"] = "restart"
    """Whether each task begins with random actions (as in C-CHAIN), or only the run."""
    buffer_at_switch: AtSwitch = "keep"
    """Whether the steps of earlier tasks stay in the buffer (as in C-CHAIN)."""
    probe_targets: Targets = "td"
    """Loss that probes look at, on fresh experience in the task: td (targets by the target network, held fixed: the
    semi-gradient loss of training) | regression (targets by a network that is drawn once a seed, the same for all tasks
    and methods, as in Lyle et al., arXiv 2204.09560)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("train_every", "batch_size", "capacity", "n_step", "target_every", "epsilon_steps")
        ranges.check(self, self.group, *sizes, least=1)
        ranges.check(self, self.group, "warmup", "huber", least=0)
        ranges.check(self, self.group, "replay_ratio", "target_rate", above=0)
        ranges.check(self, self.group, "epsilon", "target_rate", least=0, most=1)
        ranges.check_choices(
            self, self.group, epsilon_at_switch=Literal["restart", "keep"], buffer_at_switch=AtSwitch,
            probe_targets=Targets,
        )  # fmt: skip
        if self.num_steps % self.train_every:
            raise ConfigError(f"dqn.train_every: {self.train_every} does not divide num_steps {self.num_steps}")
        steps = self.replay_ratio * self.num_envs * self.train_every
        if steps < 1 or not math.isclose(steps, round(steps)):
            raise ConfigError(
                f"dqn.replay_ratio: {self.replay_ratio} x {self.num_envs * self.train_every} environment steps "
                f"(num_envs x train_every) are {steps:g} gradient steps; give a ratio that makes them a whole number"
            )
        least = max(self.n_step, self.train_every)
        if self.capacity % self.num_envs or self.rows < least:
            raise ConfigError(
                f"dqn.capacity: {self.capacity} is not allowed; give a multiple of num_envs, {self.num_envs}, and at "
                f"least num_envs x max(n_step, train_every), {self.num_envs * least}"
            )

    @property
    def turns(self) -> int:
        """Turns of an update."""
        return self.num_steps // self.train_every

    @property
    def steps_per_turn(self) -> int:
        """Gradient steps in a turn."""
        return round(self.replay_ratio * self.num_envs * self.train_every)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in one update, once learning has begun."""
        return self.turns * self.steps_per_turn

    @property
    def rows(self) -> int:
        """Steps of each environment in the replay buffer."""
        return self.capacity // self.num_envs

    @property
    def idle(self) -> int:
        """Turns of a run (or task) without learning."""
        return max(-(-self.warmup // (self.num_envs * self.train_every)), -(-self.n_step // self.train_every) - 1)

    def check_task(self, updates: int) -> None:
        """See `agent.Settings`."""
        if self.idle >= updates * self.turns:
            steps = updates * self.steps_per_update
            raise ConfigError(f"dqn.warmup: {self.warmup} is not allowed for tasks of {steps} steps; give less")


class Memory(NamedTuple):
    """What the agent keeps beside its network: the target network, and the replay buffer."""

    target: Params
    replay: TrajectoryBufferState


class Schedule(NamedTuple):
    """What happens when, by clocks that all seeds share."""

    config: DQN
    updates_per_task: int

    def began(self, turn: Array) -> Array:
        """Turns since the buffer was empty."""
        return turn % (self.updates_per_task * self.config.turns) if self._clears else turn

    def steps_before(self, turn: Array) -> Array:
        """Gradient steps before a turn."""
        per_task, idle = self.updates_per_task * self.config.turns, self.config.idle
        tasks = turn // per_task if self._clears else 0
        return (tasks * (per_task - idle) + jnp.maximum(self.began(turn) - idle, 0)) * self.config.steps_per_turn

    def epsilon(self, step: Array) -> Array:
        """Share of random actions at a step of each environment since the start."""
        config = self.config
        step = step % (self.updates_per_task * config.num_steps) if config.epsilon_at_switch == "restart" else step
        return jnp.maximum(1 - (1 - config.epsilon) * (step * config.num_envs / config.epsilon_steps), config.epsilon)

    @property
    def _clears(self) -> bool:
        return self.config.buffer_at_switch == "clear"


def batch_like(config: DQN, environment: Environment | Spaces) -> ValueBatch:
    """Shapes of a minibatch; raises `ConfigError` unless actions are discrete."""
    if not isinstance(environment.action_space, Discrete):
        raise ConfigError("agent: dqn needs discrete actions, and this stream has real vectors; take ppo")
    of: Any = {kind: jax.ShapeDtypeStruct((config.batch_size,), kind) for kind in (jnp.int32, jnp.float32)}
    return ValueBatch(agent.observation_like(environment, config.batch_size), of[jnp.int32], of[jnp.float32])


def program(
    config: DQN,
    stream: EnvironmentStream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    **options: Any,
) -> Program:
    """DQN of one seed: the `agent.program` of `dqn`, whose arguments it takes; ``model`` has the action values."""
    made = dqn(config, stream.environment, model, updates_per_task)
    return agent.program(made, stream, method, probes, updates_per_task=updates_per_task, **options)


def dqn(config: DQN, environment: Environment, model: Model, updates_per_task: int) -> agent.Agent:
    """The agent, with a model whose outputs are action values ``[B, A]``.

    Raises:
      ConfigError: actions are not discrete, or a task is over before learning begins.
    """
    like = batch_like(config, environment)
    config.check_task(updates_per_task)
    if model.stats:
        raise ConfigError("model: batch statistics are not allowed, dqn would act without; take layer normalisation")
    actions, _ = agent.action_size(environment)
    network, schedule = action_values.network(config.huber, model), Schedule(config, updates_per_task)
    buffer = replay.buffer(config.rows, config.num_envs, config.batch_size, config.n_step)

    def noise(key: Key, task: Tree, steps: int, epsilon: Array | float) -> tuple[Tree, Tree]:
        """All randomness of a rollout: whether to explore, the action then, and that of the environments."""
        explore_key, action_key, step_key = jax.random.split(key, 3)
        size = (steps, config.num_envs)
        explores = jax.random.uniform(explore_key, size) < jnp.broadcast_to(epsilon, (steps,))[:, None]
        action = jax.random.randint(action_key, size, 0, actions, jnp.int32)
        return (explores, action), environment.noise(step_key, task, *size)

    def values(params: Params, statistics: normalize.Statistics, observation: Array) -> Array:
        return model.apply(params, config.observe(statistics, observation))[0]

    def play(
        params: Params, statistics: normalize.Statistics, actors: Actors, noise: tuple[Tree, Tree], task: Tree
    ) -> tuple[Actors, Transition]:
        def act(observation: Array, noise: tuple[Array, Array]) -> tuple[Array, Tree]:
            explores, action = noise
            best = jnp.argmax(values(params, statistics, observation), axis=-1).astype(jnp.int32)
            return jnp.where(explores, action, best), ()

        return rollout(environment, act, actors, noise, task)

    def td(params: Params, target: Params, statistics: normalize.Statistics, steps: Steps) -> ValueBatch:
        """A batch whose targets are bootstrapped, of steps ``[B, n_step]``."""
        drawn = replay.transitions(steps, config.gamma)
        drawn = drawn._replace(rewards=config.reward_scale * drawn.rewards)
        online, fixed = (values(of, statistics, drawn.successor) for of in (params, target))
        wanted = action_values.targets(drawn, online, fixed, config.double)
        return ValueBatch(config.observe(statistics, drawn.observation), drawn.action, wanted)

    def update(
        learns: Learner, state: State, task: Tree, clock: Array, key: Key
    ) -> tuple[State, Transition, dict[str, Array]]:
        roll_key, learn_key = jax.random.split(key)

        def gradient_step(
            kept: TrajectoryBufferState, carry: tuple[Learned, Params], x: tuple[Array, Key]
        ) -> tuple[tuple[Learned, Params], dict[str, Array]]:
            (learned, target), (clock, key) = carry, x
            sample_key, method_key = jax.random.split(key)
            batch = td(learned.params, target, state.statistics, buffer.sample(kept, sample_key).experience)
            learned, seen = learns.step(learned, batch, clock, method_key, state.key)
            target = _moved(target, learned.params, config, clock)
            return (learned, target), seen.metrics

        def turn(carry: tuple[Actors, Learned, Memory], x: tuple[Array, Tree, Key]) -> tuple[Any, Any]:
            (actors, learned, memory), (turn, noise, key) = carry, x
            actors, seen = play(learned.params, state.statistics, actors, noise, task)
            kept = buffer.add(memory.replay, replay.steps_of(seen, environment))

            def learn(carry: tuple[Learned, Params]) -> tuple[tuple[Learned, Params], dict[str, Array]]:
                count = config.steps_per_turn
                xs = schedule.steps_before(turn) + jnp.arange(count), jax.random.split(key, count)
                carry, metrics = jax.lax.scan(lambda c, x: gradient_step(kept, c, x), carry, xs)
                return carry, jax.tree.map(jnp.mean, metrics)

            old = learned, memory.target
            nothing = jax.eval_shape(learn, old)[1]
            # The clock is the same for all seeds: under vmap, the branches stay branches.
            (learned, target), metrics = jax.lax.cond(
                schedule.began(turn) >= config.idle, learn, lambda carry: (carry, missing(nothing)), old
            )
            return (actors, learned, Memory(target, kept)), (seen, metrics)

        rows = clock * config.num_steps + jnp.arange(config.num_steps)
        drawn = noise(roll_key, task, config.num_steps, schedule.epsilon(rows))
        drawn = jax.tree.map(lambda x: x.reshape(config.turns, config.train_every, *x.shape[1:]), drawn)
        xs = clock * config.turns + jnp.arange(config.turns), drawn, jax.random.split(learn_key, config.turns)
        (actors, learned, memory), (seen, metrics) = jax.lax.scan(
            turn, (state.actors, learned_of(state), state.memory), xs
        )
        state = state._replace(actors=actors, memory=memory, **learned._asdict())
        # Turns without learning are left out; NaN if there was none with it.
        return state, jax.tree.map(flat, seen), jax.tree.map(jnp.nanmean, metrics)

    def batch(state: State, actors: Actors, key: Key, task: Tree) -> ValueBatch:
        more = config.num_steps + config.n_step - 1
        _, seen = play(state.params, state.statistics, actors, noise(key, task, more, config.epsilon), task)
        steps = replay.windows(replay.steps_of(seen, environment), config.n_step)
        found = td(state.params, state.memory.target, state.statistics, steps)
        if config.probe_targets == "regression":
            fixed = model.apply(model.init(fold(state.key, Purpose.TARGETS)), found.observation)[0]
            found = found._replace(target=action_values.chosen(fixed, found.action))
        return found

    def switch(memory: Memory, params: Params) -> Memory:
        act = replay.clear if config.buffer_at_switch == "clear" else replay.cut
        return Memory(params, act(memory.replay))

    def remember(params: Params) -> Memory:
        # A copy of its own: the state is donated.
        return Memory(jax.tree.map(jnp.copy, params), buffer.init(replay.step_like(environment)))

    return agent.Agent(
        config,
        model,
        network,
        like,
        lambda clock: schedule.steps_before(clock * config.turns),
        update,
        # NaN: no loss yet. A loss of NaN leaves parameters that are not finite.
        lambda metrics: ~jnp.isinf(metrics["td_loss"]),
        batch,
        remember,
        switch,
        lambda memory: memory._replace(replay=()),
    )


def _moved(target: Params, params: Params, config: DQN, clock: Array) -> Params:
    """The target network after a gradient step."""

    def move(target: Params) -> Params:
        if config.target_rate == 1:
            return params
        return jax.tree.map(lambda t, p: t + config.target_rate * (p - t), target, params)

    if config.target_every == 1:
        return move(target)
    return jax.lax.cond((clock + 1) % config.target_every == 0, move, lambda target: target, target)
