"""A text file of your own as tokens: its characters, or its bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from plastax.data.base import Card, DataError
from plastax.data.bounded import reading
from plastax.errors import ConfigError

Unit = Literal["characters", "bytes"]


class Corpus(NamedTuple):
    """A file in memory: its ``content``, and a ``card`` that says where it comes from."""

    content: bytes
    card: Card


def read(path: str | os.PathLike[str]) -> Corpus:
    """A file as it is; `tokens` reads it.

    Raises:
      DataError: the path is "", does not exist or is no file, or the file is empty or cannot be read.
    """
    file = Path(path).expanduser().absolute()
    if not os.fspath(path) or not file.is_file():
        what = f"{file} is no file" if os.fspath(path) else "no file is given"
        raise DataError(f"data_path: {what}; give a text file")
    with reading(file):
        content = file.read_bytes()
    if not content:
        raise DataError(f"data_path: {file} is empty; give a text file")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    notes = "train: bytes of the file; the last sequences of each domain are held out"
    card = Card(file.name, False, str(file), "not stated", str(file), digest, (), 0, len(content), 0, notes)
    return Corpus(content, card)


def tokens(corpus: Corpus, unit: Unit, vocabulary: int = 0) -> tuple[np.ndarray, tuple[str | int, ...]]:
    """The tokens of a file.

    Args:
      corpus: see `read`.
      unit: characters (of UTF-8) | bytes.
      vocabulary: how many tokens there are: the most frequent characters or bytes, and one token for all others. 0: all
        that occur.

    Returns:
      int32 ``[N]``, and the character or byte of each token, sorted; "" for all others.

    Raises:
      DataError: the file is not UTF-8, or has a single character.
      ConfigError: the vocabulary is larger than that of the file, or smaller than two.

    Examples:
      >>> corpus = Corpus("banana".encode(), Card("x", False, "", "", "", "", (), 0, 6, 0, ""))
      >>> tokens(corpus, "characters")
      (array([1, 0, 2, 0, 2, 0], dtype=int32), ('a', 'b', 'n'))
      >>> tokens(corpus, "characters", vocabulary=2)
      (array([1, 0, 1, 0, 1, 0], dtype=int32), ('a', ''))
    """
    name = corpus.card.name
    if unit == "bytes":
        found = np.frombuffer(corpus.content, np.uint8)
    else:
        try:
            found = np.frombuffer(corpus.content.decode("utf-8-sig").encode("utf-32-le"), "<u4")
        except UnicodeDecodeError as error:
            why = f"{error.reason} at byte {error.start}"
            raise DataError(f"data_path: {name} is no UTF-8 text ({why}); give data.unit=bytes") from error
    known, codes, counts = np.unique(found, return_inverse=True, return_counts=True)
    if len(known) < 2:
        raise DataError(f"data_path: {name} has fewer than two different {unit}; give a text")
    if vocabulary and not 2 <= vocabulary <= len(known):
        raise ConfigError(
            f"data.vocabulary: {vocabulary} is not allowed: {name} has {len(known)} different {unit}; give 2 to "
            f"{len(known)}, or 0 for all"
        )
    names: list[str | int] = [int(one) if unit == "bytes" else chr(one) for one in known]
    if 0 < vocabulary < len(known):
        kept = np.sort(np.argsort(-counts, kind="stable")[: vocabulary - 1])
        places = np.full(len(known), vocabulary - 1)
        places[kept] = np.arange(vocabulary - 1)
        codes, names = places[codes], [*(names[one] for one in kept), ""]
    return codes.astype(np.int32), tuple(names)
