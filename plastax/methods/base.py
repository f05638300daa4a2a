"""What the methods share: a configuration's checks, which parameters are regularised, acting at task switches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import optax

from plastax import ranges, roles, tree
from plastax.errors import ConfigError
from plastax.layers import Units
from plastax.moving import Moving
from plastax.roles import Kernel, Role, RolesOf
from plastax.types import Array, Key, Method, Model, Params, Tree


@dataclass(frozen=True)
class Settings:
    """Base of the methods' configurations: by default the model is unchanged and nothing happens at switches.

    No number may be negative. A setting that is a word must be one of the `typing.Literal` that it is annotated with.
    """

    model_options: ClassVar[Mapping[str, Any]] = {}
    needs_boundary: ClassVar[bool] = False
    restarts_statistics: ClassVar[bool] = False
    replaces_units: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = {}
    replaces_optimizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check(*(field.name for field in fields(self)), least=0)
        for name in [field.name for field in fields(self) if isinstance(field.default, str)]:
            words = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in words:
                raise ConfigError.unknown(f"{type(self).__name__}.{name}", getattr(self, name), words)

    def check(self, *names: str, **limits: float) -> None:
        """Refuses settings outside the limits; see `plastax.ranges.check`."""
        ranges.check(self, type(self).__name__, *names, **limits)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps the optimiser ``inner``; here without a change."""
        return optax.with_extra_args_support(inner)


@dataclass(frozen=True)
class Periodic(Settings):
    """Base of the methods that act once in a while, because acting costs more than a step."""

    off: ClassVar[Mapping[str, Any] | None] = {"period": 2**31 - 1}

    period: int = 16
    """Gradient steps from one action to the next; the default is one update of 4 epochs x 4 minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("period", least=1)


def transformation(
    name: str, init: Callable[[Params], Any], update: Callable[..., tuple[Tree, Any]], **numbers: Any
) -> Method:
    """A method that returns updates in the types in which it gets them, and that refuses missing parameters.

    Args:
      name: for messages.
      init: ``params -> state``.
      update: ``(updates, state, params, **extra) -> (updates, state)``.
      **numbers: its settings that must not be schedules.
    """
    check_numbers(name, **numbers)

    def checked(updates: Tree, state: Any, params: Params | None = None, **extra: Any) -> tuple[Tree, Any]:
        moves, state = update(updates, state, require_params(params, name), **extra)
        return tree.cast(moves, updates), state

    return optax.GradientTransformationExtraArgs(init, checked)


def check_numbers(name: str, **numbers: Any) -> None:
    """Raises `ConfigError` for a schedule in the place of a number."""
    for setting, value in numbers.items():
        if callable(value):
            raise ConfigError(
                f"{name}.{setting}: a schedule is not allowed; give a number, or "
                f"optax.inject_hyperparams(methods.{name})({setting}=schedule)"
            )


def require_params(params: Params | None, name: str) -> Params:
    """The parameters; raises `ConfigError` if there are none."""
    if params is None:
        raise ConfigError(f"{name}: params: None is not allowed; call update(updates, state, params)")
    return params


def require_whole(params: Params, name: str) -> Params:
    """The parameters, for a method that calls the network; raises `ConfigError` if some are masked."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    if any(map(masked, jax.tree.leaves(params, is_leaf=masked))):
        raise ConfigError(
            f"{name}: it looks at the whole network, and some of its parameters are masked; put it around, or beside, "
            "optax.masked and optax.multi_transform, not inside"
        )
    return params


def fresh_params(init_fn: Callable[[Key], Params], key: Key, params: Params) -> Params:
    """A fresh draw from the initialiser, in the types of ``params``; raises as `require_draws`."""
    require_draws(init_fn)
    return tree.cast(init_fn(key), params)


def require_draws(init_fn: Callable[[Key], Params] | None) -> None:
    """Raises `ConfigError` for an initialiser without draws, as of a network that was given with its weights."""
    if refusal := getattr(init_fn, "refusal", ""):
        raise ConfigError(f"model: {refusal}")


def chain(inner: optax.GradientTransformation, last: Method) -> Method:
    """`optax.chain` of two; it can `Moving.move` if its last link can."""
    both = optax.chain(inner, last)
    if not isinstance(last, Moving):
        return both
    first = optax.with_extra_args_support(inner)

    def move(updates: Tree, state: Tree, params: Params, **extra: Any) -> tuple[Params, Tree]:
        updates, inner_state = first.update(updates, state[0], params, **extra)
        params, last_state = last.move(updates, state[1], params, **extra)
        return params, (inner_state, last_state)

    return Moving(both.init, both.update, move)


