"""What the methods share: a configuration's defaults and checks, which entries are regularised, acting at switches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import roles, tree
from plastax.errors import ConfigError
from plastax.roles import Kernel, Role, RolesOf
from plastax.types import Array, Key, Method, Model, Moving, Params, Tree, Units


@dataclass(frozen=True)
class Settings:
    """Base of the methods' configurations: an unchanged model, no action at switches, no negative number."""

    model_options: ClassVar[Mapping[str, Any]] = {}
    needs_boundary: ClassVar[bool] = False
    restarts_statistics: ClassVar[bool] = False
    replaces_units: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = {}
    replaces_optimizer: ClassVar[bool] = False
    below_one: ClassVar[tuple[str, ...]] = ()
    """Fields that must be less than one: decays of running means."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Traced values (a hyperparameter axis) cannot be checked; they come from checked settings.
            if isinstance(value, int | float) and not value >= 0:
                message = f"{type(self).__name__}.{field.name}: {value} is not allowed; give 0 or more"
                raise ConfigError(message)
            if field.name in self.below_one and isinstance(value, int | float) and not value < 1:
                message = f"{type(self).__name__}.{field.name}: {value} is not allowed; give a number below 1"
                raise ConfigError(message)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps the optimiser ``inner``; without a change here."""
        return optax.with_extra_args_support(inner)


def at_least_one(config: Settings, *names: str) -> None:
    """Refuses settings of these names that are below 1."""
    for name in names:
        if getattr(config, name) < 1:
            message = f"{type(config).__name__}.{name}: {getattr(config, name)} is not allowed; give 1 or more"
            raise ConfigError(message)


def transformation(
    name: str, init: Callable[[Params], Any], update: Callable[..., tuple[Tree, Any]], **numbers: Any
) -> Method:
    """A method whose updates have the types of those that it is given, and that says what is missing.

    Args:
      name: for messages.
      init: of the state.
      update: ``(updates, state, params, **extra) -> (updates, state)``.
      **numbers: its settings, none of which may be a schedule.
    """
    check_numbers(name, **numbers)

    def checked(updates: Tree, state: Any, params: Params | None = None, **extra: Any) -> tuple[Tree, Any]:
        moves, state = update(updates, state, given(params, name), **extra)
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


def given(params: Params | None, name: str) -> Params:
    """The parameters; raises `ConfigError` where an update was called without."""
    if params is None:
        raise ConfigError(f"{name}: params: None is not allowed; call update(updates, state, params)")
    return params


def whole(params: Params, name: str) -> Params:
    """The parameters of a whole network, which the method calls; raises `ConfigError` where some are masked."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    if any(map(masked, jax.tree.leaves(params, is_leaf=masked))):
        raise ConfigError(
            f"{name}: it looks at the whole network, and some of its parameters are masked; let it go around, or stand "
            "beside, optax.masked and optax.multi_transform, not inside"
        )
    return params


def drawn(init_fn: Callable[[Key], Params], key: Key, params: Params) -> Params:
    """A fresh draw of the initialiser, in the types of the parameters."""
    return tree.cast(init_fn(key), params)


def chain(inner: optax.GradientTransformation, last: Method) -> Method:
    """`optax.chain` of two that can still `Moving.move` where its last link can."""
    both = optax.chain(inner, last)
    if not isinstance(last, Moving):
        return both
    first = optax.with_extra_args_support(inner)

    def move(updates: Tree, state: Tree, params: Params, **extra: Any) -> tuple[Params, Tree]:
        updates, moved = first.update(updates, state[0], params, **extra)
        params, behind = last.move(updates, state[1], params, **extra)
        return params, (moved, behind)

    return Moving(both.init, both.update, move)


NEVER = -1
"""`last` of a method that has not been applied yet, for `due`."""


def never() -> Array:
    """The clock before the first."""
    return jnp.full((), NEVER, jnp.int32)


def due(period: int, clock: Array, last: Array, every_step: bool, *, ends: bool = False) -> Array:
    """Whether a multiple of ``period`` has come since the last call that was applied, a bool scalar.

    Args:
      period: steps.
      clock: of this call.
      last: clock of the last call that was applied, in the method's state.
      every_step: see `MethodArgs`; then the clock alone says it, which all seeds share.
      ends: act at the ends of periods, not at their starts.
    """
    if every_step:
        return (clock + ends) % period == 0
    return (clock + ends) // period > (last + ends) // period


class AtBoundary(optax.GradientTransformationExtraArgs):
    """A method that acts at task switches; made by `at_boundary`."""


def at_boundary(inner: optax.GradientTransformation, act: Callable[..., tuple[Params, Tree]]) -> AtBoundary:
    """Adds to the optimiser ``inner`` what happens at a task switch.

    Between switches it is ``inner``. At one, ``inner`` takes no step (its gradient is not one), unless it is itself a
    method that acts at switches: then it acts first. Methods that act at switches therefore go around all others;
    `compose` sees to it.

    Args:
      inner: the optimiser.
      act: ``(params, inner_state, *, key, init_fn, ...) -> (params, inner_state)``, of the extra arguments the ones
        that it names. The update is the difference of the parameters, so they equal ``act``'s up to one rounding.
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

        def go_on(updates: Tree, state: Tree) -> tuple[Tree, Tree]:
            return inner.update(updates, state, params, key=key, boundary=False, **extra)

        if isinstance(boundary, bool):
            return (switch if boundary else go_on)(updates, state)
        return jax.lax.cond(boundary, switch, go_on, updates, state)

    return AtBoundary(inner.init, update)


