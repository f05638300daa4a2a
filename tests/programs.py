"""Programs, run by tests as the host runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.types import Program, Record, Tree


def simple(segment: Callable[..., Any], init: Callable[..., Any] | None = None, updates_per_task: int = 1) -> Program:
    """A program that has no tasks to switch and measures nothing; it begins with a random number."""
    return Program(
        init or (lambda key, data: jax.random.uniform(key)), lambda state, data, clock: state, segment,
        lambda state: state, lambda view, data, border: {}, updates_per_task, lambda done, ending: False, (), {}, {},
    )  # fmt: skip


class Jitted(NamedTuple):
    """A program's jitted functions."""

    program: Program
    init: Callable[..., Tree]
    begin: Callable[..., Tree]
    train: Callable[..., tuple[Tree, dict[str, jax.Array]]]
    measure: Callable[..., dict[str, jax.Array]]

    def segment(self, state: Tree, data: Tree, clock: int, length: int) -> tuple[Tree, Record]:
        """The switch, the updates and the measurements of a segment."""
        clock = int(clock)
        if clock % self.program.updates_per_task == 0:
            state = self.begin(state, data, jnp.int32(clock))
        start = self.measured(state, data, clock, False)
        state, train = self.train(state, data, jnp.int32(clock), length)
        end = self.measured(state, data, clock + length, True)
        return state, Record(train, {name: jnp.stack([start[name], end[name]], 1) for name in start})

    def measured(self, state: Tree, data: Tree, done: int, ending: bool) -> dict[str, Any]:
        view = self.program.view(state)
        if self.program.due(done, ending):
            return self.measure(view, data, jnp.int32(2 * done + ending))
        shapes = jax.eval_shape(self.measure, view, data, jnp.int32(0))
        return {name: np.full(x.shape, np.nan, x.dtype) for name, x in shapes.items()}


def jitted(program: Program, options: Mapping[str, Any] | None = None) -> Jitted:
    """The program's functions; ``options`` are those of the compiler."""

    def jit(fn: Callable[..., Any], **static: Any) -> Callable[..., Any]:
        return jax.jit(fn, compiler_options=options, **static)

    train = jit(program.segment, static_argnums=3)
    return Jitted(program, jit(program.init), jit(program.begin), train, jit(program.measure))
