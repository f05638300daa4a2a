"""Updates, task switches and probes of one network, put together to the segments of a `Program`.

Supervised streams and reinforcement learning differ in what an update is. When a task begins, when a probe is due and
what a segment returns is the same for both, and is decided here. A seed whose loss is not finite stays as it was before
that update; the other seeds of the compiled program are not affected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.types import Array, Key, Probe, ProbeInput, Program, Tree

Due = Callable[[int, bool], bool]
"""``(number of updates done, whether a segment ends rather than starts here) -> bool``."""


def where(condition: Array, yes: Tree, no: Tree) -> Tree:
    """One of two trees. A leaf that both share (a key) costs nothing."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), yes, no)


class Parts(NamedTuple):
    """What a kind of training consists of, for one seed; ``data`` is `Program.data`, shared by all seeds.

    Attributes:
      init: ``(key, data) -> state``, a NamedTuple with a field ``alive``, true.
      task: ``(state or view, data, index) -> task``: what is particular to task number ``index``.
      begin: ``(state, data, task, clock) -> state``: the switch to a task, before its first update; the first task has
        one, too.
      update: ``(state, data, task, clock) -> (state, metrics)``: update number ``clock``; metrics are scalars.
      healthy: ``(state, metrics) -> bool``: whether everything that an update left is finite.
      view: see `Program.view`; it has ``alive``.
      measure: ``(view, data, task, border) -> values``: all probes, see `Program.measure`.
      freeze: ``(alive, new, old) -> state``: the new state, or the old one if the seed is not alive. Another one than
        `where` may let go on what nothing reads any more.
    """

    init: Callable[[Key, Tree], Tree]
    task: Callable[[Tree, Tree, Array], Tree]
    begin: Callable[[Tree, Tree, Tree, Array], Tree]
    update: Callable[[Tree, Tree, Tree, Array], tuple[Tree, dict[str, Array]]]
    healthy: Callable[[Tree, dict[str, Array]], Array]
    view: Callable[[Tree], Tree]
    measure: Callable[[Tree, Tree, Tree, Array], dict[str, Array]]
    freeze: Callable[[Array, Tree, Tree], Tree] = where


