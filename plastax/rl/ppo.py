"""Proximal policy optimisation on a stream of tasks, as a `Program`.

References:
  Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7 and 9.
  Schulman et al., "High-dimensional continuous control using generalized advantage estimation", arXiv 1506.02438.
  Pardo et al., "Time limits in reinforcement learning", arXiv 1712.00378: bootstrapping at a truncation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.curvature import kronecker, running
from plastax.rl import normalize
from plastax.rl import policy as policies
from plastax.rl.environment import Continuous, Environment, Stream
from plastax.types import (
    Array,
    ConfigError,
    Features,
    Key,
    Method,
    MethodArgs,
    Model,
    Params,
    Probe,
    ProbeInput,
    Program,
    Record,
    Tree,
)


@dataclass(frozen=True)
class PPO:
    """Settings of the agent and of its optimiser (Adam).

    Defaults without a remark are CleanRL's and purejaxrl's for classic control.
    """

    num_envs: int = 4
    """Environments a seed, stepped in parallel."""
    num_steps: int = 128
    """Steps of each environment in a rollout (one update)."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps a pass; must divide num_envs * num_steps."""
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
    """Discount of future rewards, a step."""
    gae_lambda: float = 0.95
    """Decay of generalised advantage estimation."""
    clip: float = 0.2
    """The policy ratio is clipped to 1 +- this."""
    value_clip: float = 0.0
    """The value may move this far from the old value in an update; 0: not clipped."""
    value_weight: float = 0.5
    """Weight of the value loss, mean 1/2 (V - target)^2."""
    entropy_weight: float = 0.01
    """Weight of the policy's entropy bonus."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning (returns are reported unscaled)."""
    normalize_observations: normalize.Normalization = "none"
    """Running statistics: none | global (all tasks) | ema (1 % an update) | reset (global, restarted at a switch). They
    undo an observation offset, and reset tells the agent of the switch: both change the question, hence none."""
    kronecker_every: int = 16
    """Gradient steps between updates of the running Kronecker factors, from training's own backward pass; 0: off."""
    kronecker_decay: float = 0.95
    """Decay of the running Kronecker factors, an update of them (Martens and Grosse 2015, section 5)."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                message = f"ppo.{name}: {getattr(self, name)} is not allowed; give a positive number"
                raise ConfigError(message)
        if self.num_envs * self.num_steps % self.minibatches:
            message = (
                f"ppo.minibatches: {self.minibatches} does not divide the rollout's {self.num_envs * self.num_steps} "
                f"steps (num_envs {self.num_envs} x num_steps {self.num_steps})"
            )
            raise ConfigError(message)
        for name in ("learning_rate", "eps", "reward_scale"):
            if not getattr(self, name) > 0:
                message = f"ppo.{name}: {getattr(self, name)} is not allowed; give a number above 0"
                raise ConfigError(message)
        for name in ("b1", "b2", "gamma", "gae_lambda", "kronecker_decay"):
            if not 0 <= getattr(self, name) <= 1:
                message = f"ppo.{name}: {getattr(self, name)} is not allowed; give a number from 0 to 1"
                raise ConfigError(message)
        for name in ("max_grad_norm", "clip", "value_clip", "value_weight", "entropy_weight", "kronecker_every"):
            if not getattr(self, name) >= 0:
                message = f"ppo.{name}: {getattr(self, name)} is not allowed; give 0 or more"
                raise ConfigError(message)
        kinds = get_args(normalize.Normalization)
        if self.normalize_observations not in kinds:
            message = f"ppo.normalize_observations: {self.normalize_observations!r} is not one of {', '.join(kinds)}"
            raise ConfigError(message)

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.num_envs * self.num_steps

    def optimizer(self) -> optax.GradientTransformation:
        """Adam behind an optional clipping of the gradient's global norm."""
        adam = optax.adam(self.learning_rate, self.b1, self.b2, self.eps)
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam) if self.max_grad_norm else adam


class Batch(NamedTuple):
    """Transitions with what the loss needs of them; leading axis ``B``."""

    observation: Array
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    target: Array


class Actors(NamedTuple):
    """A seed's environments between two rollouts; leading axis ``N``, `episode_return` unscaled."""

    state: Tree
    observation: Array
    episode_return: Array


class State(NamedTuple):
    """Everything that a seed's next update needs, apart from the clock."""

    key: Key
    params: Params
    opt_state: Tree
    actors: Actors
    statistics: normalize.Statistics
    factors: running.Running


