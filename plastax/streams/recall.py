"""Associative recall: keys of several symbols and their values, which change with the task."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.keys import fold, some
from plastax.streams.tokens import Task, TokenStream
from plastax.types import Array, Key, Stream

_KEYS, _VALUES, _AGAIN, _SEQUENCES = range(4)

MOST_KEYS = 2**20
"""Most combinations of symbols among which the keys are drawn."""


@dataclass(frozen=True)
class Recall(TokenStream):
    """Pairs of keys and values to remember; the loss counts the values only, and pairs are drawn again each task.

    A key is a few symbols, a value a token of its own. A sequence is random pairs of the task, one after another: key,
    value, key, value. A value can be recalled from earlier in the sequence if its key was there, and otherwise only
    from what training has learned of the task. Keys cannot be foreseen, so they are not counted. Every value follows
    from its key, so the best possible loss is zero. A seed keeps its keys.

    References:
      Ba et al., "Using fast weights to attend to the recent past", NeurIPS 2016, section 4.1; Arora et al., "Zoology:
      measuring and improving recall in efficient language models", ICLR 2024 (several pairs in a sequence). There every
      sequence has pairs of its own; here a task has.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> stream = Recall(length=6, examples=4, held_out=2, symbols=4, pairs=8).build()
      >>> task = stream.task(jax.random.key(0), stream.data, jnp.int32(0))
      >>> (stream.train(task, stream.data, jnp.arange(1), jax.random.key(1)).y >= 0).tolist()
      [[False, True, False, False, True, False]]
    """

    severity: float = 1.0
    """Probability that a key gets a new value at a task switch. 0: the same pairs; 1: independent ones."""
    symbols: int = 16
    """Symbols that keys are made of."""
    key_length: int = 2
    """Symbols of a key."""
    pairs: int = 64
    """Pairs of a task."""
    values: int = 16
    """Tokens that are values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, "data", "severity", least=0, most=1)
        ranges.check(self, "data", "symbols", "values", least=2)
        ranges.check(self, "data", "key_length", least=1, most=self.length)
        keys = self.symbols**self.key_length
        ranges.check(self, "data", "pairs", least=2, most=min(keys, MOST_KEYS))
        if keys > MOST_KEYS:
            raise ConfigError(
                f"data.key_length: {self.key_length} of {self.symbols} symbols gives {keys:,} keys; give at most "
                f"{MOST_KEYS:,}"
            )

    def build(self) -> Stream:
        """The stream."""
        says = f"recall of {self.pairs} pairs, severity {self.severity:g}"
        return self.of_tasks(self.task, self.symbols + self.values, says)

    def task(self, key: Key, data: tuple[()], index: Array) -> Task:
        """See `Stream.task`."""
        del data
        count, group = self.examples + self.held_out, self.key_length + 1
        drawn = (count, -(-(self.length + 1) // group))
        chosen = jax.random.randint(fold(key, _SEQUENCES, index), drawn, 0, self.pairs)
        tokens = self.dictionary(key, index)[chosen].reshape(count, -1)[:, : self.length + 1]
        answers = jnp.arange(1, self.length + 1) % group == self.key_length
        return self.split(tokens[:, :-1], jnp.where(answers[None], tokens[:, 1:], -1), jnp.zeros(()))

    def dictionary(self, key: Key, index: Array) -> Array:
        """The pairs of a task, symbols of the key and then the value, int32 ``[pairs, key_length + 1]``."""

        def draw(task: Array | int) -> Array:
            return jax.random.randint(fold(key, _VALUES, task), (self.pairs,), 0, self.values)

        def switch(task: Array, values: Array) -> Array:
            again = jax.random.bernoulli(fold(key, _AGAIN, task), self.severity, (self.pairs,))
            return jnp.where(again, draw(task), values)

        values = jax.lax.fori_loop(1, index + 1, switch, draw(0))
        codes = some(fold(key, _KEYS), self.pairs, self.symbols**self.key_length)
        places = self.symbols ** jnp.arange(self.key_length)
        return jnp.concatenate([codes[:, None] // places[None] % self.symbols, self.symbols + values[:, None]], axis=1)