class Timed(NamedTuple):
    """State of an optimiser inside a periodic method, and the clock of the last call that was applied."""

    inner: Tree
    last: Array


def never() -> Array:
    """The clock of the last applied call before there has been one, for `due`."""
    return jnp.full((), -1, jnp.int32)


def due(period: int, clock: Array, last: Array, every_step: bool, *, ends: bool = False) -> Array:
    """Whether a period has begun since the last call that was applied, a bool scalar.

    Args:
      period: gradient steps.
      clock: of this call.
      last: clock of the last call that was applied, from the method's state.
      every_step: see `MethodArgs`. If True, the clock alone decides, so all seeds share the answer.
      ends: whether to act at the ends of periods instead of their starts.
    """
    if every_step:
        return (clock + ends) % period == 0
    return (clock + ends) // period > (last + ends) // period


class AtBoundary(optax.GradientTransformationExtraArgs):
    """A method that acts at task switches; made by `at_boundary`."""


def at_boundary(inner: optax.GradientTransformation, act: Callable[..., tuple[Params, Tree]]) -> AtBoundary:
    """Adds an action at task switches to the optimiser ``inner``.

    Between switches it is ``inner``. At a switch ``inner`` takes no step, because there is no gradient. If ``inner``
    itself acts at switches, it acts first. Methods that act at switches must therefore be outermost; `compose` puts
    them there.

    Args:
      inner: the optimiser.
      act: ``(params, inner_state, *, key, init_fn, ...) -> (params, inner_state)``; it gets the extra arguments of
        `MethodArgs` by name. The update is the difference of the parameters: they equal ``act``'s up to one rounding.
    """
    nested = isinstance(inner, AtBoundary)
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Tree, state: Tree, params: Params, *, key: Key, boundary: Array | bool, **extra: Any
    ) -> tuple[Tree, Tree]:
        def switch(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            moved = params
            if nested:
                own = jax.random.fold_in(key, 1)
                updates, state = inner.update(updates, state, params, key=own, boundary=True, **extra)
                moved = jax.tree.map(jnp.add, params, updates)
            new, state = act(moved, state, key=key, **extra)
            return tree.cast(jax.tree.map(jnp.subtract, new, params), updates), state

        def step(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            return inner.update(updates, state, params, key=key, boundary=False, **extra)

        if isinstance(boundary, bool):
            return (switch if boundary else step)(updates, state)
        return jax.lax.cond(boundary, switch, step, updates, state)

    return AtBoundary(inner.init, update)


def around(inner: optax.GradientTransformation, init: Callable[..., Any], step: Callable[..., Any]) -> AtBoundary:
    """A method with its own state around ``inner``, to be given to `at_boundary`.

    At a switch, methods inside ``inner`` that act at switches do so. An optimiser, and this method, stand still.

    Args:
      inner: the optimiser.
      init: ``params -> state``, a named tuple that holds the state of ``inner`` as ``inner``.
      step: the update between switches.
    """
    nested = isinstance(inner, AtBoundary)
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: Any, params: Params, *, boundary: bool = False, **extra: Any) -> tuple[Tree, Any]:
        if not boundary:
            return step(updates, state, params, **extra)
        if not nested:
            return jax.tree.map(jnp.zeros_like, updates), state
        moves, inner_state = inner.update(updates, state.inner, params, boundary=True, **extra)
        return moves, state._replace(inner=inner_state)

    return AtBoundary(init, update)


def units_of(model: Model | None, method: str) -> Mapping[str, Units]:
    """The hidden units of a model, by layer; raises `ConfigError` if there are none."""
    if model is None or not model.units:
        raise ConfigError(
            f"methods: {method} is not allowed for a model without hidden units; name another method or model"
        )
    require_draws(model.init)
    return model.units


def batch_like_of(model: Model | None, method: str) -> Tree:
    """Shapes of a model's training batches; raises `ConfigError` if they are not known."""
    if model is None or model.batch_like is None:
        raise ConfigError(
            f"methods: {method} keeps examples and has to know the shape of a batch; give a model with batch_like"
        )
    return model.batch_like


class Ring(NamedTuple):
    """The last ``k`` batches of a run.

    Attributes:
      batches: a tree of ``[k, B, ...]``; the batch of gradient step ``clock`` is at ``clock % k``.
      put: int32, number of batches put in so far.
    """

    batches: Tree
    put: Array


def empty_ring(batch_like: Tree, k: int) -> Ring:
    """Room for ``k`` batches of the shapes of ``batch_like``; raises `ConfigError` if that is None."""
    if batch_like is None:
        raise ConfigError("batch_like: None is not allowed; give a minibatch, or its shapes by jax.eval_shape")
    return Ring(jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), batch_like), jnp.zeros((), jnp.int32))


