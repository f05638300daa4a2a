"""The scheme of the methods' references: a small tree of parameters, optimisers and gradients in NumPy, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastax import tree

SHAPES: dict[str, Any] = {
    "actor": {
        "dense_0": {"bias": (5,), "kernel": (3, 5)},
        "norm_dense_0": {"bias": (5,), "scale": (5,)},
        "output": {"kernel": (5, 4)},
        "conv_0": {"bias": (4,), "kernel": (2, 2, 3, 4)},  # which no feature reads
    },
    "log_std": (2,),
}
RATE, EXAMPLES = 0.05, 7
Flat = dict[str, np.ndarray]
NORMS = ("actor/norm_dense_0/bias", "actor/norm_dense_0/scale")


def random_tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def flat(params: Any) -> Flat:
    return {name: np.array(leaf, np.float64) for name, leaf in tree.named_leaves(params).items()}


def init_fn(key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])


def features_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    actor = params["actor"]
    h = jnp.tanh(x @ actor["dense_0"]["kernel"] + actor["dense_0"]["bias"][None, :])
    h = h * actor["norm_dense_0"]["scale"][None, :] + actor["norm_dense_0"]["bias"][None, :]
    return {"actor/dense_0": h, "actor/dense_1": jnp.sin(h @ actor["output"]["kernel"])}


def numpy_features(w: Flat, x: np.ndarray) -> list[np.ndarray]:
    h = np.tanh(x @ w["actor/dense_0/kernel"] + w["actor/dense_0/bias"])
    h = h * w["actor/norm_dense_0/scale"] + w["actor/norm_dense_0/bias"]
    return [h, np.sin(h @ w["actor/output/kernel"])]


def numpy_effective_rank(h: np.ndarray) -> float:
    s = np.linalg.svd(h, compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def numpy_mean_rank(w: Flat, x: np.ndarray) -> float:
    return float(np.mean([numpy_effective_rank(h) for h in numpy_features(w, x)]))


def slope_of(fn: Callable[[Flat], float], w: Flat, h: float = 3e-5) -> Flat:
    """Gradient by differences of fourth order; zero for parameters that ``fn`` does not read."""
    read = {name for name, value in w.items() if fn(w | {name: value + 0.1}) != fn(w)}
    out = {name: np.zeros_like(value) for name, value in w.items()}
    for name in read:
        for index in np.ndindex(w[name].shape):
            ends = []
            for shift in (1, -1, 2, -2):
                moved = w | {name: w[name].copy()}
                moved[name][index] += shift * h
                ends.append(fn(moved))
            out[name][index] = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * h)
    return out


class Sgd:
    """SGD with momentum 0.9."""

    transform = optax.sgd(RATE, momentum=0.9)

    def __init__(self) -> None:
        self.trace: Flat = {}

    def __call__(self, g: Flat) -> Flat:
        self.trace = {k: g[k] + 0.9 * self.trace.get(k, 0.0) for k in g}
        return {k: -RATE * v for k, v in self.trace.items()}


class Adam:
    """Adam with the usual constants (Kingma and Ba 2015, algorithm 1)."""

    transform = optax.adam(RATE)

    def __init__(self) -> None:
        self.t, self.m, self.v = 0, {}, {}

    def __call__(self, g: Flat) -> Flat:
        self.t += 1
        self.m = {k: 0.9 * self.m.get(k, 0.0) + 0.1 * g[k] for k in g}
        self.v = {k: 0.999 * self.v.get(k, 0.0) + 0.001 * g[k] ** 2 for k in g}
        out = {}
        for k in g:
            m, v = self.m[k] / (1 - 0.9**self.t), self.v[k] / (1 - 0.999**self.t)
            out[k] = -RATE * m / (np.sqrt(v) + 1e-8)
        return out


# A reference: (weights, gradient, initial weights, optimiser, step, fresh draw, batch) -> new weights.
Reference = Callable[[Flat, Flat, Flat, Any, int, Flat, np.ndarray], Flat]


def moved(w: Flat, u: Flat) -> Flat:
    return {k: w[k] + u[k] for k in w}
