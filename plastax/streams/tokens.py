"""What streams of tokens share: their settings, and how the sequences of a task become a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from plastax import ranges
from plastax.types import Array, Examples, Key, Stream, Tree


class Task(NamedTuple):
    """Training examples ``[n, T]``, held-out ones ``[m, T]``, and the reference of the loss, see `Stream.reference`."""

    train: Examples
    test: Examples
    reference: Array


@dataclass(frozen=True)
class TokenStream:
    """Sequences that are drawn anew for every task; no data set.

    The labels of a sequence are its next tokens; negative ones are not counted.
    """

    needs_data: ClassVar[bool] = False

    length: int = 32
    """Tokens of a sequence."""
    examples: int = 512
    """Training sequences of a task."""
    held_out: int = 256
    """Held-out sequences of a task."""

    def __post_init__(self) -> None:
        ranges.check(self, "data", "length", least=2)
        ranges.check(self, "data", "examples", "held_out", least=1)

    def of_tasks(self, task: Callable[[Key, Tree, Array], Task], vocabulary: int, description: str) -> Stream:
        """The stream of these tasks; see `Stream` for ``task`` and ``description``."""

        def train(task: Task, data: Tree, index: Array, key: Key) -> Examples:
            del data, key
            return Examples(task.train.x[index], task.train.y[index])

        def test(task: Task, data: Tree, index: Array) -> Examples:
            del data
            return Examples(task.test.x[index], task.test.y[index])

        return Stream(
            (), "token_cross_entropy", (self.length,), vocabulary, self.examples, self.held_out, task, train, test,
            description, reference=lambda task, data: task.reference,
        )  # fmt: skip

    def split(self, x: Array, y: Array, reference: Array) -> Task:
        """The task of sequences ``[n + m, T]``, of which the first n are trained on.

        A held-out sequence that equals a training one becomes padding, so that it does not count.
        """
        n = self.examples
        known = jnp.any(jnp.all(x[n:, None] == x[None, :n], axis=-1), axis=1)[:, None]
        return Task(Examples(x[:n], y[:n]), Examples(*(jnp.where(known, -1, part[n:]) for part in (x, y))), reference)