def push(ring: Ring, batch: Tree, clock: Array) -> Ring:
    """Replaces the oldest batch. Its place follows the clock, which all seeds share, so `vmap` makes no scatter."""
    k = jax.tree.leaves(ring.batches)[0].shape[0]
    place = functools.partial(jax.lax.dynamic_update_index_in_dim, index=clock % k, axis=0)
    return Ring(jax.tree.map(place, ring.batches, batch), ring.put + 1)


def recent(ring: Ring, clock: Array) -> tuple[Tree, Array]:
    """The kept batches as one of ``[k * B, ...]``, and the mask of examples already seen, bool ``[k * B]``."""
    k, size = jax.tree.leaves(ring.batches)[0].shape[:2]
    mask = (clock - jnp.arange(k)) % k < ring.put
    return jax.tree.map(lambda x: x.reshape(k * size, *x.shape[2:]), ring.batches), jnp.repeat(mask, size)


def apply_if(needed: Array, act: Callable[[Tree], Tree], x: Tree) -> Tree:
    """``act(x)`` if ``needed``, else ``x``, which is not copied.

    Under `vmap` `jax.lax.cond` computes both branches and selects. This stays a branch: a loop of at most one turn,
    which is skipped unless some seed needs it. A cond would also copy ``x`` in every step.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), act(c[1])), (jnp.asarray(needed), x))[1]


def add_scaled(updates: Tree, scale: float | Array, direction: Tree) -> Tree:
    """``updates + scale * direction``, entry by entry."""
    return jax.tree.map(lambda u, d: u + scale * d, updates, direction)


Matrices = dict[str, tuple[Role, Kernel]]
"""Name of a kernel -> its role and its axes."""


def matrices_of(params: Params, roles_of: RolesOf, name: str, *, hidden: bool = False) -> Matrices:
    """The kernels of a network, or of its hidden layers only.

    Raises:
      ConfigError: there are none, or it is unclear which layers are hidden or which axes a kernel has.
    """
    found = roles.kernels(roles_of.of(params), name, hidden=hidden)
    return {kernel: (role, roles.axes(kernel, role, name)) for kernel, role in found.items()}


def on_matrix(fn: Callable[[Array], Array], x: Array, role: Role, kernel: Kernel) -> Array:
    """``fn`` of a kernel as ``[inputs, units]``, for each layer of a stack."""
    fn = vmapped(fn, len(roles.shape_of(role, kernel)[0]))
    return roles.from_matrices(fn(tree.wide(roles.matrices(x, role, kernel))), role, kernel)


def vmapped(fn: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """``fn`` mapped over that many leading axes of its arguments."""
    return vmapped(jax.vmap(fn), axes - 1) if axes else fn


def kernel_penalty(name: str, slope: Callable[[Array], Array], strength: float | Array, roles_of: RolesOf) -> Method:
    """Adds ``strength * slope(W)`` for each hidden layer's kernel ``W`` ``[inputs, units]`` to the updates."""

    def init(params: Params) -> optax.EmptyState:
        matrices_of(params, roles_of, name, hidden=True)
        return optax.EmptyState()

    def update(updates: Tree, state: optax.EmptyState, params: Params, **_: object) -> tuple[Tree, optax.EmptyState]:
        found = matrices_of(params, roles_of, name, hidden=True)

        def of_leaf(at: str, x: Array) -> Array:
            return on_matrix(slope, x, *found[at]) if at in found else jnp.zeros_like(x)

        return add_scaled(updates, strength, tree.map_named(of_leaf, params)), state

    return transformation(name, init, update, strength=strength)


def towards_zero(name: str, strength: float | Array, roles_of: RolesOf) -> Method:
    """Adds ``strength * w`` for all parameters except those of normalisations, whose natural centre is not zero."""

    def init(params: Params) -> optax.EmptyState:
        without_norms(params, params, roles_of, name)
        return optax.EmptyState()

    def update(updates: Tree, state: optax.EmptyState, params: Params, **_: object) -> tuple[Tree, optax.EmptyState]:
        return add_scaled(updates, strength, without_norms(params, params, roles_of, name)), state

    return transformation(name, init, update, strength=strength)


def without_norms(values: Tree, params: Params, roles_of: RolesOf, name: str) -> Tree:
    """``values`` with zeros for normalisations' parameters; raises `ConfigError` if all parameters are such."""
    found = roles_of.of(params)
    left_alone = roles.norms(found, name)
    if len(left_alone) == len(found):
        raise ConfigError(f"{name}: all parameters belong to normalisations ({', '.join(found)}); nothing is left")
    return tree.map_named(lambda at, x: jnp.zeros_like(x) if at in left_alone else x, values)
