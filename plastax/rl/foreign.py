"""Environments from elsewhere, in the form of gymnax 1.0 that `plastax.rl.environment.from_gymnax` runs.

That form is ``reset_env(key, params) -> (observation, state)``; ``step_env(key, state, action, params) -> (observation,
state, reward, terminated, info)``, without a reset; ``is_truncated(state, params)`` and ``action_space(params)``.

The API of gymnax 0.0.x, which Craftax, navix's ``ToGymnax`` and others have kept, has one flag ``done`` for both ends
of an episode, and some of its environments and wrappers have ``step`` and ``reset`` alone. `adapted` makes the form of
both. It looks at them by abstract evaluation, which compiles nothing.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.errors import ConfigError
from plastax.types import Array, Key, Tree

TRUNCATIONS = ("truncated", "truncation", "TimeLimit.truncated")
"""Entries of ``info`` that tell a truncation."""
FINALS = ("final_observation", "final_obs", "terminal_observation")
"""Entries of ``info`` that hold the observation before a reset."""
NEEDED = (
    "reset_env(key, params) -> (observation, state), step_env(key, state, action, params) -> (observation, state, "
    "reward, done, info), or both without _env, and action_space(params)"
)
Told = Callable[[Tree, Tree], Array]
"""``(state after a step, params) -> bool``."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """An environment in the form of gymnax 1.0; its state is ``(state, truncated)``."""

    name: str
    action_space: Callable[[Tree], Any]
    reset: Callable[[Key, Tree], tuple[Array, Tree]]
    step: Callable[[Key, Tree, Array, Tree], tuple[Array, Tree, Array, Array, Array]]
    """``-> (observation before a reset, state, reward, done, truncated)``."""

    def reset_env(self, key: Key, params: Tree) -> tuple[Array, tuple[Tree, Array]]:
        """The start of an episode."""
        observation, state = self.reset(key, params)
        return observation, (state, jnp.bool_(False))

    def step_env(self, key: Key, state: tuple[Tree, Array], action: Array, params: Tree) -> tuple[Any, ...]:
        """One step; an end that is a truncation is no termination."""
        observation, after, reward, done, truncated = self.step(key, state[0], action, params)
        truncated = jnp.asarray(truncated, jnp.bool_)
        return observation, (after, truncated), reward, jnp.asarray(done, jnp.bool_) & ~truncated, {}

    def is_truncated(self, state: tuple[Tree, Array], params: Tree) -> Array:
        """Whether the last step was cut."""
        del params
        return state[1]


def adapted(env: Any, params: Tree = None, *, truncated: Told | None = None, resets: bool = True) -> tuple[Any, Tree]:
    """An environment of gymnax 1.0, of 0.0.x, or of ``step`` and ``reset`` alone, in the form of gymnax 1.0.

    What tells a truncation is ``truncated``, or else ``info`` (``truncated``, ``truncation``, ``TimeLimit.truncated``),
    or else the environment's own ``is_truncated``. If nothing does, every end is a termination. Where ``done`` covers
    both ends, a step that is cut counts as truncated, even if the episode came to its end there too.

    Args:
      env: the environment, not batched.
      params: its parameters; by default its ``default_params``. If it has ``step`` alone, it keeps these: no stream can
        change its physics.
      truncated: tells whether a step was cut.
      resets: if it has ``step`` alone: whether ``step`` begins the next episode by itself. If such an environment
        truncates, ``info["final_observation"]`` has to hold the observation before the reset.

    Returns:
      The environment and its parameters. The environment is ``env`` itself if it has the form already.

    Raises:
      ConfigError: something is missing or of another form; the message says what is there, and what is needed.

    Examples:
      >>> from gymnax.environments import spaces
      >>> class Coin:  # as in gymnax 0.0.x
      ...     def action_space(self, params):
      ...         return spaces.Discrete(2)
      ...     def reset_env(self, key, params):
      ...         return jnp.zeros(1), jnp.int32(0)
      ...     def step_env(self, key, state, action, params):
      ...         done = state == 9
      ...         return jnp.zeros(1), state + 1, jnp.float32(action), done, {"truncated": done}
      >>> env, params = adapted(Coin())
      >>> key = jax.random.key(0)
      >>> observation, state, reward, terminated, _ = env.step_env(key, (jnp.int32(9), False), 1, params)
      >>> float(reward), bool(terminated), bool(env.is_truncated(state, params))
      (1.0, False, True)
    """
    name = name_of(env)
    whole, alone = _has(env, "step_env", "reset_env"), _has(env, "step", "reset")
    if not hasattr(env, "action_space") or not (whole or alone):
        has = [member for member, _ in inspect.getmembers(type(env), callable) if not member.startswith("_")]
        raise _refused(name, f"it has the methods {', '.join(has) or 'none'}; needed are {NEEDED}")
    params = getattr(env, "default_params", ()) if params is None else params
    # What a wrapper passes on is the step_env of what it wraps; that of a base class may be empty.
    whole = whole and not _is_empty(env.reset_env, tree.key_like(), params)
    reset: Any = env.reset_env if whole else lambda key, _: env.reset(key, params)
    step: Any = env.step_env if whole else lambda key, state, action, _: env.step(key, state, action, params)
    values = step_shapes(name, env.action_space, reset, step, params)
    info, both = values[-1], len(values) == 6
    told = next((key for key in TRUNCATIONS if key in info), None)
    final = None if whole else next((key for key in FINALS if key in info), None)
    own = env.is_truncated if not both and _truncates(env, name, values[1], params) else None
    if whole and own and not truncated and not _ends_together(env):
        return env, params
    if not whole and not final and resets and (truncated or told or own or both):
        raise _refused(
            name,
            "it truncates, and has step alone; put the observation before a reset into info['final_observation'], or, "
            "if step does not reset, give plastax.rl.adapted(env, resets=False)",
        )

    told_by = truncated or (None if told else own)

    def advance(key: Key, state: Tree, action: Array, params: Tree) -> tuple[Any, ...]:
        observation, after, reward, done, *flag, info = step(key, state, action, params)
        cut = told_by(after, params) if told_by else info[told] if told else flag[0] & ~done if both else False
        return info[final] if final else observation, after, reward, done, cut

    return Adapted(name, env.action_space, reset, advance), params


def name_of(env: Any) -> str:
    """What messages call an environment."""
    return str(getattr(env, "name", type(env).__name__))


def step_shapes(name: str, action_space: Any, reset: Any, step: Any, params: Tree) -> tuple[Any, ...]:
    """The shapes of what a step gives; raises `ConfigError` if they are not those of an environment."""
    key = tree.key_like()
    action = _traced(name, "action_space(params).sample(key)", lambda key: action_space(params).sample(key), key)
    start = _traced(name, "reset", reset, key, params)
    if not isinstance(start, tuple) or len(start) != 2:
        raise _refused(name, f"reset gives {_described(start)}; needed are (observation, state)")
    values = _traced(name, "step", step, key, start[1], action, params)
    if not isinstance(values, tuple) or len(values) not in (5, 6) or not isinstance(values[-1], dict):
        raise _refused(name, f"step gives {_described(values)}; needed are (observation, state, reward, done, info)")
    for what, value in (("observation", start[0]), ("observation", values[0]), *zip(("reward", "done"), values[2:])):
        if not isinstance(value, jax.ShapeDtypeStruct) or (what != "observation" and value.shape):
            one = "array" if what == "observation" else "number"
            raise _refused(name, f"{what} is {_described(value)}; needed is one {one}, of one environment")
    before, after = (_parts({"observation": one, "state": state}) for one, state in (start, values[:2]))
    if different := sorted(part for part in before | after if before.get(part) != after.get(part)):
        was, is_ = (parts.get(different[0], "nothing") for parts in (before, after))
        raise _refused(name, f"{different[0]} is {was} after reset, {is_} after a step; make them alike")
    return values


def _parts(tree_: Tree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree_)
    return {jax.tree_util.keystr(path, simple=True, separator="."): _described(leaf) for path, leaf in leaves}


def _traced(name: str, what: str, function: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}"[:200].split())
        raise _refused(name, f"{what} cannot be traced ({reason}); needed are {NEEDED}") from error


def _refused(name: str, said: str) -> ConfigError:
    return ConfigError(f"stream.env: {name}: {said}")


def _described(value: Any) -> str:
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype} {value.shape}"
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _has(env: Any, *names: str) -> bool:
    """Whether it has all of these itself; `hasattr` also finds what a wrapper passes on."""
    return all(inspect.getattr_static(env, name, None) is not None for name in names)


def _is_empty(function: Any, *args: Any) -> bool:
    """Whether a method is an abstract one of a base class."""
    try:
        jax.eval_shape(function, *args)
    except Exception as error:
        return isinstance(error, NotImplementedError)
    return False


def _of(env: Any, method: str) -> int:
    """How far up a method is defined, 0: in the object or its class."""
    return next((i for i, base in enumerate(type(env).__mro__) if method in vars(base)), 0)


def _truncates(env: Any, name: str, state: Tree, params: Tree) -> bool:
    """Whether ``is_truncated`` can be used: that of gymnax's base class asks for fields that 0.0.x did not have."""
    if not _has(env, "is_truncated"):
        return False
    if type(env).__mro__[_of(env, "is_truncated")].__module__.startswith("gymnax."):
        with contextlib.suppress(AttributeError):
            jax.eval_shape(env.is_truncated, state, params)
            return True
        return False
    _traced(name, "is_truncated(state, params)", env.is_truncated, state, params)
    return True


def _ends_together(env: Any) -> bool:
    """Whether it was written for 0.0.x, where ``is_terminal`` covers both ends, on the base class of 1.0."""
    return _has(env, "is_terminal", "is_terminated") and _of(env, "is_terminal") < _of(env, "is_terminated")
