"""Losses as functions of a network's outputs: their curvature there, its square roots, and draws from it.

All three describe one matrix: the Hessian C of the mean loss (for a policy: the Fisher information of its distribution)
with respect to the outputs, positive semi-definite and without entries between examples. `Loss.curvature` multiplies by
it, the ``[K, ...]`` cotangents of `Loss.root` are the columns of a square root, ``C_i = sum_k r_ki r_ki^T`` for example
i, and `Loss.sample` draws a cotangent whose second moment it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.curvature import checks
from plastax.types import Array, Key, Loss, Tree

PolicyHead = Literal["categorical", "gaussian"]


def _examples(outputs: Array) -> int:
    """How many softmaxes the mean runs over: all axes but the last."""
    return outputs.size // outputs.shape[-1]


def _places_apart(roots: Array) -> Array:
    """``[K, B, *M, D] -> [K M, B, *M, D]``: columns of its own for every place of an example."""
    columns, examples, *middle, width = roots.shape
    if not middle:
        return roots
    places = math.prod(middle)
    place = jnp.eye(places, dtype=roots.dtype).reshape(1, places, 1, *middle, 1)
    return (place * roots[:, None]).reshape(columns * places, examples, *middle, width)


def _array(name: str, outputs: Tree, takes: str) -> None:
    if not hasattr(outputs, "shape"):
        raise ValueError(
            f"{name} takes {takes}, one array, got a {type(outputs).__name__}; give this part of the outputs alone"
        )


def _answers(batch: Tree) -> Array | None:
    """The labels or targets of ``(x, y)``, which only a loss's value needs; None if the batch has none."""
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 and hasattr(batch[1], "shape") else None


def _answered(name: str, batch: Tree) -> Array:
    answers = _answers(batch)
    if answers is None:
        got = f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"{name} takes a batch (x, y), got {got}; give a tuple, or a Loss of your own that reads this one"
        )
    return answers


def _times(one: Array, x: Array) -> Array:
    return one.astype(x.dtype) * x


def _check_logits(name: str, logits: Tree) -> None:
    _array(name, logits, "logits [B, ..., C]")
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"{name} takes logits [B, ..., C] of two or more classes C, got {logits.shape}; give one logit z of "
            "a binary classifier as two: jnp.stack([jnp.zeros_like(z), z], axis=-1)"
        )


def _check_labels(name: str, logits: Array, labels: Array) -> None:
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} takes logits [..., C] and integer labels [...], "
            f"got {logits.shape} and {labels.shape} of type {labels.dtype}"
        )


def _logits(logits: Tree, batch: Tree) -> Array:
    """One, or NaN if labels are no classes; raises ValueError for outputs that are no logits."""
    _check_logits("cross_entropy", logits)
    labels, one = _answers(batch), jnp.ones((), jnp.promote_types(logits.dtype, jnp.float32))
    if labels is None or not jnp.issubdtype(labels.dtype, jnp.integer):
        return one
    return jnp.where(jnp.all((labels >= 0) & (labels < logits.shape[-1])), one, jnp.nan)


def _classes(logits: Tree, batch: Tree) -> Array:
    """As `_logits`; also raises ValueError for labels that are known to be no classes."""
    one, labels, classes = _logits(logits, batch), _answers(batch), logits.shape[-1]
    if labels is not None and checks.concrete(labels) and jnp.issubdtype(labels.dtype, jnp.integer) and labels.size:
        # In NumPy: inside a trace JAX would only record the comparison.
        known = np.asarray(labels)
        if known.min() < 0 or known.max() >= classes:
            raise ValueError(
                f"labels must be classes from 0 to {classes - 1}, got some from {known.min()} to {known.max()}; leave "
                "examples without a class (-1, -100) out of the batch"
            )
    return one


def _cross_entropy(logits: Array, batch: tuple[Array, Array]) -> Array:
    one, labels = _logits(logits, batch), _answered("cross_entropy", batch)
    _check_labels("cross_entropy", logits, labels)
    # A factor, at a class that exists: the gradient of a NaN that is added, or filled in, would be zero.
    return -jnp.mean(_log_likelihood(logits, labels)) * one