class Transition(NamedTuple):
    """One step of all environments; leading axes ``[T, N]`` after a rollout."""

    observation: Array
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    finished_return: Array


# Roles of a seed's key: every draw has a key of its own, folded from the seed, its role and the clock, so that neither
# probes nor scan lengths can shift another draw.
_INIT, _TASKS, _SWITCH, _UPDATE, _PROBE = range(5)


def _key(key: Key, role: int, clock: Array | int = 0) -> Key:
    return jax.random.fold_in(jax.random.fold_in(key, role), clock)


def advantages(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, gamma: float, decay: float
) -> Array:
    """Generalised advantage estimates, ``[T, N]`` like every argument.

    ``next_value`` is the value of the true successor (before an automatic reset). A termination ends the return; a
    truncation only ends the sum: the successor's value still stands for what would have followed (Pardo et al. 2018).
    """
    delta = reward + gamma * next_value * (1 - terminated) - value
    carry = gamma * decay * (1 - jnp.maximum(terminated, truncated))

    def step(advantage: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, carry = x
        advantage = delta + carry * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, carry), reverse=True, unroll=8)[1]


def reset_actors(environment: Environment, num_envs: int, key: Key, task: Tree) -> Actors:
    """All environments at the start of an episode."""
    observation, state = jax.vmap(environment.reset, in_axes=(0, None))(jax.random.split(key, num_envs), task)
    return Actors(state, observation, jnp.zeros(num_envs))


def rollout(
    environment: Environment,
    act: Callable[[Array], policies.Outputs],
    num_steps: int,
    actors: Actors,
    key: Key,
    task: Tree,
) -> tuple[Actors, Transition]:
    """Steps every environment ``num_steps`` times; ``act`` maps observations ``[N, ...]`` to the network's outputs."""
    policy = policies.make(environment.action_space)
    num_envs = actors.episode_return.shape[0]
    act_key, step_key = jax.random.split(key)
    # All randomness is drawn ahead of the scan, where it is one large vectorised computation.
    noise = policy.noise(act_key, (num_steps, num_envs)), environment.noise(step_key, task, num_steps, num_envs)
    advance = jax.vmap(environment.advance, in_axes=(0, 0, 0, None))

    def step(actors: Actors, noise: tuple[Array, Tree]) -> tuple[Actors, Transition]:
        act_noise, step_noise = noise
        outputs = act(actors.observation)
        action = policy.sample(outputs, act_noise)
        state, out = advance(step_noise, actors.state, policy.to_environment(action), task)
        total = actors.episode_return + out.reward
        done = out.terminated | out.truncated
        transition = Transition(
            actors.observation,
            action,
            policy.log_prob(outputs, action),
            out.reward,
            out.terminated.astype(jnp.float32),
            out.truncated.astype(jnp.float32),
            out.final_observation,
            jnp.where(done, total, 0.0),
        )
        return Actors(state, out.observation, jnp.where(done, 0.0, total)), transition

    return jax.lax.scan(step, actors, noise)


def shuffles(key: Key, count: int, size: int) -> Array:
    """``count`` independent random orders of ``0 .. size - 1``, int32 ``[count, size]``.

    Random bits above, the number itself below in one word, so that a sort of plain integers shuffles: on CPU five times
    as fast as `jax.random.permutation`, whose sort carries a second operand. Two numbers whose random bits tie keep
    their order; with at least 20 random bits that is no bias that training could notice, and large sizes, which leave
    fewer, take `jax.random.permutation`.
    """
    low = max(1, (size - 1).bit_length())
    if low > 12:
        return jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, count))
    mask = jnp.uint32((1 << low) - 1)
    words = jax.random.bits(key, (count, size), jnp.uint32) & ~mask | jnp.arange(size, dtype=jnp.uint32)[None]
    return (jnp.sort(words, axis=-1) & mask).astype(jnp.int32)