def program(
    parts: Parts,
    probes: Sequence[Probe],
    *,
    updates_per_task: int,
    data: Tree = (),
    due: Due | None = None,
    alike: Hashable = None,
) -> Program:
    """A program that switches tasks every ``updates_per_task`` updates and measures where it is due.

    The first update that is not `Parts.healthy` freezes its seed: the state from before that update stays for good.
    The record has that update's metrics as they were, and NaN (0 for counts) from then on, in probes too. ``alive`` is
    1 for every healthy update and 0 from the first unhealthy one on.

    Args:
      parts: the training.
      probes: those of `Parts.measure`, for the labels of the record.
      updates_per_task: length of a task. Segments may be shorter but must not cross a switch.
      data: what all seeds share.
      due: when to measure, at the borders of segments; None: at both ends of every task.
      alike: see `Program.alike`.

    Raises:
      ConfigError: from `labels`.
    """
    dims, coords = labels(probes)

    def begin(state: Tree, data: Tree, clock: Array) -> Tree:
        task = parts.task(state, data, clock // updates_per_task)
        return parts.freeze(state.alive, parts.begin(state, data, task, clock), state)

    def segment(state: Tree, data: Tree, clock: Array, length: int) -> tuple[Tree, dict[str, Array]]:
        task = parts.task(state, data, clock // updates_per_task)

        def update(state: Tree, clock: Array) -> tuple[Tree, dict[str, Array]]:
            new, metrics = parts.update(state, data, task, clock)
            alive = state.alive & parts.healthy(new, metrics)
            metrics = {name: where(state.alive, value, absent(value)) for name, value in metrics.items()}
            return parts.freeze(alive, new, state)._replace(alive=alive), metrics | {"alive": alive.astype(jnp.float32)}

        return _in_a_loop(lambda s: jax.lax.scan(update, s, clock + jnp.arange(length)), state, clock >= 0)

    def measure(view: Tree, data: Tree, border: Array) -> dict[str, Array]:
        task = parts.task(view, data, task_of(border, updates_per_task))

        def values(view: Tree) -> tuple[Tree, dict[str, Array]]:
            found = parts.measure(view, data, task, border)
            return view, where(view.alive, found, jax.tree.map(absent, found))

        return _in_a_loop(values, view, border >= 0)[1]

    due = due or task_borders(updates_per_task)
    return Program(parts.init, begin, segment, parts.view, measure, updates_per_task, due, data, dims, coords, alike)


def _in_a_loop(fn: Callable[[Tree], tuple[Tree, Tree]], carry: Tree, true: Array) -> tuple[Tree, Tree]:
    """``fn(carry)``, rounded as XLA rounds in a loop, which differs from how it rounds outside of one.

    Earlier versions updated and measured in one loop of two turns. So does this: the first turn does nothing, and
    results stay the same bit for bit.

    Args:
      fn: ``carry -> (carry, values)``.
      carry: what it starts from.
      true: a traced bool that is true. The compiler must not know it, or it would remove the loop.
    """
    nothing = jax.eval_shape(fn, carry)[1]

    def turn(carry: Tree, acting: Array) -> tuple[Tree, Tree]:
        return jax.lax.cond(acting, fn, lambda carry: (carry, missing(nothing)), carry)

    carry, found = jax.lax.scan(turn, carry, jnp.stack([jnp.bool_(False), true]))
    return carry, jax.tree.map(lambda x: x[1], found)


def labels(probes: Sequence[Probe]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[Any, ...]]]:
    """``dims`` and ``coords`` of `Program`: the axes of what probes record, and the labels along them.

    Raises:
      ConfigError: two probes label one axis differently or record under one name.
    """
    for i, probe in enumerate(probes):
        if any(probe.name == other.name for other in probes[:i]):
            raise ConfigError(f"probes: two of them record as {probe.name!r}; leave one out")
    dims = {f"{p.name}/{name}": axes for p in probes for name, axes in p.dims.items()}
    coords: dict[str, tuple[Any, ...]] = {}
    for probe in probes:
        for axis, names in probe.coords.items():
            if coords.setdefault(axis, names) != names:
                raise ConfigError(
                    f"{probe.name}.{axis}: {names} is not allowed beside another probe's {coords[axis]}; one record "
                    "has one labelling of an axis"
                )
    return dims, coords


def look(probes: Sequence[Probe], seen: ProbeInput, task: Array) -> dict[str, Array]:
    """The probes' values, ``<probe>/<value>``; NaN for a probe that is not due in this task.

    Args:
      probes: each gets its own key, folded from that of ``seen``.
      seen: their input.
      task: int32 scalar; must not depend on the seed.
    """
    values: dict[str, Array] = {}
    for i, probe in enumerate(probes):
        own = functools.partial(probe.measure, seen._replace(key=jax.random.fold_in(seen.key, i)))
        values |= {f"{probe.name}/{name}": value for name, value in every(probe.every, task, own).items()}
    return values


def missing(shapes: Tree) -> Tree:
    """NaN in the shapes of a tree."""
    return jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)


def task_of(border: Array, updates_per_task: int) -> Array:
    """The task of a measurement at ``border``, see `Program.measure`: the one that ends there, or the one that starts.

    Both have the same number of updates done, but not the same draws.
    """
    return (border // 2 - border % 2) // updates_per_task


def absent(value: Array) -> Array:
    """What is recorded for a frozen seed: NaN, and 0 for counts."""
    return jnp.full_like(value, jnp.nan if jnp.issubdtype(value.dtype, jnp.inexact) else 0)


def every(tasks: int, task: Array, measure: Callable[[], Tree]) -> Tree:
    """What ``measure`` returns, in every ``tasks``-th task; in others NaN in the same shapes."""
    if tasks == 1:
        return measure()
    nothing = jax.eval_shape(measure)
    # The task is the same for all seeds: under vmap, the branches stay branches.
    return jax.lax.cond(task % tasks == 0, measure, lambda: missing(nothing))


def task_borders(updates_per_task: int, every: int = 1) -> Due:
    """Measurements are due before the first and after the last update of every ``every``-th task."""

    def due(done: int, ending: bool) -> bool:
        return done % updates_per_task == 0 and (done // updates_per_task - ending) % every == 0

    return due