def _log_likelihood(logits: Array, labels: Array) -> Array:
    """Of the labels, ``[..., 1]``."""
    log_p = jax.nn.log_softmax(tree.wide(logits))
    return jnp.take_along_axis(log_p, labels[..., None], axis=-1, mode="clip")


def counted(labels: Array) -> Array:
    """Which labels of ``token_cross_entropy`` count, bool: those that are not negative.

    Raises:
      ValueError: none is, as far as the labels are known now.
    """
    if checks.concrete(labels) and not (np.asarray(labels) >= 0).any():
        raise ValueError(
            f"token_cross_entropy: none of the {labels.size} labels is counted, all are negative; leave batches of "
            "padding out"
        )
    return labels >= 0


def _shares(logits: Tree, batch: Tree) -> Array:
    """What every place contributes to the mean over counted labels, ``[B, ...]``; they sum to one.

    NaN where labels are no classes, or none is counted. Raises ValueError for outputs that are no logits, labels of
    another shape, and, where the labels are known now, where it would be NaN.
    """
    _check_logits("token_cross_entropy", logits)
    labels, classes = _answered("token_cross_entropy", batch), logits.shape[-1]
    _check_labels("token_cross_entropy", logits, labels)
    mask = counted(labels)
    if checks.concrete(labels) and (most := np.asarray(labels).max()) >= classes:
        raise ValueError(f"labels must be tokens from 0 to {classes - 1}, or negative, got some up to {most}")
    shares = mask.astype(jnp.promote_types(logits.dtype, jnp.float32)) / jnp.maximum(jnp.sum(mask), 1)
    return jnp.where(jnp.any(mask) & jnp.all(labels < classes), shares, jnp.nan)


def _token_cross_entropy(logits: Array, batch: tuple[Array, Array]) -> Array:
    shares = _shares(logits, batch)
    log_p = _log_likelihood(logits, batch[1])[..., 0]
    # Where nothing is counted, the clipped class may be one that is left out.
    return -jnp.sum(shares * jnp.where(shares == 0, 0.0, log_p))


def _counts(batch: Tree) -> Array:
    """How many labels of each example are counted, ``[B]``."""
    labels = _answered("token_cross_entropy", batch)
    return jnp.sum(counted(labels).reshape(labels.shape[0], -1), axis=-1)


def _unmasked(logits: Array) -> Array:
    """Logits of minus infinity leave classes out: zero here. A whole row of them is NaN as a softmax."""
    _array("cross_entropy", logits, "logits [B, ..., C]")
    return jnp.where(jnp.isneginf(logits), 0.0, logits)


def softmax_curvature(logits: Array, tangent: Array) -> Array:
    """``(diag(p) - p p^T) t`` for ``p = softmax(logits)``, over the last axis: the Fisher information of one draw.

    The tangent is taken relative to its entry at the likeliest class, which changes only rounding: otherwise ``1 - p``
    of a confident classifier's class would lose its digits, and the matrix would not be positive.
    """
    p, t = jax.nn.softmax(tree.wide(logits)), tree.wide(tangent)
    likeliest = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
    t = t - jnp.sum(jnp.where(likeliest, t, 0.0), axis=-1, keepdims=True)
    return (p * (t - jnp.sum(p * t, axis=-1, keepdims=True))).astype(tangent.dtype)


def softmax_root(logits: Array) -> Array:
    """``[C - 1, ..., C]``: columns whose outer products add up to ``diag(p) - p p^T``, a matrix of rank C - 1.

    With ``q_k`` the probability of all classes after k, column k is zero before k, ``sqrt(p_k q_k / q_{k-1})`` at k,
    and ``-p_j sqrt(p_k / (q_k q_{k-1}))`` after it. Nothing is subtracted, so a saturated softmax loses no digits.

    References:
      Tanabe and Sagae, "An exact Cholesky decomposition and the generalized inverse of the variance-covariance matrix
      of the multinomial distribution, with applications", JRSS B 54, 1992, theorem 1.
    """
    p = jax.nn.softmax(tree.wide(logits))
    classes = logits.shape[-1]
    # q_{k-1}, from k on, and q_k, after k: [..., C - 1].
    tails = jnp.flip(jnp.cumsum(jnp.flip(p, -1), axis=-1), -1)
    here, rest, after = p[..., :-1], tails[..., :-1], tails[..., 1:]
    tiny = jnp.finfo(p.dtype).tiny
    # Probabilities too small for the type have no curvature: zero, instead of zero over zero.
    at = jnp.sqrt(here / jnp.maximum(rest, tiny)) * jnp.sqrt(after)
    factor = jnp.sqrt(here / jnp.maximum(rest, tiny)) / jnp.sqrt(jnp.maximum(after, tiny))
    index = jnp.arange(classes).reshape(*(1,) * (p.ndim - 1), 1, classes)
    column = jnp.arange(classes - 1).reshape(*(1,) * (p.ndim - 1), classes - 1, 1)
    later = jnp.where(index > column, -factor[..., None] * p[..., None, :], 0.0)
    return jnp.moveaxis(jnp.where(index == column, at[..., None], later), -2, 0).astype(logits.dtype)


