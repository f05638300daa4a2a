"""Running normalisation of observations, and what it does at a task switch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from plastax.types import Array

Normalization = Literal["none", "global", "ema", "reset"]


class Statistics(NamedTuple):
    """Mean and variance of the observations seen so far, each of the observation's shape, and their count."""

    mean: Array
    variance: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls


def start(observation_shape: tuple[int, ...]) -> Statistics:
    """Statistics that normalise nothing: mean 0, variance 1, count 0."""
    return Statistics(jnp.zeros(observation_shape), jnp.ones(observation_shape), jnp.zeros(()))


def apply(statistics: Statistics, observation: Array, kind: Normalization) -> Array:
    """Centres and scales; the identity where ``kind`` is ``none``."""
    if kind == "none":
        return observation
    mean, variance = (jnp.expand_dims(x, range(observation.ndim - x.ndim)) for x in statistics[:2])
    return (observation - mean) / jnp.sqrt(variance + 1e-8)


def update(statistics: Statistics, observations: Array, kind: Normalization, rate: float = 0.01) -> Statistics:
    """Adds a rollout's raw observations ``[M, ...]``.

    ``global`` and ``reset`` pool all observations (Chan, Golub and LeVeque's parallel update); ``ema`` is an
    exponential average with ``rate`` a rollout, bias-corrected by the start: the first rollout counts in full.
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
