"""Feature matrices that probes are tested on, and references in float64 that share nothing with them."""

from __future__ import annotations

import numpy as np

KINDS = ("random", "wide", "rank_one", "relu", "maps", "zero", "dead_maps")


def features_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    random = rng.standard_normal((12, 6))
    return {
        "random": random,
        "wide": random.T,
        "rank_one": np.outer(random[:, 0], 1 + np.abs(random[0])),
        "relu": np.maximum(random, 0.0) * np.array([1.0, 0.0, 2.0, 1e-2, 1.0, 0.0]),
        "maps": rng.standard_normal((3, 2, 4, 5)),
        "zero": np.zeros((12, 6)),
        "dead_maps": np.maximum(-np.abs(rng.standard_normal((3, 2, 4, 5))), 0.0),
    }[kind]


def entropy_rank(values: np.ndarray) -> float:
    """Exponential of the entropy of non-negative values; 0 if they are all zero."""
    if not values.sum():
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
