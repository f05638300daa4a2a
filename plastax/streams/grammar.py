"""Drifting grammars: sequences of random automata, some of whose rules change with the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.keys import fold, shuffles
from plastax.streams.tokens import Task, TokenStream
from plastax.types import Array, Key, Stream

_RULES, _AGAIN, _SEQUENCES = range(3)


class Rules(NamedTuple):
    """A probabilistic automaton of N states, each with c choices.

    Attributes:
      symbols: what a state may emit, all different, int32 ``[N, c]``.
      probabilities: of its choices, ``[N, c]``.
      following: the state after each choice, int32 ``[N, c]``.
    """

    symbols: Array
    probabilities: Array
    following: Array

    def stationary(self) -> Array:
        """The share of time in each state, ``[N]``; unique if every state is reached from every other."""
        states = len(self.symbols)
        moves = jnp.sum(self.probabilities[..., None] * jax.nn.one_hot(self.following, states), axis=1)
        # Half a step, so that no cycle keeps its phase; squared until all rows agree, far beyond any mixing time here.
        lazy = (jnp.eye(states) + moves) / 2
        with jax.default_matmul_precision("highest"):
            step = jax.lax.fori_loop(0, 24, lambda _, m: (m @ m) / jnp.sum(m @ m, axis=1, keepdims=True), lazy)
        return jnp.mean(step, axis=0)

    def entropy_rate(self) -> Array:
        """Nats a symbol, a scalar: the entropy of a choice, averaged over the stationary distribution.

        It is exact because the automaton is unifilar: state and symbol determine the next state, so that somebody who
        knows the first state knows all of them.

        References:
          Shannon, "A mathematical theory of communication", 1948, section 7. Travers and Crutchfield, "Exact
          synchronization for finite-state sources", arXiv 1008.4182, section 2 (unifilar hidden Markov models).
        """
        return jnp.sum(self.stationary() * jnp.sum(jax.scipy.special.entr(self.probabilities), axis=1))


@dataclass(frozen=True)
class Grammar(TokenStream):
    """Sequences of a random automaton; a share of its states gets new rules with each task.

    In a state the automaton emits one of a few symbols and moves on, both by the state's rules: which symbols, how
    likely each is (uniform on the simplex), and to which state each leads. The first choice of every state leads to the
    next one in a cycle, so that all states are visited. All tasks have the same distribution, so none is harder than
    another on average.

    A sequence begins with a token that names its first state, drawn from the stationary distribution. Then the best
    possible mean loss of a task is its entropy rate, `Rules.entropy_rate`, at every place. The network sees no other
    state: it has to follow them by the symbols.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> stream = Grammar(length=8, examples=4, held_out=2).build()
      >>> task = stream.task(jax.random.key(0), stream.data, jnp.int32(0))
      >>> examples = stream.train(task, stream.data, jnp.arange(4), jax.random.key(1))
      >>> examples.x.shape, bool((examples.x[:, 1:] == examples.y[:, :-1]).all())
      ((4, 8), True)
      >>> round(float(stream.reference(task, stream.data)), 2)
      0.81
    """

    severity: float = 1.0
    """Probability that a state gets new rules at a task switch. 0: the same grammar; 1: an independent one."""
    states: int = 8
    """States of the automaton."""
    symbols: int = 16
    """Symbols that it emits. The vocabulary has another token for each state."""
    choices: int = 3
    """Symbols that a state may emit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, "data", "severity", least=0, most=1)
        ranges.check(self, "data", "states", "choices", least=1)
        ranges.check(self, "data", "symbols", least=2)
        if self.choices > self.symbols:
            raise ConfigError(f"data.choices: {self.choices} is more than the {self.symbols} symbols; give fewer")

    def build(self) -> Stream:
        """The stream."""
        vocabulary = self.symbols + self.states
        says = f"sequences of a grammar of {self.states} states, severity {self.severity:g}"
        return self.of_tasks(self.task, vocabulary, says)

    def task(self, key: Key, data: tuple[()], index: Array) -> Task:
        """See `Stream.task`."""
        del data
        rules = self.rules(key, index)
        tokens = self.sequences(rules, fold(key, _SEQUENCES, index), self.examples + self.held_out)
        return self.split(tokens[:, :-1], tokens[:, 1:], rules.entropy_rate())

    def rules(self, key: Key, index: Array) -> Rules:
        """The grammar of a task."""

        def draw(task: Array | int) -> Rules:
            symbol_key, weight_key, state_key = jax.random.split(fold(key, _RULES, task), 3)
            shape = self.states, self.choices
            weights = jax.random.exponential(weight_key, shape)
            following = jax.random.randint(state_key, shape, 0, self.states)
            return Rules(
                shuffles(symbol_key, self.states, self.symbols)[:, : self.choices],
                weights / jnp.sum(weights, axis=1, keepdims=True),
                following.at[:, 0].set((jnp.arange(self.states) + 1) % self.states),
            )

        def switch(task: Array, rules: Rules) -> Rules:
            again = jax.random.bernoulli(fold(key, _AGAIN, task), self.severity, (self.states, 1))
            return jax.tree.map(lambda new, old: jnp.where(again, new, old), draw(task), rules)

        return jax.lax.fori_loop(1, index + 1, switch, draw(0))

    def sequences(self, rules: Rules, key: Key, count: int) -> Array:
        """Sequences of a grammar, one token longer than the inputs: int32 ``[count, T + 1]``."""
        state_key, symbol_key = jax.random.split(key)
        first = jax.random.choice(state_key, self.states, (count,), p=rules.stationary()).astype(jnp.int32)
        bounds = jnp.cumsum(rules.probabilities, axis=1)[:, :-1]

        def step(state: Array, draw: Array) -> tuple[Array, Array]:
            choice = jnp.sum(draw[:, None] >= bounds[state], axis=1)
            return rules.following[state, choice], rules.symbols[state, choice]

        _, emitted = jax.lax.scan(step, first, jax.random.uniform(symbol_key, (self.length, count)))
        return jnp.concatenate([self.symbols + first[:, None], emitted.T], axis=1)
