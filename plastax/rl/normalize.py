"""Running normalisation of observations, and what it does at a task switch.

Entries that were constant so far (unused channels of MinAtar's games, one-hot states, padding) have a variance of zero.
When one first moves, mostly at a switch, the quotient would be as large as the type allows. One update would then
destroy the network, which would look like a loss of plasticity. So normalised observations are clipped, at 10 as in
Stable-Baselines3, CleanRL and Gymnasium, and the standard deviation has a minimum.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from plastax.types import Array

Normalization = Literal["none", "global", "ema", "reset"]

CLIP = 10.0
"""Largest normalised observation."""
MIN_STD = 1e-4
"""Smallest standard deviation: anything below is the rounding of a constant."""


class Statistics(NamedTuple):
    """Mean and variance of the observations so far, each of the observation's shape, and their number."""

    mean: Array
    variance: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls


def start(observation_shape: tuple[int, ...]) -> Statistics:
    """Statistics that normalise nothing: mean 0, variance 1, count 0."""
    shapes = (observation_shape, observation_shape, ())
    return Statistics(*(jnp.full(shape, x, jnp.float32) for shape, x in zip(shapes, (0, 1, 0))))


def apply(statistics: Statistics, observation: Array, kind: Normalization, clip: float = CLIP) -> Array:
    """Centres, scales and clips to ``+-clip`` (0: no clipping); the identity where ``kind`` is ``none``."""
    if kind == "none":
        return observation
    mean, variance = (jnp.expand_dims(x, range(observation.ndim - x.ndim)) for x in statistics[:2])
    scaled = (observation - mean) / jnp.sqrt(jnp.maximum(variance, MIN_STD**2))
    return jnp.clip(scaled, -clip, clip) if clip else scaled


def update(statistics: Statistics, observations: Array, kind: Normalization, rate: float = 0.01) -> Statistics:
    """Adds a rollout's raw observations ``[M, ...]`` to the statistics.

    ``global`` and ``reset`` pool all observations (the parallel update of Chan, Golub and LeVeque). ``ema`` is an
    exponential average with weight ``rate`` for each rollout. The first rollouts weigh more, the first one fully.
    """
    if kind == "none":
        return statistics
    mean, variance, m = observations.mean(0), observations.var(0), observations.shape[0]
    count = statistics.count + m
    weight = m / count
    if kind == "ema":
        weight = jnp.maximum(weight, rate)
    delta = mean - statistics.mean
    return Statistics(
        statistics.mean + weight * delta,
        (1 - weight) * statistics.variance + weight * variance + weight * (1 - weight) * jnp.square(delta),
        count,
    )
