"""Updates, task switches and probes of one network, put together to the segments of a `Program`.

Supervised streams and reinforcement learning differ in what an update is. When a task begins, when a probe is due and
what a segment returns is the same for both, and is decided here. A seed whose loss is not finite stays as it was before
that update; the other seeds of the compiled program are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plastax.errors import ConfigError
from plastax.types import Array, Key, Probe, ProbeInput, Program, Record, Tree

Due = Callable[[Array, Array], Array]
"""``(number of updates done, whether a segment ends rather than starts here) -> bool``; must not depend on the seed."""


class Parts(NamedTuple):
    """What a kind of training consists of, for one seed; ``data`` is `Program.data`, shared by all seeds.

    Attributes:
      init: ``(key, data) -> state``, a NamedTuple with a field ``alive``, true.
      task: ``(state, data, index) -> task``: what is particular to task number ``index``.
      begin: ``(state, data, task, clock) -> state``: the switch to a task, before its first update; the first task has
        one, too.
      update: ``(state, data, task, clock) -> (state, metrics)``: update number ``clock``; metrics are scalars.
      healthy: ``(state, metrics) -> bool``: whether everything that an update left is finite.
      measure: ``(state, data, task, border) -> values``: all probes. ``border`` is an int32 that differs for all
        measurements, for their keys: twice the number of updates done, plus one at the end of a segment.
    """

    init: Callable[[Key, Tree], Tree]
    task: Callable[[Tree, Tree, Array], Tree]
    begin: Callable[[Tree, Tree, Tree, Array], Tree]
    update: Callable[[Tree, Tree, Tree, Array], tuple[Tree, dict[str, Array]]]
    healthy: Callable[[Tree, dict[str, Array]], Array]
    measure: Callable[[Tree, Tree, Tree, Array], dict[str, Array]]


def program(
    parts: Parts, probes: Sequence[Probe], *, updates_per_task: int, data: Tree = (), due: Due | None = None
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

    Raises:
      ConfigError: from `labels`.
    """
    dims, coords = labels(probes)
    due = due or task_borders(updates_per_task)

    def update(state: Tree, data: Tree, task: Tree, clock: Array) -> tuple[Tree, dict[str, Array]]:
        new, metrics = parts.update(state, data, task, clock)
        alive = state.alive & parts.healthy(new, metrics)
        metrics = {name: where(state.alive, value, absent(value)) for name, value in metrics.items()}
        return where(alive, new, state)._replace(alive=alive), metrics | {"alive": alive.astype(jnp.float32)}

    def begin(state: Tree, data: Tree, task: Tree, clock: Array) -> Tree:
        return where(state.alive, parts.begin(state, data, task, clock), state)

    def measure(state: Tree, data: Tree, task: Tree, border: Array) -> dict[str, Array]:
        values = parts.measure(state, data, task, border)
        return where(state.alive, values, jax.tree.map(absent, values))

    def segment(state: Tree, data: Tree, clock: Array, length: int) -> tuple[Tree, Record]:
        training = clock >= 0
        clock = jnp.where(training, clock, ~clock)
        task = parts.task(state, data, clock // updates_per_task)
        # Every predicate below comes from the clock, which all seeds share: under vmap the branches stay branches.
        state = jax.lax.cond(
            training & (clock % updates_per_task == 0), lambda s: begin(s, data, task, clock), lambda s: s, state
        )
        train_shape = jax.eval_shape(update, state, data, task, clock)[1]
        probe_shape = jax.eval_shape(measure, state, data, task, clock)

        def phase(state: Tree, trained: Array) -> tuple[Tree, tuple[Tree, Tree]]:
            """First nothing, then ``length`` updates; then the probes, if due. One compiled copy serves both."""
            state, train = jax.lax.cond(
                trained,
                lambda s: jax.lax.scan(lambda s, c: update(s, data, task, c), s, clock + jnp.arange(length)),
                lambda s: (s, missing(train_shape, length)),
                state,
            )
            now = clock + jnp.where(trained, length, 0)
            # The end of a task and the start of the next have the same clock, but not the same draws.
            border = 2 * now + trained
            seen = jax.lax.cond(
                due(now, trained),
                lambda s: measure(s, data, task, border),
                lambda _: missing(probe_shape),
                state,
            )
            return state, (train, seen)

        state, (train, seen) = jax.lax.scan(phase, state, jnp.stack([jnp.bool_(False), training]))
        return state, Record(jax.tree.map(lambda x: x[1], train), seen)

    return Program(parts.init, segment, data, dims, coords)


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
        found = _due(probe, seen._replace(key=jax.random.fold_in(seen.key, i)), task)
        values |= {f"{probe.name}/{name}": value for name, value in found.items()}
    return values


def _due(probe: Probe, seen: ProbeInput, task: Array) -> dict[str, Array]:
    if probe.every == 1:
        return probe.measure(seen)
    nothing = missing(jax.eval_shape(lambda: probe.measure(seen)))
    return jax.lax.cond(task % probe.every == 0, lambda: probe.measure(seen), lambda: nothing)


def task_of(border: Array, updates_per_task: int) -> Array:
    """The task of a measurement at ``border``, see `Parts.measure`."""
    return (border // 2 - border % 2) // updates_per_task


def where(condition: Array, yes: Tree, no: Tree) -> Tree:
    """One of two trees. A leaf that both share (a key) costs nothing."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), yes, no)


def absent(value: Array) -> Array:
    """What is recorded for a frozen seed: NaN, and 0 for counts."""
    return jnp.full_like(value, jnp.nan if jnp.issubdtype(value.dtype, jnp.inexact) else 0)


def missing(shapes: Tree, *lead: int) -> Tree:
    """NaN in the shapes of a tree, with leading axes ``lead``: what is recorded where nothing was measured."""
    return jax.tree.map(lambda s: jnp.full((*lead, *s.shape), jnp.nan, s.dtype), shapes)


def task_borders(updates_per_task: int, every: int = 1) -> Due:
    """Probes are due before the first and after the last update of every ``every``-th task."""

    def due(done: Array, ending: Array) -> Array:
        # A border belongs to two tasks: to the one that ends there, or to the one that starts.
        task = done // updates_per_task - ending
        return (done % updates_per_task == 0) & (task % every == 0)

    return due