def around(inner: optax.GradientTransformation, init: Callable[..., Any], step: Callable[..., Any]) -> AtBoundary:
    """A method with a state of its own around ``inner``, to be given to `at_boundary`.

    At a switch what acts at switches inside ``inner`` acts; an optimiser, and this method, stand still.

    Args:
      inner: the optimiser.
      init: of the method; its state is a named tuple with that of ``inner`` as ``inner``.
      step: its update between switches.
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
    """The hidden units of a model, by layer.

    Raises:
      ConfigError: there is no model, or it declares none.
    """
    if model is None or not model.units:
        message = f"methods: {method} is not allowed for a model without hidden units; name another method or model"
        raise ConfigError(message)
    return model.units


def batch_like_of(model: Model | None, method: str) -> Tree:
    """Shapes of the batches that a model is trained on.

    Raises:
      ConfigError: there is no model, or it does not know them.
    """
    if model is None or model.batch_like is None:
        message = f"methods: {method} keeps examples and has to know the shape of a batch; give a model with batch_like"
        raise ConfigError(message)
    return model.batch_like


class Ring(NamedTuple):
    """The last ``k`` batches of a run.

    Attributes:
      batches: a tree of ``[k, B, ...]``; the batch of gradient step ``clock`` is at ``clock % k``.
      put: int32, how many were put in.
    """

    batches: Tree
    put: Array


def empty_ring(batch_like: Tree, k: int) -> Ring:
    """Room for ``k`` batches of the shapes of ``batch_like``; raises `ConfigError` where there is none."""
    if batch_like is None:
        raise ConfigError("batch_like: None is not allowed; give a minibatch, or its shapes by jax.eval_shape")
    return Ring(jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), batch_like), jnp.zeros((), jnp.int32))


def keep(ring: Ring, batch: Tree, clock: Array) -> Ring:
    """Puts a batch in the place of the oldest; the place follows the clock, which is the same for all seeds."""
    k = jax.tree.leaves(ring.batches)[0].shape[0]
    place = functools.partial(jax.lax.dynamic_update_index_in_dim, index=clock % k, axis=0)
    return Ring(jax.tree.map(place, ring.batches, batch), ring.put + 1)


def recent(ring: Ring, clock: Array) -> tuple[Tree, Array]:
    """The kept batches as one ``[k * B, ...]``, and which of its examples there are, bool ``[k * B]``."""
    k, size = jax.tree.leaves(ring.batches)[0].shape[:2]
    there = (clock - jnp.arange(k)) % k < ring.put
    return jax.tree.map(lambda x: x.reshape(k * size, *x.shape[2:]), ring.batches), jnp.repeat(there, size)


def when(needed: Array, act: Callable[[Tree], Tree], x: Tree) -> Tree:
    """``act(x)`` where ``needed``, else ``x``, which stays where it lies.

    A branch even under `vmap`, which makes of `jax.lax.cond` both its branches and a choice: a loop of one turn at
    most, which no seed enters where none needs it. A cond would also copy ``x`` in every step.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), act(c[1])), (needed, x))[1]