def softmax_sample(logits: Array, key: Key) -> Array:
    """``p - e_y`` with y drawn from ``p``: the gradient of the loss at the network's own label."""
    drawn = jax.random.categorical(key, logits)
    return jax.nn.softmax(logits) - jax.nn.one_hot(drawn, logits.shape[-1], dtype=logits.dtype)


def _scalars(outputs: Tree, batch: Tree) -> int:
    """Number of scalars in the mean of squares; raises ValueError for targets of another shape."""
    _array("mse", outputs, "outputs [B, ...]")
    targets = _answers(batch)
    if targets is not None and outputs.shape != targets.shape:
        # [B, 1] and [B] would broadcast to all pairs of examples.
        raise ValueError(f"mse takes outputs and targets of one shape, got {outputs.shape} and {targets.shape}")
    return outputs.size


def _mse(outputs: Array, batch: tuple[Array, Array]) -> Array:
    targets = _answered("mse", batch)
    _scalars(outputs, batch)
    return jnp.mean(jnp.square(tree.wide(outputs) - targets))


def _mse_root(outputs: Array, batch: Tree) -> Array:
    size = _scalars(outputs, batch)
    width = outputs.shape[-1] if outputs.ndim > 1 else 1
    unit = jnp.eye(width, dtype=outputs.dtype).reshape(width, *(1,) * (outputs.ndim - 1), width)
    unit = unit if outputs.ndim > 1 else unit[:, 0]
    roots = jnp.broadcast_to(math.sqrt(2.0 / size) * unit, (width, *outputs.shape))
    return _places_apart(roots) if outputs.ndim > 1 else roots


def _entropy_curvature(logits: Array, batch: Tree, tangent: Array) -> Array:
    return _times(_classes(logits, batch), softmax_curvature(logits, tangent) / _examples(logits))


def _entropy_root(logits: Array, batch: Tree) -> Array:
    return _times(_classes(logits, batch), _places_apart(softmax_root(logits)) / math.sqrt(_examples(logits)))


def _entropy_sample(logits: Array, batch: Tree, key: Key) -> Array:
    return _times(_classes(logits, batch), softmax_sample(logits, key) / math.sqrt(_examples(logits)))


def _token_curvature(logits: Array, batch: Tree, tangent: Array) -> Array:
    return _times(_shares(logits, batch)[..., None], softmax_curvature(logits, tangent))


def _token_root(logits: Array, batch: Tree) -> Array:
    return _places_apart(_times(jnp.sqrt(_shares(logits, batch))[None, ..., None], softmax_root(logits)))


def _token_sample(logits: Array, batch: Tree, key: Key) -> Array:
    return _times(jnp.sqrt(_shares(logits, batch))[..., None], softmax_sample(logits, key))


def _mse_curvature(outputs: Array, batch: Tree, tangent: Array) -> Array:
    return 2.0 * tangent / _scalars(outputs, batch)


