"""One forward and one backward pass of a network, and what a gradient step takes from it.

`backward` gives the gradient and, beside it, what Kronecker factors and the gradient's norm are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.curvature.kronecker import Factors, Kind, cotangents, factors, fisher_factors
from plastax.layers import LayerInputs
from plastax.types import Array, Features, Key, Loss, Params, Tree


class Aside(NamedTuple):
    """What a forward pass leaves beside the outputs.

    Attributes:
      features: the network's.
      inputs: of the tapped layers.
      stats: running statistics of batch normalisation, moved on; empty without.
    """

    features: Features
    inputs: dict[str, LayerInputs]
    stats: Tree = ()


class Pass(NamedTuple):
    """What one forward and one backward pass leave.

    Attributes:
      value: the loss, a scalar.
      metrics: scalars beside it.
      features: the network's.
      grads: gradient with respect to the parameters.
      inputs: of the tapped layers.
      tap_grads: gradient with respect to the tapped layers' pre-activations.
      outputs: the network's.
      pull: the backward pass of this forward pass: cotangent of the outputs -> gradients as ``tap_grads``.
      stats: see `Aside`.
    """

    value: Array
    metrics: dict[str, Array]
    features: Features
    grads: Params
    inputs: dict[str, LayerInputs]
    tap_grads: dict[str, Array]
    outputs: Tree
    pull: Callable[[Tree], dict[str, Array]]
    stats: Tree = ()


def backward(
    forward: Callable[[Params, dict[str, Array]], tuple[Tree, Aside]],
    loss: Callable[[Tree], tuple[Array, dict[str, Array]]],
    params: Params,
    taps: dict[str, Array],
) -> Pass:
    """The gradient with respect to parameters and pre-activations, of one forward and one backward pass.

    What follows from the gradient compiles to the same code whether the rest is used or not, so that Kronecker factors
    change no bit of training. Normalisations are the exception: with factors XLA rounds their gradients in another way.

    Args:
      forward: ``(params, taps) -> (outputs, aside)``.
      loss: ``(outputs) -> (value, metrics)``.
      params: where the gradient is taken.
      taps: zeros, see `Model.taps`.
    """
    outputs, pull, aside = jax.vjp(forward, params, taps, has_aux=True)
    outputs, pull, aside = jax.lax.optimization_barrier((outputs, pull, aside))
    (value, metrics), cotangent = jax.value_and_grad(loss, has_aux=True)(outputs)
    # Over exactly one: XLA computes no quotient twice. It would compute a gradient by few outputs again wherever it is
    # used, and round it accordingly, with factors in another way than without. The barrier alone is gone by then.
    cotangent = jax.tree.map(lambda g: g / jnp.exp(0 * value).astype(g.dtype), cotangent)
    grads, tap_grads = pull(cotangent)
    value, metrics, grads, tap_grads = jax.lax.optimization_barrier((value, metrics, grads, tap_grads))
    # Exactly one, but XLA cannot know it before the backward pass is finished. Without it the CPU backend could step
    # a kernel before the pass has read it, and to be safe copies every kernel in every step (a tenth of a step of the
    # paper's network at batch 16, a third at batch 1). Where an entry here is not finite, no gradient is finite anyway.
    # Not `1 + 0 * ...`: XLA would copy the loss's own backward pass into the optimiser's code for every parameter, a
    # fifth of PPO's program. It computes an exponential once.
    one = jnp.exp(0 * sum(g[(0,) * g.ndim] for g in tap_grads.values()))
    grads = jax.tree.map(lambda g: g * one, grads)
    return Pass(
        value, metrics, aside.features, grads, aside.inputs, tap_grads, outputs, lambda c: pull(c)[1], aside.stats
    )


TOGETHER = 2**14
"""Leaves of at most this many numbers are put together for their norm. Small reductions take as long to start as to
run: one by one, those of twelve leaves were 3 % of PPO's update."""


def grad_norm(seen: Pass) -> Array:
    """Euclidean norm of the whole gradient, a scalar.

    A kernel's gradient is ``sum_i a_i g_i^T`` over its input rows, a bias's is ``sum_i g_i``. If the rows are few for
    the kernel's size, the squared norm of both is computed from them, ``sum_ij (a_i . a_j + 1) (g_i . g_j)``. To read
    all entries of the gradient again could cost as much as the whole step, and with batches of one they are never
    written. Rows that cancel leave a rounding error relative to ``(sum_i |a_i| |g_i|)^2``.
    """
    direct, squared = tree.named_leaves(seen.grads), jnp.zeros(())
    for name, inputs in seen.inputs.items():
        parts = [f"{name}/{part}" for part in (("kernel", "bias") if inputs.bias else ("kernel",))]
        if not all(part in direct for part in parts):  # Other networks than Flax's have other names.
            continue
        kernel = direct[parts[0]]
        a, g = (x.reshape(-1, x.shape[-1]) for x in (inputs.values, seen.tap_grads[name]))
        plain = inputs.window is None and inputs.groups == 1 and not inputs.others
        if plain and len(a) ** 2 * sum(kernel.shape) < kernel.size:
            for part in parts:
                del direct[part]
            with jax.default_matmul_precision("highest"):
                squared += jnp.sum((a @ a.T + float(inputs.bias)) * (g @ g.T))
    leaves = jax.tree.leaves(tree.wide(direct))
    small = [leaf.ravel() for leaf in leaves if leaf.size <= TOGETHER]
    parts = [leaf for leaf in leaves if leaf.size > TOGETHER] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(jnp.maximum(squared, 0) + jnp.square(tree.norm(parts)))


def factors_of(seen: Pass, kind: Kind, loss: Loss, batch: Tree, key: Key) -> dict[str, Factors]:
    """The Kronecker factors of a pass, by layer.

    Args:
      seen: the pass.
      kind: whose gradients: empirical (the loss's own) | sampled | exact, see `kronecker.cotangents`.
      loss: of the network's outputs.
      batch: that the pass saw.
      key: of the draws of ``sampled``.
    """
    if kind == "empirical":
        return factors(seen.inputs, seen.tap_grads)
    return fisher_factors(seen.inputs, seen.pull, cotangents(loss, kind, seen.outputs, batch, key))
