"""Reinforcement-learning environments as pure functions of a task that is data.

An `Environment` is one unbatched episode loop with auto-reset; `jax.vmap` makes it many. Everything that a stream
changes between tasks (physics, observation offset, game) is an array in its task, so one compilation serves all tasks.

`from_gymnax` wraps a gymnax 1.0 environment, without gymnax's own `step` and wrappers. Those draw a fresh initial state
at every step, inside the scan, where the small random-number kernels take longer than the physics of classic control.
Here the randomness of a step is a value, ``draw(key, task)``, and a rollout computes those of all its steps at once,
before its scan. The transitions are gymnax's, number for number.

Source of the transition semantics: gymnax 1.0.1, ``environments/environment.py`` (terminated and truncated apart,
auto-reset, final observation).
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plastax import drawing, tree
from plastax.errors import ConfigError
from plastax.rl import foreign
from plastax.types import Array, Key, Tree

Task = Tree
"""What a stream computes from (key, task index): a pytree of arrays, read by the environment's functions."""
State = Tree
"""The state of one environment: a pytree of arrays."""
Noise = Tree
"""The randomness of one step: a pytree of arrays."""


class Discrete(NamedTuple):
    """Actions 0 .. n - 1, an int32 scalar.

    Attributes:
      n: the number of actions.
    """

    n: int


class Continuous(NamedTuple):
    """Actions in a box, float32 ``[size]``. The agent clips them, where needed; environments do not.

    Attributes:
      low: lower bound of each entry, ``size`` floats.
      high: upper bound of each entry, ``size`` floats.
      size: the number of entries.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    size: int


class Timestep(NamedTuple):
    """The outcome of one step.

    Attributes:
      observation: float32, of the state to act in next; after a `terminated` or `truncated` step, the first state of a
        new episode.
      reward: float32 scalar.
      terminated: bool scalar, the episode came to its natural end; its successor has value zero.
      truncated: bool scalar, the time limit cut the episode; its successor has a value to bootstrap from. If both flags
        are true, that value is zero.
      final_observation: float32, of the successor state before any reset; equals `observation` unless the episode
        ended.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array


class Environment(NamedTuple):
    """One unbatched environment with auto-reset.

    A rollout of ``T`` steps in ``N`` environments calls `noise` before its scan and `advance` in it. `step` is both,
    for one step.

    Attributes:
      reset: ``(key, task) -> (observation, state)``, the start of an episode.
      draw: ``(key, task) -> noise``, the randomness of one step.
      advance: ``(noise, state, action, task) -> (state, Timestep)``, one step, deterministic.
      observation_shape: of the float32 observations.
      action_space: `Discrete` or `Continuous`.
      binary: whether all entries of all observations are 0 or 1; replay buffers then need a quarter of the memory.
    """

    reset: Callable[[Key, Task], tuple[Array, State]]
    draw: Callable[[Key, Task], Noise]
    advance: Callable[[Noise, State, Array, Task], tuple[State, Timestep]]
    observation_shape: tuple[int, ...]
    action_space: Discrete | Continuous
    binary: bool = False

    def step(self, key: Key, state: State, action: Array, task: Task) -> tuple[State, Timestep]:
        """One step that draws its own randomness: ``advance(draw(key, task), state, action, task)``."""
        return self.advance(self.draw(key, task), state, action, task)

    def noise(self, key: Key, task: Task, steps: int, envs: int) -> Noise:
        """The randomness of one seed's rollout, leading axes ``[T, N]``; pass it to the scan as ``xs``.

        Args:
          key: the rollout's key.
          task: the task of all its environments.
          steps: T, static.
          envs: N, static.

        Returns:
          ``T x N`` independent results of `draw`.
        """
        # Without the barrier XLA:CPU derives a key again for every number that is drawn with it: three times as long.
        keys = jax.lax.optimization_barrier(jax.random.split(key, steps * envs))
        flat = jax.vmap(self.draw, in_axes=(0, None))(keys, task)
        return jax.tree.map(lambda x: x.reshape(steps, envs, *x.shape[1:]), flat)


class EnvironmentStream(NamedTuple):
    """An environment and its sequence of tasks.

    Attributes:
      environment: the environment.
      task: ``(key, index) -> task``, pure. ``key`` is the seed's and the same at every call, so it fixes all tasks of
        the seed; ``index`` is an int32 scalar, the number of the task, from 0 on. Call it inside the vmapped function,
        with an index that the seeds share, and keep the result out of the carry: with a batched task, the `lax.switch`
        of a stream with several games runs all of them.
    """

    environment: Environment
    task: Callable[[Key, Array], Task]


class GymnaxTask(NamedTuple):
    """The task of an environment made by `from_gymnax`.

    Attributes:
      number: int32 scalar, of the task.
      params: the gymnax parameters of the environment; every leaf is an array.
      view: what the observation transform needs, any pytree of arrays.
    """

    number: Array
    params: Tree
    view: Tree


class Spaces(NamedTuple):
    """What a network has to fit of an environment; see `Environment`."""

    observation_shape: tuple[int, ...]
    action_space: Discrete | Continuous


