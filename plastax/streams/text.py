"""A text of your own, cut into consecutive domains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plastax import ranges
from plastax.data import text
from plastax.data.text import Corpus, Unit
from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.types import Array, Examples, Key, Stream

_OFFSET = 0


@dataclass(frozen=True)
class Text:
    """A text file of your own: its consecutive parts are tasks, and the loss is that of the next character.

    All parts have one size. A part is read in sequences, one after another, and the last of them are held out. Every
    seed reads the same parts, each with an offset of its own of less than a sequence. The vocabulary is that of the
    whole file. Nobody knows the entropy of a text, so the loss has no reference; and where the text repeats itself,
    held-out sequences may equal training ones.
    """

    needs_data: ClassVar[bool] = True

    length: int = 32
    """Tokens of a sequence."""
    domains: int = 12
    """Parts that the file is cut into: the most tasks."""
    held_out: float = 0.1
    """Share of a part's sequences that is held out, at its end; at least one sequence."""
    unit: Unit = "characters"
    """What a token is: characters | bytes."""
    vocabulary: int = 0
    """Tokens: the most frequent characters, and one token for all others. 0: all characters of the file."""

    def __post_init__(self) -> None:
        ranges.check(self, "data", "length", least=2)
        ranges.check(self, "data", "domains", least=1)
        ranges.check(self, "data", "held_out", above=0, below=1)
        ranges.check(self, "data", "vocabulary", least=0)
        ranges.check_choices(self, "data", unit=Unit)

    def build(self, corpus: Corpus) -> Stream:
        """The stream of a file.

        Raises:
          ConfigError: the file is too short, or its vocabulary too small, see `text.tokens`.
        """
        codes, vocabulary = text.tokens(corpus, self.unit, self.vocabulary)
        size = len(codes) // self.domains
        sequences = size // self.length - 1  # An offset and a last label fit in, too.
        if sequences < 2:
            raise ConfigError(
                f"data_path: {corpus.card.name} is too short: its {len(codes):,} {self.unit} make {self.domains} parts "
                f"of {size}, and a part needs {3 * self.length}; give a longer file, a smaller data.domains or a "
                "smaller data.length"
            )
        held_out = min(max(1, round(self.held_out * sequences)), sequences - 1)
        training = sequences - held_out

        def task(key: Key, data: np.ndarray, index: Array) -> Array:
            """Where the first sequence begins."""
            del data
            return index * size + jax.random.randint(fold(key, _OFFSET), (), 0, self.length)

        def some(start: Array, data: np.ndarray, index: Array) -> Examples:
            places = start + index[:, None] * self.length + jnp.arange(self.length + 1)[None]
            found = jnp.asarray(data)[places]
            return Examples(found[:, :-1], found[:, 1:])

        def train(start: Array, data: np.ndarray, index: Array, key: Key) -> Examples:
            del key
            return some(start, data, index)

        def test(start: Array, data: np.ndarray, index: Array) -> Examples:
            return some(start, data, index + training)

        return Stream(
            codes, "token_cross_entropy", (self.length,), len(vocabulary), training, held_out, task, train, test,
            f"{corpus.card.name} in {self.domains} parts", tasks=self.domains,
        )  # fmt: skip
