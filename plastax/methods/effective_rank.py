"""Effective-rank regularisation: keeps the features of every hidden layer from collapsing onto few directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import linalg, tree
from plastax.errors import ConfigError
from plastax.methods.base import (
    Periodic,
    Ring,
    add_scaled,
    apply_if,
    batch_like_of,
    chain,
    check_numbers,
    due,
    empty_ring,
    never,
    push,
    recent,
    require_params,
    require_whole,
)
from plastax.moving import Moving
from plastax.types import Array, Features, Method, Model, Params, Tree

Form = Literal["step", "loss"]


@dataclass(frozen=True)
class EffectiveRank(Periodic):
    """ER: gradient ascent on the effective rank of every hidden layer's features."""

    off: ClassVar = {"er_lr": 0.0}

    er_lr: float = 1e-3
    """Step size of the ascent (paper: PPO 1e-5 to 1e-7, supervised 1e-2 to 1e-5; 1e-3 was the best of 1e-3 and 1e-2 on
    cartpole_chain, four seeds that are not reported)."""
    window: int = 1
    """Number of last minibatches whose features it looks at (paper: 100 of one example on MNIST, 12 of 100 on ImageNet,
    5 on CIFAR); batches of one example need two or more."""
    form: Form = "step"
    """step: after the optimiser (the paper's code); loss: a term of the loss, through the optimiser (its text)."""
    max_step: float = 0.01
    """Largest length of such a step, as a share of the norm of all weights: its gradient grows without bound as
    features vanish. inf: no bound, the paper's code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("window", least=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, effective_rank)``; as a term of the loss ``chain(effective_rank, inner)``."""
        if model is not None and not model.hidden:
            raise ConfigError("methods: effective_rank is not allowed for a model without features; name others")
        like = batch_like_of(model, "effective_rank with a window") if self.window > 1 else None
        rank = effective_rank(self.er_lr, self.period, self.window, like, self.form, self.max_step)
        return optax.chain(rank, inner) if self.form == "loss" else chain(inner, rank)


class EffectiveRankState(NamedTuple):
    """The clock of the last call that was applied, and the last batches; None for a window of one."""

    last: Array
    ring: Ring | None


def mean_effective_rank(features: Features, mask: Array | None = None) -> Array:
    """Mean over layers of the effective rank of the uncentred features, a scalar; see `linalg.effective_rank`.

    Convolutional features ``[B, h, w, c]`` count as ``B h w`` rows of ``c`` columns, those of sequences ``[B, T, D]``
    as ``B T`` rows. Features of padding are zero (`plastax.types.Model`), and rows of zeros change nothing.

    Args:
      features: of the layers.
      mask: bool ``[B]``, the examples that count; None: all.

    Raises:
      ConfigError: there are no features.

    Examples:
      >>> from plastax import methods
      >>> print(methods.mean_effective_rank({"dense_0": jnp.eye(4)}))
      4.0
    """
    if not features:
        raise ConfigError("effective_rank: the network gives no features; give it hidden layers")

    alike: dict[tuple[int, ...], list[Array]] = {}
    for h in features.values():
        if mask is not None:
            # Rows of zeros change no singular value.
            h = jnp.where(mask.reshape(-1, *[1] * (h.ndim - 1)), h, 0)
        h = tree.wide(h.reshape(-1, h.shape[-1]))
        alike.setdefault(h.shape, []).append(h)
    # Layers of one shape share a compiled loop.
    ranks = [jax.vmap(linalg.effective_rank)(jnp.stack(layers)) for layers in alike.values()]
    return jnp.sum(jnp.concatenate(ranks)) / len(features)