class StreamConfig(Protocol):
    """The settings of a stream: a frozen dataclass."""

    def spaces(self) -> Spaces:
        """What networks have to fit; compiles nothing, and raises `ConfigError` for settings that cannot be used."""

    def build(self) -> EnvironmentStream:
        """The stream; raises as `spaces` does."""


_TURN = Continuous((-1.0, -1.0), (1.0, 1.0), 2)
_STEP = float(np.float32(0.1))
SPACES: Mapping[str, Spaces] = {
    "CartPole-v1": Spaces((4,), Discrete(2)),
    "Pendulum-v1": Spaces((3,), Continuous((-2.0,), (2.0,), 1)),
    "Acrobot-v1": Spaces((6,), Discrete(3)),
    "MountainCar-v0": Spaces((2,), Discrete(3)),
    "MountainCarContinuous-v0": Spaces((2,), Continuous((-1.0,), (1.0,), 1)),
    "Asterix-MinAtar": Spaces((10, 10, 4), Discrete(5)),
    "Breakout-MinAtar": Spaces((10, 10, 4), Discrete(3)),
    "Freeway-MinAtar": Spaces((10, 10, 7), Discrete(3)),
    "Seaquest-MinAtar": Spaces((10, 10, 10), Discrete(6)),
    "SpaceInvaders-MinAtar": Spaces((10, 10, 6), Discrete(4)),
    "Catch-bsuite": Spaces((10, 5), Discrete(3)),
    "DeepSea-bsuite": Spaces((8, 8), Discrete(2)),
    "MemoryChain-bsuite": Spaces((3,), Discrete(2)),
    "UmbrellaChain-bsuite": Spaces((3,), Discrete(2)),
    "DiscountingChain-bsuite": Spaces((2,), Discrete(5)),
    "SimpleBandit-bsuite": Spaces((1, 1), Discrete(11)),
    "FourRooms-misc": Spaces((4,), Discrete(4)),
    "MetaMaze-misc": Spaces((15,), Discrete(4)),
    "PointRobot-misc": Spaces((6,), Continuous((-_STEP, -_STEP), (_STEP, _STEP), 2)),
    "BernoulliBandit-misc": Spaces((4,), Discrete(2)),
    "GaussianBandit-misc": Spaces((4,), Discrete(2)),
    "Reacher-misc": Spaces((8,), _TURN),
    "Swimmer-misc": Spaces((16,), _TURN),
    "Pong-misc": Spaces((30, 40, 3), Discrete(3)),
    "FrozenLake-misc": Spaces((), Discrete(4)),
}
"""gymnax's environments by id, as it makes them by default. Importing gymnax compiles, and so does making an
environment: with this table, bad settings are refused before."""


ENVIRONMENTS: dict[str, Any] = {}
"""Your own environments by name, for every stream that takes an ``env``: see `resolved`."""


def spaces_of(env: Any) -> Spaces:
    """The spaces of an environment; raises `ConfigError` as `make` does."""
    if env == "MNISTBandit-bsuite":
        raise ConfigError(f"stream.env: {env!r} downloads a data set when it is built; choose another environment")
    if isinstance(env, str) and env in SPACES:
        return SPACES[env]
    made, params = resolved(env)
    return Spaces(jax.eval_shape(made.reset_env, tree.key_like(), params)[0].shape, _action_space(made, params))


def resolved(env: Any) -> tuple[Any, Tree]:
    """Your own environment, in the form that `from_gymnax` takes, and its parameters.

    Args:
      env: an environment of gymnax's API (1.0 or 0.0.x, see `plastax.rl.foreign.adapted`), or a pair of one and its
        parameters, or a function that returns either; or its name: of `ENVIRONMENTS`, or ``module:object``.

    Raises:
      ConfigError: there is no such name, or the environment is of another form.
    """
    if isinstance(env, str):
        if env not in ENVIRONMENTS and ":" not in env:
            raise ConfigError.unknown("stream.env", env, [*sorted(SPACES), *ENVIRONMENTS, "or your own, module:object"])
        try:
            env = ENVIRONMENTS[env] if env in ENVIRONMENTS else pkgutil.resolve_name(env)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"stream.env: {env!r} cannot be imported ({error}); give module:object") from error
    if inspect.isroutine(env) or isinstance(env, type):
        env = env()
    env, params = env if isinstance(env, tuple) and len(env) == 2 else (env, None)
    return foreign.adapted(env, params)


PREDRAWN = 128
"""Most numbers of a first observation and state that are drawn before a rollout: more would take as much memory as the
rollout itself."""


class Draw(NamedTuple):
    """The randomness of one step of a gymnax environment.

    Attributes:
      key: of the transition itself.
      restart: the (observation, state) of a new episode, or the key to draw it with.
    """

    key: Key
    restart: tuple[Array, State] | Key