@dataclass(frozen=True)
class Periodic(Settings):
    """Base of the methods that act every so many gradient steps, because acting costs more than a step."""

    period: int = 16
    """Gradient steps from one action to the next; the default is one an update at 4 epochs x 4 minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "period")


def add_scaled(updates: Tree, scale: float | Array, direction: Tree) -> Tree:
    """``updates + scale * direction``, entry by entry."""
    return jax.tree.map(lambda u, d: u + scale * d, updates, direction)


Matrices = dict[str, tuple[Role, Kernel]]
"""Name of a kernel -> its role, and its axes."""


def matrices_of(params: Params, roles_of: RolesOf, name: str, *, hidden: bool = False) -> Matrices:
    """The kernels of a network, or of its hidden layers.

    Raises:
      ConfigError: there are none; it cannot be told which layers are hidden, or a kernel's axes.
    """
    found = roles.kernels(roles_of.of(params), name, hidden=hidden)
    return {kernel: (role, roles.axes(kernel, role, name)) for kernel, role in found.items()}


def on_matrix(fn: Callable[[Array], Array], x: Array, role: Role, kernel: Kernel) -> Array:
    """``fn`` of a kernel as ``[inputs, units]``, of every layer of a stack by itself."""
    fn = mapped(fn, len(roles.shape_of(role, kernel)[0]))
    return roles.from_matrices(fn(tree.wide(roles.matrices(x, role, kernel))), role, kernel)


def mapped(fn: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """``fn`` over so many leading axes of its arguments."""
    return mapped(jax.vmap(fn), axes - 1) if axes else fn


def on_hidden_kernels(name: str, fn: Callable[[Array], Array], strength: float | Array, roles_of: RolesOf) -> Method:
    """Adds ``strength * fn`` of every hidden layer's kernel ``[inputs, units]`` to what it is given."""

    def init(params: Params) -> optax.EmptyState:
        matrices_of(params, roles_of, name, hidden=True)
        return optax.EmptyState()

    def update(updates: Tree, state: optax.EmptyState, params: Params, **_: object) -> tuple[Tree, optax.EmptyState]:
        found = matrices_of(params, roles_of, name, hidden=True)

        def slope(at: str, x: Array) -> Array:
            return on_matrix(fn, x, *found[at]) if at in found else jnp.zeros_like(x)

        return add_scaled(updates, strength, tree.map_named(slope, params)), state

    return transformation(name, init, update, strength=strength)


def towards_zero(name: str, strength: float | Array, roles_of: RolesOf) -> Method:
    """Adds ``strength * w`` for all parameters but those of normalisations, whose natural centre is not zero."""

    def init(params: Params) -> optax.EmptyState:
        without_norms(params, params, roles_of, name)
        return optax.EmptyState()

    def update(updates: Tree, state: optax.EmptyState, params: Params, **_: object) -> tuple[Tree, optax.EmptyState]:
        return add_scaled(updates, strength, without_norms(params, params, roles_of, name)), state

    return transformation(name, init, update, strength=strength)


def without_norms(values: Tree, params: Params, roles_of: RolesOf, name: str) -> Tree:
    """A tree like the parameters with zeros for normalisations; raises `ConfigError` where nothing else is left."""
    found = roles_of.of(params)
    left_alone = roles.norms(found, name)
    if len(left_alone) == len(found):
        raise ConfigError(f"{name}: all parameters belong to normalisations ({', '.join(found)}); nothing is left")
    return tree.map_named(lambda at, x: jnp.zeros_like(x) if at in left_alone else x, values)