def _flat(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


class Losses(NamedTuple):
    """The PPO objective of one network as functions of (params, batch), for training and for probes alike."""

    loss: Callable[[Params, Batch], tuple[Array, tuple[dict[str, Array], Features]]]
    tapped: Callable[[Params, dict[str, Array], Batch], tuple[Array, tuple[dict[str, Array], Features, Features]]]
    outputs: Callable[[Params, Batch], policies.Outputs]
    curvature: Callable[[policies.Outputs, Batch, policies.Outputs], policies.Outputs]


def losses(config: PPO, model: Model, policy: policies.Policy) -> Losses:
    """The clipped surrogate, the value loss and the entropy bonus (Schulman et al. 2017, eq. 9), mean over the batch.

    Advantages are normalised over the batch. ``curvature`` is the positive semi-definite output Hessian that defines
    the generalised Gauss-Newton matrix: the policy's Fisher information (the clipped surrogate itself is not convex in
    the logits; this is the metric of natural policy gradients) and the value loss's ``value_weight``, over ``B``.
    """

    def from_outputs(outputs: policies.Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        log_ratio = policy.log_prob(outputs, batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_error = jnp.square(outputs["value"] - batch.target)
        if config.value_clip:
            moved = batch.value + jnp.clip(outputs["value"] - batch.value, -config.value_clip, config.value_clip)
            value_error = jnp.maximum(value_error, jnp.square(moved - batch.target))
        value_loss = 0.5 * value_error.mean()
        entropy = policy.entropy(outputs).mean()
        total = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
        # The KL estimate of Schulman's note "Approximating KL divergence" (k3): non-negative, low variance.
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": (ratio - 1 - log_ratio).mean(),
        }
        return total, metrics

    def loss(params: Params, batch: Batch) -> tuple[Array, tuple[dict[str, Array], Features]]:
        outputs, features = model.apply(params, batch.observation)
        total, metrics = from_outputs(outputs, batch)
        return total, (metrics, features)

    def tapped(
        params: Params, taps: dict[str, Array], batch: Batch
    ) -> tuple[Array, tuple[dict[str, Array], Features, Features]]:
        outputs, features, inputs = model.tapped(params, taps, batch.observation)
        total, metrics = from_outputs(outputs, batch)
        return total, (metrics, features, inputs)

    def curvature(outputs: policies.Outputs, batch: Batch, tangent: policies.Outputs) -> policies.Outputs:
        product = policy.fisher(outputs, tangent) | {"value": config.value_weight * tangent["value"]}
        return jax.tree.map(lambda x: x / batch.log_prob.shape[0], product)

    return Losses(loss, tapped, lambda params, batch: model.apply(params, batch.observation)[0], curvature)


def program(
    config: PPO,
    stream: Stream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    updates_per_task: int,
    needs_boundary: bool = False,
    due: Callable[[Array, Array], Array] | None = None,
    monitor: Callable[[Params, Features], dict[str, Array]] | None = None,
) -> Program:
    """PPO of one seed on ``stream``, learning through ``method``, looked at through ``probes``.

    Args:
      config: the agent.
      stream: environment and tasks; the task changes every ``updates_per_task`` updates. At a switch all environments
        are reset, so no return and no advantage crosses it.
      model: actor and critic.
      method: optimiser with its plasticity-preserving method.
      probes: measured on fresh on-policy data of the task at its initialisation (before its first update) and its end.
      updates_per_task: length of a task; segments may be shorter but must not cross a switch.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      due: ``(number of updates done, whether a segment ends rather than starts here) -> bool``: when to probe, at the
        borders of segments; None: at both ends of every task. It must not depend on the seed.
      monitor: per-update scalars from (params, features of a minibatch of the update); None: none.
    """
    environment = stream.environment
    policy = policies.make(environment.action_space)
    objective = losses(config, model, policy)
    due = due or task_borders(updates_per_task)

    def loss_fn(params: Params, batch: Batch) -> Array:
        return objective.loss(params, batch)[0]

    def features_fn(params: Params, batch: Batch) -> Features:
        return model.apply(params, batch.observation)[1]

    def taps_fn(batch: Batch) -> dict[str, Array]:
        return model.taps(batch.observation)

    def observe(statistics: normalize.Statistics, observation: Array) -> Array:
        return normalize.apply(statistics, observation, config.normalize_observations)

    def collect(
        params: Params, statistics: normalize.Statistics, actors: Actors, key: Key, task: Tree
    ) -> tuple[Actors, Transition, Batch]:
        """A rollout and the flat batch ``[T * N]`` made of it."""

        def act(observation: Array) -> policies.Outputs:
            return model.apply(params, observe(statistics, observation))[0]

        actors, seen = rollout(environment, act, config.num_steps, actors, key, task)
        # One pass of the critic over states and true successors, outside the scan: the rollout needs the actor only.
        both = observe(statistics, jnp.concatenate([_flat(seen.observation), _flat(seen.final_observation)]))
        value, next_value = model.apply(params, both)[0]["value"].reshape(2, *seen.reward.shape)
        reward = config.reward_scale * seen.reward
        advantage = advantages(
            reward, value, next_value, seen.terminated, seen.truncated, config.gamma, config.gae_lambda
        )
        observation = both[: both.shape[0] // 2]
        rest = (seen.action, seen.log_prob, value, advantage, advantage + value)
        return actors, seen, Batch(observation, *map(_flat, rest))

    def gradient_step(carry: tuple[Params, Tree, running.Running], x: tuple[Array, Batch, Key]) -> Any:
        params, opt_state, factors = carry
        clock, batch, key = x
        if config.kronecker_every:
            (value, (metrics, features, inputs)), (grads, tap_grads) = jax.value_and_grad(
                objective.tapped, argnums=(0, 1), has_aux=True
            )(params, taps_fn(batch), batch)
            factors = jax.lax.cond(
                clock % config.kronecker_every == 0,
                lambda f: running.update(f, kronecker.factors(inputs, tap_grads), config.kronecker_decay),
                lambda f: f,
                factors,
            )
        else:
            (value, (metrics, features)), grads = jax.value_and_grad(objective.loss, has_aux=True)(params, batch)
        args = MethodArgs(key, clock, batch, value, features, loss_fn, features_fn, model.init, boundary=False)
        updates, opt_state = method.update(grads, opt_state, params, **args._asdict())
        metrics = metrics | {"grad_norm": tree.norm(grads)}
        return (optax.apply_updates(params, updates), opt_state, factors), metrics

    def update(state: State, task: Tree, clock: Array) -> tuple[State, dict[str, Array]]:
        roll_key, shuffle_key, method_key = jax.random.split(_key(state.key, _UPDATE, clock), 3)
        actors, seen, batch = collect(state.params, state.statistics, state.actors, roll_key, task)
        steps = config.epochs * config.minibatches
        order = shuffles(shuffle_key, config.epochs, config.steps_per_update).reshape(steps, -1)
        xs = (clock * steps + jnp.arange(steps), order, jax.random.split(method_key, steps))

        def minibatch_step(carry: Any, x: tuple[Array, Array, Key]) -> Any:
            clock, index, key = x
            return gradient_step(carry, (clock, jax.tree.map(lambda a: a[index], batch), key))

        (params, opt_state, factors), metrics = jax.lax.scan(
            minibatch_step, (state.params, state.opt_state, state.factors), xs
        )
        done = jnp.maximum(seen.terminated, seen.truncated)
        episodes = done.sum()
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "episodes": episodes,
            # NaN, not 0, where no episode ended.
            "episode_return": jnp.where(episodes > 0, seen.finished_return.sum() / jnp.maximum(episodes, 1), jnp.nan),
        }
        if monitor is not None:
            # A minibatch's worth of the rollout, spread over it: the scalars of every update have to be cheap.
            metrics |= monitor(params, features_fn(params, jax.tree.map(lambda x: x[:: config.minibatches], batch)))
        statistics = normalize.update(state.statistics, _flat(seen.observation), config.normalize_observations)
        return State(state.key, params, opt_state, actors, statistics, factors), metrics

    def begin_task(state: State, task: Tree, clock: Array) -> State:
        env_key, method_key = jax.random.split(_key(state.key, _SWITCH, clock))
        params, opt_state, statistics = state.params, state.opt_state, state.statistics
        if needs_boundary:
            zeros = jax.tree.map(jnp.zeros_like, params)
            no_batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch_like)
            args = MethodArgs(
                method_key, clock * config.epochs * config.minibatches, no_batch, jnp.zeros(()), {}, loss_fn,
                features_fn, model.init, boundary=clock > 0,
            )  # fmt: skip
            updates, stepped = method.update(zeros, opt_state, params, **args._asdict())
            # The very first task has no boundary: nothing has been learned that could be lost.
            params, opt_state = jax.lax.cond(
                clock > 0, lambda: (optax.apply_updates(params, updates), stepped), lambda: (params, opt_state)
            )
        if config.normalize_observations == "reset":
            statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        factors = running.start(state.factors.total)
        return State(state.key, params, opt_state, actors, statistics, factors)

    def measure(state: State, task: Tree, border: Array) -> dict[str, Array]:
        """All probes on fresh on-policy data; nothing of it reaches the state."""
        key, env_key, roll_key = jax.random.split(_key(state.key, _PROBE, border), 3)
        actors = reset_actors(environment, config.num_envs, env_key, task)
        batch = collect(state.params, state.statistics, actors, roll_key, task)[2]

        def tapped_loss(params: Params, taps: Tree, batch: Batch) -> tuple[Array, tuple[Features, Features]]:
            value, (_, features, inputs) = objective.tapped(params, taps, batch)
            return value, (features, inputs)

        values: dict[str, Array] = {}
        for i, probe in enumerate(probes):
            seen = ProbeInput(
                state.params, batch, loss_fn, features_fn, objective.outputs, objective.curvature, tapped_loss,
                taps_fn, state.factors, jax.random.fold_in(key, i),
            )  # fmt: skip
            values |= {f"{probe.name}/{name}": value for name, value in probe.measure(seen).items()}
        return values

    def init(key: Key) -> State:
        params = model.init(_key(key, _INIT))
        statistics = normalize.start(environment.observation_shape)
        actors = reset_actors(
            environment, config.num_envs, _key(key, _SWITCH), stream.task(_key(key, _TASKS), jnp.int32(0))
        )
        factors: Tree = {}
        if config.kronecker_every:
            taps = taps_fn(batch_like)
            inputs = jax.eval_shape(lambda: objective.tapped(params, taps, batch_like)[1][2])
            factors = jax.eval_shape(kronecker.factors, inputs, taps)
        factors = running.start(factors)
        return State(key, params, method.init(params), actors, statistics, factors)

    def segment(state: State, clock: Array, length: int) -> tuple[State, Record]:
        index = clock // updates_per_task
        task = stream.task(_key(state.key, _TASKS), index)
        # Every predicate below comes from the clock, which all seeds share: under vmap the branches stay branches.
        state = jax.lax.cond(clock % updates_per_task == 0, lambda s: begin_task(s, task, clock), lambda s: s, state)
        train_shape = jax.eval_shape(update, state, task, clock)[1]
        probe_shape = jax.eval_shape(measure, state, task, clock)

        def missing(shapes: Tree, *lead: int) -> Tree:
            return jax.tree.map(lambda s: jnp.full((*lead, *s.shape), jnp.nan, s.dtype), shapes)

        def phase(state: State, trained: Array) -> tuple[State, tuple[Tree, Tree]]:
            """First nothing, then ``length`` updates; then the probes, if due. One compiled copy serves both."""
            state, train = jax.lax.cond(
                trained,
                lambda s: jax.lax.scan(lambda s, c: update(s, task, c), s, clock + jnp.arange(length)),
                lambda s: (s, missing(train_shape, length)),
                state,
            )
            now = clock + jnp.where(trained, length, 0)
            # The end of a task and the start of the next have the same clock, but not the same draws.
            border = 2 * now + trained
            seen = jax.lax.cond(
                due(now, trained), lambda s: measure(s, task, border), lambda _: missing(probe_shape), state
            )
            return state, (train, seen)

        state, (train, seen) = jax.lax.scan(phase, state, jnp.array([False, True]))
        return state, Record(jax.tree.map(lambda x: x[1], train), seen)

    example = jax.eval_shape(
        lambda key: collect(
            model.init(key),
            normalize.start(environment.observation_shape),
            reset_actors(environment, config.num_envs, key, stream.task(key, jnp.int32(0))),
            key,
            stream.task(key, jnp.int32(0)),
        )[2],
        jax.random.key(0),
    )
    size = config.steps_per_update // config.minibatches
    batch_like = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), example)
    dims = {f"{p.name}/{name}": axes for p in probes for name, axes in p.dims.items()}
    coords: dict[str, tuple[Any, ...]] = {}
    for probe in probes:
        for axis, labels in probe.coords.items():
            if coords.setdefault(axis, labels) != labels:
                raise ConfigError(
                    f"{probe.name}.{axis}: {labels} is not allowed beside another probe's {coords[axis]}; one record "
                    "has one labelling of an axis"
                )
    return Program(init, segment, dims, coords)


def task_borders(updates_per_task: int, every: int = 1) -> Callable[[Array, Array], Array]:
    """Probes are due before the first and after the last update of every ``every``-th task; see `program`."""

    def due(done: Array, ending: Array) -> Array:
        # A border belongs to two tasks: to the one that ends there, or to the one that starts.
        task = done // updates_per_task - ending
        return (done % updates_per_task == 0) & (task % every == 0)

    return due


def action_size(environment: Environment) -> tuple[int, bool]:
    """Number of the policy's outputs, and whether actions are continuous: arguments of a model's ``build``."""
    space = environment.action_space
    return (space.size, True) if isinstance(space, Continuous) else (space.n, False)
