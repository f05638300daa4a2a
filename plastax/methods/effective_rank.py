"""Effective-rank regularisation: keeps the features of every hidden layer from collapsing onto few directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from plastax import linalg
from plastax.methods.base import Periodic, Ring, add_scaled, at_least_one, batch_like_of, empty_ring, keep, recent
from plastax.types import Array, ConfigError, Features, Method, Model, Params, Tree

Form = Literal["step", "loss"]


def mean_effective_rank(features: Features, there: Array | None = None) -> Array:
    """Mean over layers of the effective rank of the uncentred features, a scalar; see `linalg.effective_rank`.

    Convolutional features ``[B, h, w, c]`` count as ``B h w`` rows of ``c`` columns.

    Args:
      features: of the layers.
      there: bool ``[B]``, the examples that count; None: all.
    """

    def rank(h: Array) -> Array:
        if there is not None:
            # Rows of zeros change no singular value.
            h = jnp.where(there.reshape(-1, *[1] * (h.ndim - 1)), h, 0)
        return linalg.effective_rank(h.reshape(-1, h.shape[-1]))

    return sum(map(rank, features.values()), jnp.zeros(())) / len(features)


def effective_rank(er_lr: float | Array = 1e-3, period: int = 16, window: int = 1, batch_like: Tree = None) -> Method:
    """Gradient ascent on the mean effective rank: ``update + er_lr * grad mean_l erank(H_l)``.

    Behind the optimiser in a chain it is a plain step of its own that touches no moments, the form of the paper's code
    (which takes one such step an update of the agent). Before the optimiser, with ``-er_lr``, it is the gradient of a
    loss term ``-er_lr * mean_l erank(H_l)``, the form of the paper's third version, and goes through momentum, Adam and
    the learning rate.

    It acts every ``period`` gradient steps: with a window of one before each of them, on the current minibatch; else at
    their ends, on the last ``window`` minibatches together, seen through the current parameters. Since the start, or
    since a method has drawn the network anew, there may have been fewer: then on these. Unlike in the paper's code,
    value and gradient share one eigendecomposition of the smaller Gram matrix, the gradient is taken where the
    optimiser's is (there, on MNIST, after the last of the steps), and the actor's and critic's layers are averaged, not
    added network by network.

    Args:
      er_lr: step size of the ascent.
      period: gradient steps from one action to the next.
      window: minibatches that the features are taken of. Its state keeps as many: ``window * B`` examples a network.
      batch_like: shapes of a minibatch; needed for a window of two or more.

    References:
      arXiv 2509.22335, section 7 (the regulariser); Roy and Vetterli, EUSIPCO 2007 (effective rank).
    """

    def init(params: Params) -> Ring | optax.EmptyState:
        return empty_ring(batch_like, window) if window > 1 else optax.EmptyState()

    def update(
        updates: Tree,
        state: Ring | optax.EmptyState,
        params: Params,
        *,
        clock: Array,
        batch: Tree,
        features_fn: Callable[[Params, Tree], Features],
        **_: object,
    ) -> tuple[Tree, Ring | optax.EmptyState]:
        due = clock % period == 0
        if isinstance(state, Ring):
            state, due = keep(state, batch, clock), (clock + 1) % period == 0

        def ascend(updates: Tree) -> Tree:
            examples, there = recent(state, clock) if isinstance(state, Ring) else (batch, None)
            direction = jax.grad(lambda p: mean_effective_rank(features_fn(p, examples), there))(params)
            return add_scaled(updates, er_lr, direction)

        return jax.lax.cond(due, ascend, lambda u: u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class EffectiveRank(Periodic):
    """ER: gradient ascent on the effective rank of every hidden layer's features."""

    off: ClassVar[Mapping[str, Any] | None] = {"er_lr": 0.0}

    er_lr: float = 1e-3
    """Step size of the ascent (paper: PPO 1e-5 to 1e-7, supervised 1e-2 to 1e-5; 1e-3 was the best of 1e-3 and 1e-2 on
    cartpole_chain, four seeds that are not reported)."""
    window: int = 1
    """Minibatches, the last ones, whose features it looks at (paper: 100 of one example on MNIST, 12 of 100 on
    ImageNet, 5 on CIFAR); batches of one example need two or more."""
    form: Form = "step"
    """step: beside the optimiser (the paper's code); loss: a term of the loss, through the optimiser (its text)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "window")
        if self.form not in get_args(Form):
            raise ConfigError.unknown(f"{type(self).__name__}.form", self.form, get_args(Form))

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, effective_rank)``; as a term of the loss ``chain(effective_rank, inner)``."""
        like = batch_like_of(model, "effective_rank with a window") if self.window > 1 else None
        if self.form == "loss":
            return optax.chain(effective_rank(-self.er_lr, self.period, self.window, like), inner)
        return optax.chain(inner, effective_rank(self.er_lr, self.period, self.window, like))
