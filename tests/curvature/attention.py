"""A block of attention, MLP, norm and embedding in plain JAX, with padding: the reference of large networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, LENGTH = 6, 5
Softmax = Callable[[jax.Array], jax.Array]


def make(width: int = 8, examples: int = 6, dtype: Any = np.float32) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Parameters and a batch whose later examples end in padding; float64 numbers are the rounded float32 ones."""
    rng = np.random.default_rng(0)
    dense = lambda rows, columns: {"kernel": (rows, columns), "bias": (columns,)}  # noqa: E731
    norm = {"scale": (width,), "bias": (width,)}
    attention = {name: dense(width, width) for name in ("query", "key", "value", "out")}
    shapes = {
        "embed": {"embedding": (VOCABULARY, width)},
        "positions": {"embedding": (LENGTH, width)},
        "block_0": {
            "norm_0": norm, **attention, "norm_1": norm, "up": dense(width, 2 * width), "down": dense(2 * width, width),
        },
        "norm": norm,
        "output": dense(width, VOCABULARY),
    }  # fmt: skip
    draw = lambda shape: jnp.asarray(np.float32(rng.standard_normal(shape) / 2), dtype)  # noqa: E731
    params = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
    tokens = rng.integers(0, VOCABULARY, (examples, LENGTH + 1))
    padded = np.arange(LENGTH) >= rng.integers(2, LENGTH + 1, (examples, 1))
    return params, {"x": jnp.where(padded, -1, tokens[:, :-1]), "y": jnp.where(padded, -1, tokens[:, 1:])}


def norm(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return scaled * p["scale"][None, None] + p["bias"][None, None]


def dense(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"][None, None]


def logits(params: dict[str, Any], tokens: jax.Array, softmax: Softmax = jax.nn.softmax) -> jax.Array:
    """``[B, T, vocabulary]``, by two heads of causal attention."""
    counted, block = tokens >= 0, params["block_0"]
    x = params["embed"]["embedding"][jnp.maximum(tokens, 0)] + params["positions"]["embedding"][None]
    x = x * counted[..., None]
    h = norm(block["norm_0"], x)
    q, k, v = (dense(block[name], h).reshape(*h.shape[:2], 2, -1) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None] & counted[:, None, None, :]
    mixed = jnp.einsum("bhqk,bkhd->bqhd", softmax(jnp.where(seen, scores, -1e9)), v).reshape(x.shape)
    x = x + dense(block["out"], mixed)
    x = x + dense(block["down"], jax.nn.gelu(dense(block["up"], norm(block["norm_1"], x))))
    return dense(params["output"], norm(params["norm"], x))


def loss(params: dict[str, Any], batch: dict[str, jax.Array], softmax: Softmax = jax.nn.softmax) -> jax.Array:
    """Cross-entropy of the next token, the mean over the counted ones."""
    counted = batch["y"] >= 0
    log_p = jax.nn.log_softmax(logits(params, batch["x"], softmax))
    picked = jnp.take_along_axis(log_p, jnp.maximum(batch["y"], 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(counted, picked, 0.0)) / jnp.sum(counted)


def dense_hessian(width: int = 8, examples: int = 6, seen: slice = slice(None)) -> np.ndarray:
    """In float64, of the loss on the examples ``seen``."""
    with jax.enable_x64(True):
        params, batch = make(width, examples, np.float64)
        batch = {name: x[seen] for name, x in batch.items()}
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        return np.asarray(jax.jit(jax.hessian(lambda f: loss(unravel(f), batch)))(flat))