def _mse_sample(outputs: Array, batch: Tree, key: Key) -> Array:
    return math.sqrt(2.0 / _scalars(outputs, batch)) * jax.random.normal(key, outputs.shape, outputs.dtype)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_cross_entropy, _entropy_curvature, _entropy_root, _entropy_sample, _unmasked),
    "token_cross_entropy": Loss(_token_cross_entropy, _token_curvature, _token_root, _token_sample, _unmasked, _counts),
    "mse": Loss(_mse, _mse_curvature, _mse_root, _mse_sample),
}
"""Losses by name, for a batch ``(x, y)``: ``cross_entropy`` of logits ``[B, ..., C]`` and integer labels ``[B, ...]``;
``mse``, the mean of ``(outputs - y)**2`` over all entries (no factor of one half) for outputs ``[B]`` or ``[B, ...]``.
Only values need ``y``. Logits of minus infinity leave classes out. All raise ValueError for outputs or targets of
another shape. Labels that are no classes (-1 or -100 of padding) raise ValueError in curvature, roots and draws outside
`jit`; inside, and in values and their gradients everywhere, the result is NaN.

``token_cross_entropy`` is the ``cross_entropy`` of sequences with padding: the mean over the labels that are not
negative. The others have no gradient and no curvature, so everything needs ``y``. A batch without any counted label
raises ValueError outside `jit`, and is NaN inside; so are labels beyond the classes."""


def actor_critic(
    policy: PolicyHead, value_weight: float = 0.5, value: Callable[[Tree, Tree], Array] | None = None
) -> Loss:
    """Policy and value heads, for the natural-gradient metric of an actor-critic.

    The policy's block is the Fisher information of its distribution: the Hessian of KL(old, new) at new = old
    (surrogates of policy gradients are not convex in the outputs). The value's block is the Hessian of ``value_weight *
    mean(1/2 (V - target)^2)``.

    Args:
      policy: ``categorical``, for outputs ``policy`` ``[B, A]``, the logits; or ``gaussian``, for outputs ``policy``
        ``[B, A]``, the means, and ``log_std`` ``[B, A]``. Both also have ``value`` ``[B]``.
      value_weight: weight of the value loss.
      value: ``(outputs, batch) -> scalar``, the loss itself, if needed.

    Raises:
      ValueError: for another ``policy``.

    References:
      Kakade, "A natural policy gradient", NeurIPS 2001. Wu et al., "Scalable trust-region method for deep reinforcement
      learning using Kronecker-factored approximation", NeurIPS 2017, section 3.1 (the critic's Gauss-Newton matrix).
    """
    if policy not in get_args(PolicyHead):
        raise ValueError(f"policy is {policy!r}; heads are {get_args(PolicyHead)}")

    def examples(outputs: Tree) -> int:
        shapes = {name: outputs[name].shape for name in outputs}
        if len(shapes["policy"]) != 2 or shapes["value"] != shapes["policy"][:1]:
            raise ValueError(f"actor_critic takes outputs policy [B, A] and value [B], got {shapes}")
        return int(outputs["value"].size)

    def unknown(outputs: Tree, batch: Tree) -> Array:
        raise ValueError("this actor_critic loss was made without its value, which is needed here")

    def curvature(outputs: Tree, batch: Tree, tangent: Tree) -> Tree:
        if policy == "categorical":
            product = {"policy": softmax_curvature(outputs["policy"], tangent["policy"])}
        else:
            product = {
                "policy": tangent["policy"] * jnp.exp(-2 * outputs["log_std"]),
                "log_std": 2 * tangent["log_std"],
            }
        product["value"] = value_weight * tangent["value"]
        return jax.tree.map(lambda x: x / examples(outputs), product)

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
        # One block of cotangents per head, zero in the others.
        total = sum(x.shape[0] for x in blocks.values())
        placed, start = {}, 0
        for name, block in blocks.items():
            rest = [(0, 0)] * (block.ndim - 1)
            placed[name] = jnp.pad(block, [(start, total - start - block.shape[0]), *rest])
            start += block.shape[0]
        return jax.tree.map(lambda x: x / math.sqrt(examples(outputs)), placed)

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
        return jax.tree.map(lambda x: x / math.sqrt(examples(outputs)), drawn)

    def finite(outputs: Tree) -> Tree:
        return outputs | {"policy": _unmasked(outputs["policy"])} if policy == "categorical" else outputs

    return Loss(value or unknown, curvature, root, sample, finite)


def get(loss: Loss | str) -> Loss:
    """The loss of this name in `LOSSES`, or the given one; raises ValueError for an unknown name."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise ValueError(
            f"loss is of type {type(loss).__name__}; names are {sorted(LOSSES)}, or give a Loss (the order is "
            "function, params, data, loss)"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; names are {sorted(LOSSES)}, or give a Loss")
    return LOSSES[loss]
