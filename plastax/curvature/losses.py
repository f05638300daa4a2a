"""Losses as functions of a network's outputs: their curvature there, its square roots, and draws from it.

All three describe one matrix: the Hessian C of the mean loss (for a policy: the Fisher information of its distribution)
with respect to the outputs, positive semi-definite and without entries between examples. `Loss.curvature` multiplies by
it, the ``[K, ...]`` cotangents of `Loss.root` are the columns of a square root, ``C_i = sum_k r_ki r_ki^T`` for example
i, and `Loss.sample` draws a cotangent whose second moment it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from plastax.types import Array, Key, Loss, Tree

PolicyHead = Literal["categorical", "gaussian"]


def _examples(outputs: Array) -> int:
    """Over how many softmaxes a mean runs: all axes but the last."""
    return outputs.size // outputs.shape[-1]


def _places_apart(roots: Array) -> Array:
    """``[K, B, *M, D] -> [K M, B, *M, D]``: roots of every place of an example in columns of their own."""
    columns, examples, *middle, width = roots.shape
    if not middle:
        return roots
    places = math.prod(middle)
    place = jnp.eye(places, dtype=roots.dtype).reshape(1, places, 1, *middle, 1)
    return (place * roots[:, None]).reshape(columns * places, examples, *middle, width)


def _cross_entropy(logits: Array, batch: tuple[Array, Array]) -> Array:
    labels = batch[1]
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        message = (
            f"cross_entropy takes logits [..., C] and integer labels [...], "
            f"got {logits.shape} and {labels.shape} of type {labels.dtype}"
        )
        raise ValueError(message)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1))


def softmax_curvature(logits: Array, tangent: Array) -> Array:
    """``(diag(p) - p p^T) t`` for ``p = softmax(logits)``, over the last axis: the Fisher information of one draw."""
    p = jax.nn.softmax(logits)
    return p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))


def softmax_root(logits: Array) -> Array:
    """``[C - 1, ..., C]``: columns whose outer products add up to ``diag(p) - p p^T``, a matrix of rank C - 1.

    With ``q_k`` the probability of all classes behind k, column k is zero before k, ``sqrt(p_k q_k / q_{k-1})`` at k,
    and ``-p_j sqrt(p_k / (q_k q_{k-1}))`` behind. Nothing is subtracted, so a saturated softmax loses no digits.

    References:
      Tanabe and Sagae, "An exact Cholesky decomposition and the generalized inverse of the variance-covariance matrix
      of the multinomial distribution, with applications", JRSS B 54, 1992, theorem 1.
    """
    p = jax.nn.softmax(logits)
    classes = logits.shape[-1]
    # q_{k-1}, from k on, and q_k, behind k: [..., C - 1].
    tails = jnp.flip(jnp.cumsum(jnp.flip(p, -1), axis=-1), -1)
    here, rest, behind = p[..., :-1], tails[..., :-1], tails[..., 1:]
    tiny = jnp.finfo(p.dtype).tiny
    # What is too small for the type has no curvature: zero, instead of zero over zero.
    at = jnp.sqrt(here / jnp.maximum(rest, tiny)) * jnp.sqrt(behind)
    factor = jnp.sqrt(here / jnp.maximum(rest, tiny)) / jnp.sqrt(jnp.maximum(behind, tiny))
    index = jnp.arange(classes).reshape(*(1,) * (p.ndim - 1), 1, classes)
    column = jnp.arange(classes - 1).reshape(*(1,) * (p.ndim - 1), classes - 1, 1)
    later = jnp.where(index > column, -factor[..., None] * p[..., None, :], 0.0)
    return jnp.moveaxis(jnp.where(index == column, at[..., None], later), -2, 0)


def softmax_sample(logits: Array, key: Key) -> Array:
    """``p - e_y`` with y drawn from ``p``: the gradient of the loss at a label of the network's own."""
    drawn = jax.random.categorical(key, logits)
    return jax.nn.softmax(logits) - jax.nn.one_hot(drawn, logits.shape[-1], dtype=logits.dtype)


def _mse(outputs: Array, batch: tuple[Array, Array]) -> Array:
    if outputs.shape != batch[1].shape:
        # [B, 1] and [B] would broadcast to all pairs of examples.
        message = f"mse takes outputs and targets of one shape, got {outputs.shape} and {batch[1].shape}"
        raise ValueError(message)
    return jnp.mean(jnp.square(outputs - batch[1]))


