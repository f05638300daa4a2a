"""Regularisation towards the distribution of the initial parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Settings, add_scaled, transformation
from plastax.types import Array, Method, Model, Params, Tree


class WassersteinInitState(NamedTuple):
    """The initial entries of every parameter array, ascending, flat."""

    quantiles: Params


def matched(w: Array, quantiles: Array) -> Array:
    """For every entry of ``w`` ``[n]`` that of the ascending ``quantiles`` ``[n]`` with its rank; ties: their mean.

    A sort of plain integers and two searches: on CPU three times as fast as two sorts of floats with their places. Sums
    of ties are taken group by group: differences of running sums would lose the digits of all that came before.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(w == 0, 0.0, w), jnp.dtype(f"int{8 * w.dtype.itemsize}"))
    # The order of integers is that of floats, but for negative ones, whose magnitudes have to be turned round.
    keys = jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
    ordered = jnp.sort(keys)
    first, end = (jnp.searchsorted(ordered, keys, side=side) for side in ("left", "right"))
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]

    quantiles = quantiles.astype(tree.wide_type(quantiles))
    # From a group's own first entry on, so that equal ones have exactly that mean.
    base = quantiles[first]
    away = quantiles - quantiles[jax.lax.cummax(jnp.where(starts, jnp.arange(w.size), 0))]
    sums, _ = jax.lax.associative_scan(join, (away, starts))
    return jnp.where(end - first == 1, base, base + sums[end - 1] / (end - first)).astype(w.dtype)


def wasserstein_init(strength: float | Array = 1e-3) -> Method:
    """Adds the gradient of ``strength * sum_l sum_i (w_(i) - w_0(i))^2`` to the gradient, before the optimiser.

    ``w_(i)`` is the i-th smallest entry of array l (a kernel, a bias), so that the sum is its size times the squared
    2-Wasserstein distance of its entries from the initial ones: they may change places for nothing. The entry of rank i
    gets ``2 * strength * (w_(i) - w_0(i))``; equal entries share the mean of their initial ones (the smallest
    subgradient). All arrays are included, those of normalisation layers too. It sorts all parameters at every step,
    which on CPU costs more than a step at small batches.

    References:
      Lewandowski et al., "Directions of curvature as an explanation for loss of plasticity", arXiv 2312.00246, and the
      first version of arXiv 2406.06811; as given in the survey of Klein et al., arXiv 2411.04832.
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


@dataclass(frozen=True)
class WassersteinInit(Settings):
    """Wasserstein regularisation: a pull of each array's distribution of weights towards its initial one."""

    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    strength: float = 1e-3
    """The loss gains this times the squared distance of the sorted weights from the sorted initial ones."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(wasserstein_init, inner)``."""
        return optax.chain(wasserstein_init(self.strength), inner)