def make(env: Any, **options: Any) -> tuple[Any, Tree]:
    """An environment and its parameters, as arrays.

    Args:
      env: an id known to gymnax, such as ``CartPole-v1``, or your own, see `resolved`.
      **options: of the constructor of gymnax's environment.

    Returns:
      The environment and its parameters, every leaf a strongly typed array.

    Raises:
      ConfigError: unknown id, or one that plastax does not run.
    """
    if not (isinstance(env, str) and env in SPACES):
        spaces_of(env)
        env, params = resolved(env)
        return env, strong(params)
    # gymnax imports matplotlib and seaborn, which takes longer than importing plastax: only who builds a stream pays.
    drawing.import_matplotlib()
    import gymnax

    env, params = gymnax.make(env, **options)
    return env, strong(params)


def strong(tree: Tree) -> Tree:
    """The tree with strongly typed arrays as leaves: a weak type would change the type of a scan's carry."""
    return jax.tree.map(lambda x: jnp.asarray(x, jax.dtypes.result_type(x)), tree)


def from_gymnax(
    env: Any,
    task: GymnaxTask,
    transform: Callable[[Array, Tree], Array] | None = None,
    predraw: bool | None = None,
) -> Environment:
    """An `Environment` from an unwrapped gymnax environment, whose task is a `GymnaxTask`.

    Args:
      env: the environment, from `make`.
      task: any task of the stream; only its shapes and the action bounds are read.
      transform: ``(observation, view) -> observation``, applied to every float32 observation; None for none.
      predraw: True: `Environment.draw` holds the first state of a new episode; a rollout of classic control is then
        about 1.2 to 1.5 times as fast on a CPU. False: only the key for that state, which takes less memory where
        states and observations are large. None: True for up to `PREDRAWN` numbers of both.

    Returns:
      The environment. From the same keys, `step` makes the transitions of ``env.step``, number for number, with the
      reward as float32, the observation as transformed float32 and the flags as bool. (DeepSea's own ``step`` carries
      two counters for bsuite's metrics over resets; here they restart with the episode.)

    Raises:
      ConfigError: the action space is neither discrete nor a one-dimensional box; or 64 bits are enabled, and gymnax's
        code of this environment cannot run with them.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> env, params = make("CartPole-v1")
      >>> task = GymnaxTask(jnp.int32(0), params, jnp.zeros(4))
      >>> environment = from_gymnax(env, task, jnp.add)  # the view is an offset, added to every observation
      >>> observation, state = environment.reset(jax.random.key(0), task)
      >>> state, step = environment.step(jax.random.key(1), state, jnp.int32(1), task)
      >>> step.observation.shape, float(step.reward), bool(step.terminated)
      ((4,), 1.0, False)
    """

    def restart(key: Key, task: GymnaxTask) -> tuple[Array, State]:
        observation, state = env.reset_env(key, task.params)
        return observe(observation, task), strong(state)

    def observe(observation: Array, task: GymnaxTask) -> Array:
        observation = jnp.asarray(observation, jnp.float32)
        return observation if transform is None else transform(observation, task.view).astype(jnp.float32)

    def draw(key: Key, task: GymnaxTask) -> Draw:
        # gymnax's own split, in its order.
        key_step, key_reset = jax.random.split(key)
        return Draw(key_step, restart(key_reset, task) if predraw else key_reset)

    def advance(noise: Draw, state: State, action: Array, task: GymnaxTask) -> tuple[State, Timestep]:
        observation, state, reward, terminated, _ = env.step_env(noise.key, state, action, task.params)
        terminated = jnp.asarray(terminated, jnp.bool_)
        truncated = jnp.asarray(env.is_truncated(state, task.params), jnp.bool_)
        done = terminated | truncated
        first, first_state = noise.restart if isinstance(noise.restart, tuple) else restart(noise.restart, task)
        final = observe(observation, task)
        state = jax.tree.map(functools.partial(jnp.where, done), first_state, strong(state))
        reward = jnp.asarray(reward, jnp.float32)
        return state, Timestep(jnp.where(done, first, final), reward, terminated, truncated, final)

    wide = jax.dtypes.canonicalize_dtype(float) == np.float64
    try:
        observation, state = jax.eval_shape(restart, tree.key_like(), task)
        predraw = tree.size((observation, state)) <= PREDRAWN if predraw is None else predraw
        if wide:
            action = jax.eval_shape(env.action_space(task.params).sample, tree.key_like())
            jax.eval_shape(
                lambda key, state, action: advance(draw(key, task), state, action, task), tree.key_like(), state, action
            )
    except TypeError as error:
        if not wide:
            raise
        raise ConfigError(
            f"JAX_ENABLE_X64: 1 is not allowed with {foreign.name_of(env)}, whose code mixes types; unset it"
        ) from error
    return Environment(restart, draw, advance, observation.shape, _action_space(env, task.params))


def _action_space(env: Any, params: Tree) -> Discrete | Continuous:
    """Gymnax's action space in our types, with the bounds of ``params``."""
    space = env.action_space(params)
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if not hasattr(space, "low") or len(space.shape) != 1:
        raise ConfigError(
            f"stream.env: {foreign.name_of(env)!r} has the action space {space!r}; discrete and one-dimensional boxes "
            "are allowed"
        )
    low, high = (tuple(np.broadcast_to(np.asarray(x, float), space.shape).tolist()) for x in (space.low, space.high))
    return Continuous(low, high, space.shape[0])
