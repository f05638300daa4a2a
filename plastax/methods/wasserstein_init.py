"""Regularisation towards the distribution of the initial parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Settings, add_scaled, transformation
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class WassersteinInit(Settings):
    """Wasserstein regularisation: a pull of each array's distribution of weights towards its initial one."""

    off: ClassVar = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance of the sorted weights from the sorted initial ones."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(wasserstein_init, inner)``."""
        return optax.chain(wasserstein_init(self.strength), inner)


class WassersteinInitState(NamedTuple):
    """The initial entries of every parameter array, ascending, flat."""

    quantiles: Params


def matched(w: Array, quantiles: Array) -> Array:
    """For every entry of ``w`` ``[n]`` the entry of the ascending ``quantiles`` ``[n]`` of the same rank.

    Equal entries get the mean of theirs. A sort of plain integers and two searches are on CPU three times as fast as
    two sorts of floats with their places. Sums over equal entries are taken group by group, because differences of
    running sums would lose digits.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(w == 0, 0.0, w), jnp.dtype(f"int{8 * w.dtype.itemsize}"))
    # Floats order as their bits do, except negative ones, whose magnitudes have to be reversed.
    keys = jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
    ordered = jnp.sort(keys)
    first, end = (jnp.searchsorted(ordered, keys, side=side) for side in ("left", "right"))
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]

    quantiles = quantiles.astype(tree.wide_type(quantiles))
    # Relative to a group's first entry, so that equal quantiles have exactly that mean.
    base = quantiles[first]
    away = quantiles - quantiles[jax.lax.cummax(jnp.where(starts, jnp.arange(w.size), 0))]
    sums, _ = jax.lax.associative_scan(join, (away, starts))
    return jnp.where(end - first == 1, base, base + sums[end - 1] / (end - first)).astype(w.dtype)


def wasserstein_init(strength: float | Array = WassersteinInit.strength) -> Method:
    """Adds the gradient of ``strength * sum_l sum_i (w_(i) - w_0(i))^2`` to the gradient, before the optimiser.

    ``w_(i)`` is the i-th smallest entry of array l (a kernel, a bias). The inner sum is therefore the array's size
    times the squared 2-Wasserstein distance of its entries from the initial ones: entries may change places at no cost.
    The entry of rank i gets ``2 * strength * (w_(i) - w_0(i))``; equal entries share the mean of their initial ones
    (the smallest subgradient). All arrays are included, those of normalisation layers too. It sorts all parameters at
    every step, which on CPU costs more than a step at small batches.

    References:
      Lewandowski et al., "Directions of curvature as an explanation for loss of plasticity", arXiv 2312.00246, and the
      first version of arXiv 2406.06811; as given in the survey of Klein et al., arXiv 2411.04832.

    Examples:
      >>> from plastax import methods
      >>> tx = methods.wasserstein_init(0.5)
      >>> state = tx.init({"w": jnp.array([1.0, 2.0])})
      >>> updates, _ = tx.update({"w": jnp.zeros(2)}, state, {"w": jnp.array([4.0, 1.0])})
      >>> print(updates["w"])  # 4 is pulled to 2; 1 is at its place
      [2. 0.]
    """

    def init(params: Params) -> WassersteinInitState:
        return WassersteinInitState(jax.tree.map(lambda w: jnp.sort(w.reshape(-1)), params))

    def slope(w: Array, quantiles: Array) -> Array:
        return 2 * (w - matched(w.reshape(-1), quantiles).reshape(w.shape))

    def update(
        updates: Tree, state: WassersteinInitState, params: Params, **_: object
    ) -> tuple[Tree, WassersteinInitState]:
        return add_scaled(updates, strength, jax.tree.map(slope, params, state.quantiles)), state

    return transformation("wasserstein_init", init, update, strength=strength)
