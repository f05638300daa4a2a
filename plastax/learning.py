"""One forward and one backward pass, with the Kronecker factors that it holds: what every gradient step starts with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.curvature.kronecker import Factors, Kind, cotangents, factors, fisher_factors
from plastax.types import Array, Features, Key, LayerInputs, Loss, Method, MethodArgs, Moving, Params, Recorded, Tree


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

    What follows from the gradient is compiled the same, whether the rest is used or not: taking Kronecker factors
    changes no bit of training.

    Args:
      forward: ``(params, taps) -> (outputs, aside)``.
      loss: ``(outputs) -> (value, metrics)``.
      params: where the gradient is taken.
      taps: zeros, see `Model.taps`.
    """
    outputs, pull, aside = jax.vjp(forward, params, taps, has_aux=True)
    outputs, pull, aside = jax.lax.optimization_barrier((outputs, pull, aside))
    (value, metrics), cotangent = jax.value_and_grad(loss, has_aux=True)(outputs)
    grads, tap_grads = pull(cotangent)
    value, metrics, grads, tap_grads = jax.lax.optimization_barrier((value, metrics, grads, tap_grads))
    # A one that XLA cannot know before the backward pass is through: without it the CPU backend may step a kernel
    # before the pass has read it, and copies every kernel in every step to be safe (a tenth of a step of the paper's
    # network at batch 16, a third at batch 1). It is exactly one; where an entry here is not finite, no gradient is.
    one = 1 + 0 * sum(g[(0,) * g.ndim] for g in tap_grads.values())
    grads = jax.tree.map(lambda g: g * one, grads)
    return Pass(
        value, metrics, aside.features, grads, aside.inputs, tap_grads, outputs, lambda c: pull(c)[1], aside.stats
    )


def grad_norm(seen: Pass) -> Array:
    """Euclidean norm of the whole gradient, a scalar.

    A kernel's gradient is ``sum_i a_i g_i^T`` over the rows that met it, a bias's ``sum_i g_i``. Where the rows are few
    for the kernel's size, the squared norm of both is taken of them, ``sum_ij (a_i . a_j + 1) (g_i . g_j)``: to read
    all entries once more could cost as much as the whole step, and for batches of one they need not even be written.
    Rows that cancel leave a rounding error relative to ``(sum_i |a_i| |g_i|)^2``.
    """
    direct, squared = tree.named_leaves(seen.grads), jnp.zeros(())
    for name, inputs in seen.inputs.items():
        kernel = direct[f"{name}/kernel"]
        a, g = (x.reshape(-1, x.shape[-1]) for x in (inputs.values, seen.tap_grads[name]))
        if inputs.window is None and len(a) ** 2 * sum(kernel.shape) < kernel.size:
            for part in ("kernel", "bias") if inputs.bias else ("kernel",):
                del direct[f"{name}/{part}"]
            with jax.default_matmul_precision("highest"):
                squared += jnp.sum((a @ a.T + float(inputs.bias)) * (g @ g.T))
    return jnp.sqrt(jnp.maximum(squared, 0) + jnp.square(tree.norm(direct)))


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


def recorded(state: Tree) -> dict[str, Array]:
    """What the states of methods, wherever they are within ``state``, have to say in the record."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Recorded))
    return {name: value for one in found if isinstance(one, Recorded) for name, value in one.recorded.items()}


def step(method: Method, grads: Tree, state: Tree, params: Params, args: MethodArgs) -> tuple[Params, Tree]:
    """The parameters and the method's state after its step, of which the share ``args.rate`` is made."""
    whole = isinstance(args.rate, float) and args.rate == 1
    if whole and isinstance(method, Moving):
        return method.move(grads, state, params, **args._asdict())
    updates, state = method.update(grads, state, params, **args._asdict())
    return optax.apply_updates(params, updates if whole else optax.tree.scale(args.rate, updates)), state