def effective_rank(
    er_lr: float | Array = EffectiveRank.er_lr,
    period: int = EffectiveRank.period,
    window: int = EffectiveRank.window,
    batch_like: Tree = None,
    form: Form = EffectiveRank.form,
    max_step: float | Array = EffectiveRank.max_step,
) -> Method:
    """Gradient ascent on the mean effective rank ``E(w) = mean_l erank(H_l(w))``, every ``period`` gradient steps.

    As a step, after the optimiser in a chain, it touches no moments and starts where the optimiser's step has led. This
    is the form of the paper's code::

        w' = w + update        w'' = w' + s grad E(w'),  s = min(er_lr, max_step |w'| / |grad E(w')|)

    If the step size falls within a task (`MethodArgs.rate`), both steps fall.

    The bound is not the paper's. The effective rank does not depend on the features' scale, so its gradient grows as
    one over that scale: on a network whose features had almost vanished, a single step threw PPO's weights to 3e8. An
    infinite ``max_step`` is no bound.

    As a term of the loss, ``-er_lr E(w)`` before the optimiser, its gradient is taken at the same parameters as the
    loss's, and goes through momentum, Adam and the learning rate. This is the form of the paper's third version.

    With a window of one it acts at the start of each period, on the current minibatch. With a larger one it acts at the
    ends, on the last ``window`` minibatches together, seen through the current parameters; or on fewer, if there have
    been fewer since the start, or since a method drew the network again.

    The paper's code differs. There, value and gradient do not share one decomposition (`linalg.effective_rank`); the
    step comes after the optimiser's on MNIST and before it elsewhere; and the layers of actor and critic are added
    network by network, not averaged.

    Args:
      er_lr: step size of the ascent, or strength of the term.
      period: gradient steps from one action to the next.
      window: minibatches that features are taken of. The state keeps as many: ``window * B`` examples a network.
      batch_like: a minibatch, or its shapes; needed for a window of two or more.
      form: ``"step"`` or ``"loss"``.
      max_step: largest length of a step, as a share of the norm of all parameters.

    References:
      arXiv 2509.22335, section 7 (the regulariser); Roy and Vetterli, EUSIPCO 2007 (effective rank).

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(0.1), methods.effective_rank(0.1))
      >>> features_fn = lambda p, x: {"dense_0": x @ p["w"]}
      >>> params, x = {"w": jnp.array([[1.0, 0.0], [0.0, 0.5]])}, jnp.eye(2)
      >>> args = {"clock": 0, "batch": x, "features_fn": features_fn}
      >>> updates, _ = tx.update({"w": jnp.zeros((2, 2))}, tx.init(params), params, **args)
      >>> new = optax.apply_updates(params, updates)
      >>> print([round(float(methods.mean_effective_rank(features_fn(p, x))), 3) for p in (params, new)])
      [1.89, 1.897]
    """
    check_numbers("effective_rank", er_lr=er_lr, max_step=max_step)

    def init(params: Params) -> EffectiveRankState:
        require_whole(params, "effective_rank")
        return EffectiveRankState(never(), empty_ring(batch_like, window) if window > 1 else None)

    def look(
        state: EffectiveRankState,
        *,
        clock: Array,
        batch: Tree,
        features_fn: Callable[[Params, Tree], Features],
        every_step: bool = False,
        **_: object,
    ) -> tuple[EffectiveRankState, Array, Callable[[Params], Params]]:
        """The state after this step, whether to act, and the gradient of the mean rank."""
        ring = state.ring
        now = due(period, clock, state.last, every_step, ends=ring is not None)
        examples, mask = batch, None
        if ring is not None:
            place = clock if every_step else ring.put
            ring = push(ring, batch, place)
            examples, mask = recent(ring, place)

        def slope(at: Params) -> Params:
            return jax.grad(lambda p: mean_effective_rank(features_fn(p, examples), mask))(at)

        return EffectiveRankState(jnp.asarray(clock, jnp.int32), ring), now, slope

    def ascend(to: Tree, at: Params, slope: Callable[[Params], Params]) -> Tree:
        direction = slope(at)
        most, length = max_step * optax.tree.norm(tree.wide(at)), er_lr * optax.tree.norm(tree.wide(direction))
        bounded = er_lr * jnp.where(length > most, most / length, 1)
        return tree.cast(add_scaled(to, bounded, direction), to)

    def update(
        updates: Tree, state: EffectiveRankState, params: Params | None = None, **extra: Any
    ) -> tuple[Tree, EffectiveRankState]:
        params, rate = require_params(params, "effective_rank"), extra.get("rate", 1.0)
        state, now, slope = look(state, **extra)
        if form == "loss":
            return apply_if(now, lambda g: tree.cast(add_scaled(g, -er_lr, slope(params)), g), updates), state
        return apply_if(now, lambda u: ascend(u, tree.cast(add_scaled(params, rate, u), params), slope), updates), state

    def move(
        updates: Tree, state: EffectiveRankState, params: Params, **extra: Any
    ) -> tuple[Params, EffectiveRankState]:
        state, now, slope = look(state, **extra)
        return apply_if(now, lambda p: ascend(p, p, slope), optax.apply_updates(params, updates)), state

    return optax.GradientTransformationExtraArgs(init, update) if form == "loss" else Moving(init, update, move)
