"""Slowly-changing regression: bits that flip rarely, and a target network of threshold units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.keys import fold
from plastax.types import Array, Examples, Key, Stream

_TARGET, _SLOW, _FLIP, _TRAIN, _TEST = range(5)

HELD_OUT = 1000
"""Held-out examples of a task: more draws of its fast bits."""


class Task(NamedTuple):
    """Inputs ``x`` ``[T, m]`` and targets ``y`` ``[T, 1]`` of a task, and those that are held out."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True)
class SlowlyChangingRegression:
    """Regression on bits most of which flip rarely; no data set. The network is smaller than the target it tracks.

    An input has ``slow_bits``, drawn for every task, and ``fast_bits``, drawn for every example. The target is a fixed
    network of linear threshold units of the m bits, ``y = sum_i v_i [w_i . x + b_i > tau_i]``. All weights are +1 or
    -1; ``tau_i = beta (m + 1) - S_i``, and ``S_i = (m - sum_j w_ij + b_i) / 2`` is about the number of negative
    weights. Every seed has its own target.

    References:
      Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024, methods; Dohare et al., arXiv
      2306.13812, section 3. There one slow bit flips at a time; the released code, and the default here, draw all of
      them. That is a task switch; where one bit flips, tasks are stretches of time without boundaries.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> stream = SlowlyChangingRegression(period=100).build()
      >>> task = stream.task(jax.random.key(0), stream.data, jnp.int32(0))
      >>> examples = stream.train(task, stream.data, jnp.arange(4), jax.random.key(1))
      >>> examples.x.shape, examples.y.shape
      ((4, 20), (4, 1))
    """

    needs_data: ClassVar[bool] = False

    period: int = 10_000
    """Examples from one change of the slow bits to the next: a task."""
    slow_bits: int = 15
    """Bits that change with the task."""
    fast_bits: int = 5
    """Bits that are drawn for every example."""
    flip_one: bool = False
    """Flip one slow bit at a change, instead of drawing all. That is no task boundary: methods that act at one are
    refused."""
    target_units: int = 100
    """Threshold units of the target."""
    beta: float = 0.7
    """Fraction of a unit's inputs that must agree with its weights for it to be on."""

    def __post_init__(self) -> None:
        ranges.check(self, "stream", "period", "slow_bits", "fast_bits", "target_units", least=1)
        ranges.check(self, "stream", "beta", least=0, most=1)

    def build(self) -> Stream:
        """The stream; its loss is the mean squared error."""
        bits = self.slow_bits + self.fast_bits

        def signs(key: Key, *shape: int) -> Array:
            return jax.random.rademacher(key, shape, jnp.float32)

        def coins(key: Key, *shape: int) -> Array:
            return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)

        def target(key: Key, x: Array) -> Array:
            weight_key, bias_key, out_key = jax.random.split(fold(key, _TARGET), 3)
            w = signs(weight_key, bits, self.target_units)
            b = signs(bias_key, self.target_units)
            negative = (bits - w.sum(0) + b) / 2
            threshold = self.beta * (bits + 1) - negative
            on = (x @ w + (b - threshold)[None] > 0).astype(jnp.float32)
            return on @ signs(out_key, self.target_units, 1)

        def slow(key: Key, index: Array) -> Array:
            if not self.flip_one:
                return coins(fold(key, _SLOW, index), self.slow_bits)

            def flip(k: Array, values: Array) -> Array:
                at = jax.random.randint(fold(key, _FLIP, k), (), 0, self.slow_bits)
                return values.at[at].set(1 - values[at])

            return jax.lax.fori_loop(0, index, flip, coins(fold(key, _SLOW), self.slow_bits))

        def task(key: Key, data: tuple[()], index: Array) -> Task:
            del data
            fixed = slow(key, index)

            def examples(role: int, count: int) -> tuple[Array, Array]:
                fast = coins(fold(key, role, index), count, self.fast_bits)
                x = jnp.concatenate([jnp.broadcast_to(fixed, (count, self.slow_bits)), fast], axis=1)
                return x, target(key, x)

            return Task(*examples(_TRAIN, self.period), *examples(_TEST, HELD_OUT))

        def train(task: Task, data: tuple[()], index: Array, key: Key) -> Examples:
            del data, key
            return Examples(task.x[index], task.y[index])

        def test(task: Task, data: tuple[()], index: Array) -> Examples:
            del data
            return Examples(task.test_x[index], task.test_y[index])

        return Stream(
            (), "mse", (bits,), 1, self.period, HELD_OUT, task, train, test, "regression on slowly changing bits",
            boundaries=not self.flip_one,
        )  # fmt: skip
