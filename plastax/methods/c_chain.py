"""C-CHAIN: reduces churn, the change of outputs on examples that a step was not taken on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import (
    Ring,
    Settings,
    add_scaled,
    batch_like_of,
    empty_ring,
    push,
    require_whole,
    transformation,
)
from plastax.types import Array, Method, Model, Params, Tree, all_count

EPS = 1e-8
"""Added to the running mean of the churn before a division."""


@dataclass(frozen=True)
class CChain(Settings):
    """C-CHAIN: reduces churn, the change of outputs on examples that a step was not taken on."""

    off: ClassVar = {"target": 0.0, "least": 0.0}

    target: float = 0.05
    """Size of the churn term as a share of the loss (authors: 0.02 to 0.05 of the policy's loss on DeepMind control,
    1e4 on Gym control)."""
    least: float = 1.0
    """Smallest coefficient of the churn (authors: 1)."""
    decay: float = 0.98
    """Of the running means of loss and churn, for one gradient step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("decay", below=1)

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(c_chain, inner)``."""
        return optax.chain(c_chain(**vars(self), batch_like=batch_like_of(model, "c_chain")), inner)


class CChainState(NamedTuple):
    """What the churn of the last step is measured with.

    Attributes:
      previous: parameters before the last step.
      batches: the last two batches; the older one is the reference.
      loss: running mean of the loss's magnitude, not corrected for its start at zero.
      churn: running mean of the churn, likewise.
      weight: sum of the weights in both means: the correction.
    """

    previous: Params
    batches: Ring
    loss: Array
    churn: Array
    weight: Array


def churn(new: Tree, old: Tree, batch: Tree, counted: Array | None = None) -> Array:
    """How far outputs have moved: a mean over the batch whose gradient is that of a divergence.

    - Policies (outputs with an entry ``policy``): the cross-entropy of the old and new action distributions if they are
      categorical, KL(old | new) if they are Gaussian with ``log_std``. Values are ignored, as in the authors' agents.
    - Classifiers (a batch with integer ``y``): the cross-entropy of the class distributions.
    - Others: half the squared change, summed over outputs.

    Of classifiers at every place of a sequence, ``counted`` has the places of the mean, bool ``[B, T]``; None: all.
    """
    new, old = tree.wide((new, old))
    if isinstance(new, dict) and "log_std" in new:
        ratio = jnp.exp(2 * (old["log_std"] - new["log_std"]))
        z = (old["policy"] - new["policy"]) * jnp.exp(-new["log_std"])
        divergence = new["log_std"] - old["log_std"] + 0.5 * (ratio + jnp.square(z) - 1)
        return jnp.mean(jnp.sum(divergence, -1))
    logits = (new["policy"], old["policy"]) if isinstance(new, dict) else (new, old)
    labels = getattr(batch, "y", None)
    if isinstance(new, dict) or (labels is not None and jnp.issubdtype(labels.dtype, jnp.integer)):
        return jnp.mean(optax.softmax_cross_entropy(logits[0], jax.nn.softmax(logits[1])), where=counted)
    return 0.5 * jnp.mean(jnp.sum(jnp.square(new - old).reshape(len(new), -1), -1))


def c_chain(
    target: float | Array = CChain.target,
    least: float | Array = CChain.least,
    decay: float | Array = CChain.decay,
    batch_like: Tree = None,
) -> Method:
    """Adds the gradient of ``c * churn(f_theta(x_ref), f_before(x_ref))`` to the gradient, before the optimiser.

    ``f_before`` has the parameters before the last step, and ``x_ref`` is the batch before the last one. So the last
    step, this step and the churn use three different batches (without a common example within an epoch). The
    coefficient keeps the term at a share of the loss: ``c = max(target * mean |loss| / (mean churn + 1e-8), least)``.
    Both means are exponential with ``decay`` and corrected for their start. The first two steps have no reference and
    are the optimiser's.

    Each step costs a forward and a backward pass on the reference batch and a forward pass with the earlier parameters.
    The state keeps those parameters and two batches.

    The authors' code differs. Its reference is another shuffle of the same rollout, which may hold examples of the
    training batch. Its loss is the policy's alone. Its means are over up to 50 rollouts and are cleared at every task
    switch, with c = 1 for the first ten. Here it is the whole loss, step by step, and no switch is needed.

    The settings are those of `CChain`; ``batch_like`` is a minibatch, or its shapes.

    References:
      Tang et al., "Mitigating plasticity loss in continual reinforcement learning by reducing churn", ICML 2025, arXiv
      2506.00592 (eq. 8: values and regression).

    Examples:
      >>> from plastax import methods
      >>> params, batch = {"w": jnp.ones(1)}, jnp.ones((2, 1))
      >>> tx = methods.c_chain(batch_like=batch)
      >>> args = {"batch": batch, "value": 1.0, "outputs_fn": lambda p, x: x @ p["w"]}
      >>> state = tx.init(params)
      >>> for clock, w in enumerate([1.0, 1.0, 3.0]):
      ...     updates, state = tx.update({"w": jnp.zeros(1)}, state, {"w": jnp.full(1, w)}, clock=clock, **args)
      >>> print(updates["w"])  # outputs rose from 1 to 3
      [2.]
    """

    def init(params: Params) -> CChainState:
        zeros = [jnp.zeros(()) for _ in range(3)]
        return CChainState(jax.tree.map(jnp.copy, params), empty_ring(batch_like, 2), *zeros)

    def update(
        updates: Tree,
        state: CChainState,
        params: Params,
        *,
        clock: Array,
        batch: Tree,
        value: Array,
        outputs_fn: Callable[[Params, Tree], Tree],
        every_step: bool = False,
        counted_fn: Callable[[Tree], Array | None] = all_count,
        **_: object,
    ) -> tuple[Tree, CChainState]:
        require_whole(params, "c_chain")
        place = clock if every_step else state.batches.put
        ready = state.batches.put >= 2
        reference = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, place % 2, keepdims=False), state.batches.batches
        )
        before = outputs_fn(state.previous, reference)

        def moved_by(params: Params) -> Array:
            return churn(outputs_fn(params, reference), before, reference, counted_fn(reference))

        amount, slope = jax.value_and_grad(moved_by)(params)

        def mean(old: Array, new: Array | float) -> Array:
            return jnp.where(ready, decay * old + (1 - decay) * new, old)

        loss, moved, weight = mean(state.loss, jnp.abs(value)), mean(state.churn, amount), mean(state.weight, 1.0)
        corrected = jnp.where(ready, weight, 1)
        c = jnp.maximum(target * (loss / corrected) / (moved / corrected + EPS), least)
        slope = jax.tree.map(lambda g: jnp.where(ready, g, 0), slope)
        kept = CChainState(params, push(state.batches, batch, place), loss, moved, weight)
        return add_scaled(updates, jnp.where(ready, c, 0), slope), kept

    return transformation("c_chain", init, update, target=target, least=least, decay=decay)