def _mse_root(outputs: Array, batch: Tree) -> Array:
    del batch
    width = outputs.shape[-1] if outputs.ndim > 1 else 1
    unit = jnp.eye(width, dtype=outputs.dtype).reshape(width, *(1,) * (outputs.ndim - 1), width)
    unit = unit if outputs.ndim > 1 else unit[:, 0]
    roots = jnp.broadcast_to(math.sqrt(2.0 / outputs.size) * unit, (width, *outputs.shape))
    return _places_apart(roots) if outputs.ndim > 1 else roots


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        _cross_entropy,
        lambda logits, batch, tangent: softmax_curvature(logits, tangent) / _examples(logits),
        lambda logits, batch: _places_apart(softmax_root(logits)) / math.sqrt(_examples(logits)),
        lambda logits, batch, key: softmax_sample(logits, key) / math.sqrt(_examples(logits)),
    ),
    "mse": Loss(
        _mse,
        lambda outputs, batch, tangent: 2.0 * tangent / outputs.size,
        _mse_root,
        lambda outputs, batch, key: (
            math.sqrt(2.0 / outputs.size) * jax.random.normal(key, outputs.shape, outputs.dtype)
        ),
    ),
}
"""Losses by name, for a batch ``(x, y)``: ``cross_entropy`` of logits ``[B, ..., C]`` and integer labels ``[B, ...]``;
``mse``, the mean of ``(outputs - y)**2`` over all entries (no factor of one half) for outputs ``[B]`` or ``[B, ...]``.
Values raise ValueError for labels of another shape, and are NaN for labels that are no classes."""


def actor_critic(
    policy: PolicyHead, value_weight: float = 0.5, value: Callable[[Tree, Tree], Array] | None = None
) -> Loss:
    """Policy and value heads, for the natural-gradient metric of an actor-critic.

    The block of the policy is the Fisher information of its distribution, which is the Hessian of KL(old, new) at new =
    old (surrogates of policy gradients are not convex in the outputs); that of the value is the Hessian of
    ``value_weight * mean(1/2 (V - target)^2)``.

    Args:
      policy: ``categorical``, for outputs ``policy`` ``[B, A]``, the logits; or ``gaussian``, for outputs ``policy``
        ``[B, A]``, the means, and ``log_std`` ``[B, A]``. Both have ``value`` ``[B]`` beside.
      value_weight: weight of the value loss.
      value: ``(outputs, batch) -> scalar``, the loss itself, where it is wanted too.

    Raises:
      ValueError: if ``policy`` is no such head.

    References:
      Kakade, "A natural policy gradient", NeurIPS 2001. Wu et al., "Scalable trust-region method for deep reinforcement
      learning using Kronecker-factored approximation", NeurIPS 2017, section 3.1 (the critic's Gauss-Newton matrix).
    """
    if policy not in get_args(PolicyHead):
        message = f"policy is {policy!r}; heads are {get_args(PolicyHead)}"
        raise ValueError(message)

    def unknown(outputs: Tree, batch: Tree) -> Array:
        message = "this actor_critic loss was made without its value, which is needed here"
        raise ValueError(message)

    def curvature(outputs: Tree, batch: Tree, tangent: Tree) -> Tree:
        if policy == "categorical":
            product = {"policy": softmax_curvature(outputs["policy"], tangent["policy"])}
        else:
            product = {
                "policy": tangent["policy"] * jnp.exp(-2 * outputs["log_std"]),
                "log_std": 2 * tangent["log_std"],
            }
        product["value"] = value_weight * tangent["value"]
        return jax.tree.map(lambda x: x / outputs["value"].size, product)

    def root(outputs: Tree, batch: Tree) -> Tree:
        if policy == "categorical":
            blocks = {"policy": softmax_root(outputs["policy"])}
        else:
            size = outputs["policy"].shape[-1]
            unit = jnp.eye(size, dtype=outputs["policy"].dtype)[:, None, :]
            blocks = {
                "policy": unit * jnp.exp(-outputs["log_std"])[None],
                "log_std": jnp.broadcast_to(math.sqrt(2.0) * unit, (size, *outputs["log_std"].shape)),
            }
        ones = jnp.ones_like(outputs["value"])
        blocks["value"] = jnp.sqrt(jnp.asarray(value_weight, ones.dtype)) * ones[None]
        # One block of cotangents a head, zero in the others.
        total = sum(x.shape[0] for x in blocks.values())
        placed, start = {}, 0
        for name, block in blocks.items():
            rest = [(0, 0)] * (block.ndim - 1)
            placed[name] = jnp.pad(block, [(start, total - start - block.shape[0]), *rest])
            start += block.shape[0]
        return jax.tree.map(lambda x: x / math.sqrt(outputs["value"].size), placed)

    def sample(outputs: Tree, batch: Tree, key: Key) -> Tree:
        policy_key, value_key = jax.random.split(key)
        if policy == "categorical":
            drawn = {"policy": softmax_sample(outputs["policy"], policy_key)}
        else:
            # The score at an action mean + std * z.
            z = jax.random.normal(policy_key, outputs["policy"].shape, outputs["policy"].dtype)
            drawn = {"policy": -z * jnp.exp(-outputs["log_std"]), "log_std": 1 - jnp.square(z)}
        noise = jax.random.normal(value_key, outputs["value"].shape, outputs["value"].dtype)
        drawn["value"] = jnp.sqrt(jnp.asarray(value_weight, noise.dtype)) * noise
        return jax.tree.map(lambda x: x / math.sqrt(outputs["value"].size), drawn)

    return Loss(value or unknown, curvature, root, sample)


def get(loss: Loss | str) -> Loss:
    """A loss by its name in `LOSSES`, or the one given; raises ValueError for a name that is not there."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        message = f"loss is {loss!r}; names are {sorted(LOSSES)}, or give a Loss"
        raise ValueError(message)
    return LOSSES[loss]
