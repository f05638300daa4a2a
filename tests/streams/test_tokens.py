"""Streams of tokens: their sources, exactly; what is held out; what is not counted; and a text of one's own."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plastax
from experiments import token_drift
from plastax import testing
from plastax.data import text
from plastax.errors import ConfigError
from plastax.streams import TOKENS, Grammar, Recall, Text

GRAMMAR = Grammar(length=12, examples=600, held_out=40, states=3, symbols=5, choices=2)
RECALL = Recall(length=7, examples=30, held_out=30, symbols=4, pairs=6, values=3)
PANGRAM = "the quick brown fox jumps over the lazy dog; " * 9


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> text.Corpus:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(rng.permutation(list(PANGRAM))) + "é", encoding="utf-8")
    return text.read(path)


@pytest.mark.parametrize("name", TOKENS)
def test_streams_of_tokens_keep_their_promises(name: str, corpus: text.Corpus) -> None:
    configs = {"grammar": GRAMMAR, "recall": RECALL, "text": Text(length=6, domains=4)}
    testing.check_stream(configs[name], corpus if name == "text" else None)


# One program for all severities.
@jax.jit
def made(severity: jax.Array, seed: jax.Array, index: jax.Array) -> Any:
    config, key = dataclasses.replace(GRAMMAR, severity=severity), jax.random.key(seed)
    rules = config.rules(key, index)
    return rules, rules.stationary(), config.task(key, (), index)


@functools.cache
def of(severity: float, seed: int, index: int) -> Any:
    """The rules of a task, their stationary distribution, and the task."""
    return jax.tree.map(np.asarray, made(severity, seed, index))


def moves(found: Any) -> np.ndarray:
    """The matrix of transitions between states, in double precision."""
    matrix = np.zeros((len(found.symbols), len(found.symbols)))
    for state, (chances, after) in enumerate(zip(found.probabilities.astype(float), found.following)):
        np.add.at(matrix[state], after, chances)
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_rate_is_that_of_the_stationary_distribution(seed: int) -> None:
    found, got, task = of(1.0, seed, 1)
    values, vectors = np.linalg.eig(moves(found).T)
    stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    stationary /= stationary.sum()
    p = found.probabilities.astype(float)
    exact = -np.sum(stationary[:, None] * p * np.log(p))
    np.testing.assert_allclose(got, stationary, atol=1e-6)
    np.testing.assert_allclose(task.reference, exact, rtol=1e-5)
    # By brute force: the entropy of all words that the source may say grows by the rate with every symbol.
    words: dict[tuple[int, ...], float] = {(s,): stationary[s] for s in range(3)}
    entropies = []
    for _ in range(8):
        longer: dict[tuple[int, ...], float] = {}
        for word, chance in words.items():
            state = word[0]
            for choice in word[1:]:
                state = found.following[state, choice]
            for choice in range(2):
                longer[(*word, choice)] = chance * p[state, choice]
        words = longer
        entropies.append(-sum(x * math.log(x) for x in words.values()))
    np.testing.assert_allclose(np.diff(entropies), exact, rtol=1e-5)


def test_a_predictor_that_knows_the_grammar_has_the_reference_as_its_loss() -> None:
    found, _, task = of(1.0, 3, 2)
    per_sequence = []
    for x, y in zip(task.train.x, task.train.y):
        state, total = x[0] - GRAMMAR.symbols, 0.0
        for token in y:
            (choice,) = np.flatnonzero(found.symbols[state] == token)  # The state may say it, in one way.
            total -= math.log(found.probabilities[state, choice])
            state = found.following[state, choice]
        per_sequence.append(total / GRAMMAR.length)
    error = np.std(per_sequence) / math.sqrt(len(per_sequence))
    assert abs(np.mean(per_sequence) - task.reference) < 4 * error < 0.1 * task.reference


def test_severity_says_how_many_states_get_new_rules() -> None:
    def changed(severity: float, seed: int) -> list[bool]:
        before, after = (of(severity, seed, index)[0] for index in (4, 5))
        return [any((a[k] != b[k]).any() for a, b in zip(before, after)) for k in range(GRAMMAR.states)]

    assert not any(changed(0.0, 0))
    assert all(changed(1.0, 0))
    assert 0.25 < np.mean([changed(0.5, seed) for seed in range(12)]) < 0.75


def test_the_same_grammar_says_other_things_in_the_next_task() -> None:
    first, second = (of(0.0, 0, index)[2] for index in (0, 1))
    assert first.reference == second.reference
    assert not np.array_equal(first.train.x, second.train.x)


def test_a_sentence_that_is_trained_on_does_not_count_where_it_is_held_out() -> None:
    """Of a source that says few different things."""
    task = of(1.0, 0, 0)[2]
    trained = {tuple(row) for row in task.train.x.tolist()}
    padding = (task.test.x < 0).all(1)
    assert 0 < padding.sum() < GRAMMAR.held_out
    assert (task.test.y[padding] < 0).all()
    assert not trained & {tuple(row) for row in task.test.x[~padding].tolist()}


def test_recall_counts_values_only_and_they_follow_from_their_keys() -> None:
    stream = RECALL.build()
    task = jax.jit(stream.task, static_argnums=1)
    tasks = [task(jax.random.key(0), (), jnp.int32(index)) for index in range(2)]
    known: list[dict[tuple[int, ...], int]] = [{}, {}]
    for one, pairs in zip(tasks, known):
        for part in (one.train, one.test):
            for x, y in zip(np.asarray(part.x), np.asarray(part.y)):
                if (x < 0).all():
                    continue
                assert np.flatnonzero(y >= 0).tolist() == [1, 4]
                for at in (1, 4):
                    key = tuple(x[at - 1 : at + 1].tolist())
                    assert max(key) < RECALL.symbols <= y[at]
                    assert pairs.setdefault(key, int(y[at])) == y[at]
    assert known[0].keys() == known[1].keys()
    assert len(known[0]) == RECALL.pairs
    assert known[0] != known[1]


def test_a_text_is_read_once_by_all_tasks_together(corpus: text.Corpus) -> None:
    stream = Text(length=6, domains=3).build(corpus)
    codes, vocabulary = text.tokens(corpus, "characters")
    assert "".join(vocabulary[code] for code in codes) == corpus.content.decode()
    size, seen = len(codes) // 3, []
    for index in range(3):
        task = stream.task(jax.random.key(0), stream.data, jnp.int32(index))
        train = stream.train(task, stream.data, jnp.arange(stream.examples), jax.random.key(1))
        test = stream.test(task, stream.data, jnp.arange(stream.held_out))
        x, y = (np.concatenate(parts).ravel() for parts in zip(train[:2], test[:2]))
        np.testing.assert_array_equal(x[1:], y[:-1])
        start = int(task)
        assert index * size <= start < start + len(x) < (index + 1) * size
        np.testing.assert_array_equal(x, codes[start : start + len(x)])
        seen.append(x)
    assert len(np.concatenate(seen)) > 0.85 * len(codes)


def test_the_rarest_characters_become_one_token() -> None:
    card = text.read(Path(__file__)).card
    codes, names = text.tokens(text.Corpus(b"aaabbc\xc3\xa9", card), "characters", 3)
    assert names == ("a", "b", "")
    assert codes.tolist() == [0, 0, 0, 1, 1, 2, 2]
    codes, names = text.tokens(text.Corpus(b"a\xff", card), "bytes")
    assert (codes.tolist(), names) == ([0, 1], (97, 255))


@pytest.mark.parametrize(
    ("config", "content", "says"),
    [
        (Text(), "abc" * 50, r"too short: its 150 characters make 12 parts of 12, and a part needs 96"),
        (Text(vocabulary=300), PANGRAM, r"data.vocabulary: 300 .*book has 28 .*give 2 to 28, or 0"),
        (Text(), "aaaa", r"data_path: book has fewer than two different characters"),
        (Text(), "", r"book is empty"),
        (Text(), b"\xff\xfe\xff", r"data_path: book is no UTF-8 text .*; give data.unit=bytes"),
    ],
)
def test_a_text_that_cannot_be_a_stream_says_why(tmp_path: Path, config: Text, content: Any, says: str) -> None:
    path = tmp_path / "book"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says):
        config.build(text.read(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Grammar(length=0), "data.length: 0 is not allowed; give 2 or more"),
        (lambda: Recall(length=1), "data.length: 1 "),
        (lambda: Text(length=1), "data.length: 1 "),
        (lambda: Grammar(severity=1.5), "data.severity: 1.5"),
        (lambda: Grammar(choices=20), "data.choices: 20 is more than the 16 symbols"),
        (lambda: Recall(pairs=300), "data.pairs: 300 .* 2 to 256"),
        (lambda: Recall(key_length=40), "data.key_length: 40 .* 1 to 32"),
        (lambda: Recall(key_length=8), r"8 of 16 symbols gives 4,294,967,296 keys"),
        (lambda: Text(held_out=0.0), "data.held_out: 0.0"),
        (lambda: text.read("/nowhere/book.txt"), "/nowhere/book.txt is no file"),
        (lambda: text.read(""), "no file is given"),
    ],
)
def test_bad_settings_are_named(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


# --- in a study -------------------------------------------------------------------------------------------------------


def test_a_study_takes_a_stream_of_tokens_by_its_name_or_itself() -> None:
    named = plastax.Study(stream="recall", settings={"data.pairs": 8})
    given = plastax.Study(stream=Grammar(severity=0.5))
    assert (named.experiment.name, given.experiment.name) == ("token_drift", "token_drift")
    assert (named.config.stream, given.config.stream) == (Recall(pairs=8), Grammar(severity=0.5))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--model mlp", r"model: mlp does not give logits of every token, \[B, 8, 24\]"),
        ("--model vit", r"model: 'vit' needs inputs \[height, width, channels\]"),
        ("--data text", "data_path: no file is given"),
        ("--data text --data-path BOOK --tasks 4 --data.domains 3", r"tasks: 4 is more than the 3 of book.txt in 3"),
        ("--data-path BOOK", r"book.txt is for the data text, and data is 'grammar'"),
        ("--data rekal", r"data: 'rekal' is unknown \(did you mean 'recall'"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_compiles(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(PANGRAM, encoding="utf-8")
    args = f"--preset smoke --probes none {line}".replace("BOOK", str(tmp_path / "book.txt")).split()
    with pytest.raises(ConfigError, match=says):
        token_drift.EXPERIMENT.build(token_drift.EXPERIMENT.parse(args))
