"""Adam on local time, and the reset of moments: the optimiser forgets at a switch, the weights do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.errors import ConfigError
from plastax.methods.base import Settings, Timed, at_boundary, due, never
from plastax.types import Array, Method, Model, Params, Tree

_MOMENTS = (optax.ScaleByAdamState, optax.TraceState)


def _is_moments(node: Any) -> bool:
    return isinstance(node, _MOMENTS)


def restart_count(state: Tree) -> Tree:
    """An optimiser's state with all of Adam's step counts at zero; moments stay."""

    def restart(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if isinstance(node, optax.ScaleByAdamState) else node

    return jax.tree.map(restart, state, is_leaf=_is_moments)


def restart_moments(state: Tree) -> Tree:
    """An optimiser's state with Adam's moments and step counts, and SGD's momenta, at zero."""

    def restart(node: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, node) if _is_moments(node) else node

    return jax.tree.map(restart, state, is_leaf=_is_moments)


def restart_every(inner: optax.GradientTransformation, restart: Callable[[Tree], Tree], every: int) -> Method:
    """Restarts the optimiser's state before each ``every``-th step, or at task switches if ``every`` is 0.

    Args:
      inner: the optimiser, or a method around it; Adam and momentum are found inside chains and methods.
      restart: `restart_count` or `restart_moments`.
      every: gradient steps.
    """
    if not every:
        return at_boundary(inner, lambda params, state, **_: (params, restart(state)))
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Tree, state: Timed, params: Params, *, clock: Array, every_step: bool = False, **extra: Any
    ) -> tuple[Tree, Timed]:
        now = due(every, clock, state.last, every_step)
        moved = jax.lax.cond(now, restart, lambda s: s, state.inner)
        updates, moved = inner.update(updates, moved, params, clock=clock, every_step=every_step, **extra)
        return updates, Timed(moved, jnp.asarray(clock, jnp.int32))

    return optax.GradientTransformationExtraArgs(lambda params: Timed(inner.init(params), never()), update)


def _check(
    inner: optax.GradientTransformation, model: Model | None, kinds: type | tuple[type, ...], method: str, what: str
) -> None:
    """Refuses an optimiser with nothing to restart."""
    if model is None:
        return
    state = jax.eval_shape(lambda key: inner.init(model.init(key)), tree.key_like())
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    if not any(isinstance(node, kinds) for node in nodes):
        raise ConfigError(
            f"methods: {method} restarts {what}, and the optimiser has none; give another optimiser or method"
        )


@dataclass(frozen=True)
class AdamRel(Settings):
    """Adam-Rel: restarts Adam's step count, not its moments, at every task switch.

    With the count t at zero, ``m / (1 - b1^t)`` and ``v / (1 - b2^t)`` treat the moments of the old task as if they had
    been collected since the switch. That keeps the first steps small if the gradient is suddenly much larger. Adam's
    state is found inside any chain or method.

    References:
      Ellis et al., "Adam on local time: addressing nonstationarity in RL with relative Adam timesteps", NeurIPS 2024,
      arXiv 2412.17113, algorithm 1. There, PPO restarts with every batch of experience and DQN with every update of the
      target network. These are not task switches: for PPO set ``every`` to the gradient steps of an update.

    Examples:
      >>> from plastax import methods
      >>> tx = methods.AdamRel().build(optax.adam(0.1))
      >>> params = {"w": jnp.ones(1)}
      >>> args = {"key": jax.random.key(0), "clock": 0}
      >>> _, state = tx.update(params, tx.init(params), params, boundary=False, **args)
      >>> _, state = tx.update(params, state, params, boundary=True, **args)
      >>> print(state[0].count, state[0].mu["w"])
      0 [0.1]
    """

    off: ClassVar = None

    every: int = 0
    """Gradient steps between restarts (PPO: epochs x minibatches); 0: at task switches."""

    @property
    def needs_boundary(self) -> bool:  # type: ignore[override]
        """Whether it acts at task switches."""
        return not self.every

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``restart_every(inner, restart_count)``; raises `ConfigError` for optimisers without Adam."""
        _check(inner, model, optax.ScaleByAdamState, "adam_rel", "Adam's step count")
        return restart_every(inner, restart_count, self.every)


@dataclass(frozen=True)
class MomentReset(AdamRel):
    """Moment reset: clears the optimiser's moments and step count at every task switch; the weights stay.

    It clears Adam's moments and SGD's momentum. The state of methods around them (an initial network, a running mean)
    stays. It is the comparison arm of Adam-Rel.

    References:
      Asadi et al., "Resetting the optimizer in deep RL", NeurIPS 2023, arXiv 2306.17833 (at target networks' updates).
    """

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``restart_every(inner, restart_moments)``; raises `ConfigError` for optimisers without moments."""
        _check(inner, model, _MOMENTS, "moment_reset", "moments")
        return restart_every(inner, restart_moments, self.every)
