"""What single units do on a batch: dormant, dead, saturated, or linear. Functions of one layer's features.

Features are ``[B, d]``, or ``[B, h, w, c]`` where a channel is one unit. ``activation`` is a name of
`plastax.models.layers.ACTIVATIONS`, `Model.activation` of a network. A feature tells the sign of its pre-activation for
all of them but ``deep_fourier``; functions of the sign alone take pre-activations as well. All results are float32
scalars.

``counted`` is bool ``[B, T]``, the places that are not padding (`plastax.types.Model`); None: all. Features are zero at
padding, so functions that are ratios to a layer's mean, or ask who is silent, need no such argument.

Examples:
  >>> import jax.numpy as jnp
  >>> from plastax.probes import activity
  >>> features = jnp.array([[0.0, 1.0, 0.0, 2.0], [0.0, 3.0, 2.0, 0.0]])  # dead, always on, on once, on once
  >>> float(activity.dead_units(features)), float(activity.linearised_units(features))
  (1.0, 0.25)
  >>> float(activity.active_fraction(features)), float(activity.sign_entropy(features))
  (0.5, 0.5)
  >>> activity.dormant_fraction(features, jnp.array([0.0, 0.5, 1.0])).tolist()
  [0.25, 0.25, 0.75]
"""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp

from plastax.probes.ranks import counting, rows
from plastax.types import Array

TAUS = (0.0, 0.01, 0.025, 0.1)
"""Thresholds of dormancy in the literature: Dohare et al. take 0.01, Plasticine 0.025, Sokar et al. up to 0.1."""


def dormant_fraction(features: Array, tau: float | Array = 0.025) -> Array:
    """Share of units whose mean absolute activation is at most ``tau`` times the layer's mean.

    ``s_i = E|h_i| / mean_k E|h_k| <= tau``. A wholly silent layer is wholly dormant; NaN if a unit is not finite. The
    score is relative: one unit that explodes makes its whole layer dormant. After tanh or layer normalisation dormancy
    says little, since small activations still carry gradients; see `gradient_dormant_fraction`.

    Args:
      features: of one layer.
      tau: the threshold, of any shape, which is the result's.

    References:
      Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", arXiv 2302.12902, definition 3.1.
    """
    return _share_within(jnp.mean(jnp.abs(rows(features)), axis=0), tau)


def gradient_dormant_fraction(gradients: Array, tau: float | Array = 0.025) -> Array:
    """Share of units that learn least: mean ``|dL/dz_i|`` at most ``tau`` times the layer's mean (GraMa).

    Low is dormant, as with activations. Unlike those it also shows, for any nonlinearity, units that are active and get
    no gradient. It rises harmlessly where a loss is nearly zero on most examples, and a layer without any gradient is
    wholly dormant.

    Args:
      gradients: of the loss with respect to one layer's pre-activations, of the shape of its features. A constant
        factor (the mean's ``1 / B``) changes nothing. For the other variant that of its kernel, ``[..., units]``.
      tau: as in `dormant_fraction`.

    References:
      Liu et al., "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement learning",
      arXiv 2505.24061. With the gradient of the pre-activation, example by example; public implementations for PyTorch
      average that of the unit's incoming weights instead, in which examples of opposite sign cancel.
    """
    return _share_within(jnp.mean(jnp.abs(rows(gradients)), axis=0), tau)


def _share_within(score: Array, tau: float | Array) -> Array:
    mean, tau = jnp.mean(score), jnp.asarray(tau, score.dtype)
    within = jnp.expand_dims(score, tuple(range(tau.ndim))) <= tau[..., None] * mean
    # Comparisons with NaN are false, which would mean no dormant unit; and all scores are below infinity.
    return jnp.where(jnp.isfinite(mean), jnp.mean(within, axis=-1, dtype=jnp.float32), jnp.nan)


def pooled(shares: Array, widths: Array) -> Array:
    """The share of all units of a network, from each layer's share ``[L, ...]`` and width ``[L]``.

    Papers report this (all dormant units over all units) or the plain mean of the layers' shares, which is equal only
    if all layers have one width.
    """
    weights = (widths / jnp.sum(widths)).reshape(-1, *(1,) * (shares.ndim - 1))
    return jnp.sum(shares * weights, axis=0)


def dead_units(features: Array) -> Array:
    """Number of units that are exactly zero on every example; NaN where a feature is.

    It can only fall as the batch grows: compare numbers of one batch size. Only ReLU-like units die so.

    References:
      lop-jax (arXiv 2509.22335) and L2 Init count the same; the latter gives the share.
    """
    h = rows(features)
    return jnp.where(jnp.any(jnp.isnan(h)), jnp.nan, jnp.sum(jnp.all(h == 0, axis=0), dtype=jnp.float32))


def active_fraction(features: Array, activation: str = "relu", counted: Array | None = None) -> Array:
    """Share of activations (examples times units) that are on, or not saturated; NaN if one is NaN.

    * ``relu``: not zero. ``crelu`` too, of which one half is always zero: the share is 1/2 and says nothing.
    * ``tanh`` and ``deep_fourier``: ``|h| <= 0.99``. Plasticine's bound for Fourier features is sqrt(2) - 0.01, which
      features between -1 and 1, like these, never reach.
    * all others (``leaky_relu``, ``silu``, ``smooth_leaky``): positive, the side of the larger slope. Public codes have
      no definition for them.

    A network with dead units and one that is sparse can have the same share: see `dead_units`.

    References:
      RLE-Foundation's Plasticine (fraction of active units); its ``compute_dormant_units`` is one less this number.
    """
    h = rows(features)
    if activation in ("relu", "crelu"):
        on = h != 0
    elif activation in ("tanh", "deep_fourier"):
        on = jnp.abs(h) <= 0.99
    else:
        on = h > 0
    return jnp.where(jnp.any(jnp.isnan(h)), jnp.nan, jnp.mean(on, dtype=jnp.float32, where=counting(counted)))


def has_signs(activation: str) -> bool:
    """Whether features tell the sign of the pre-activation."""
    return activation != "deep_fourier"


def linearises(activation: str) -> bool:
    """Whether a unit with pre-activations of one sign is exactly linear."""
    return activation in ("relu", "leaky_relu", "crelu")


_CAVEATS = {
    "tanh": "a small tanh feature is in the range where the unit learns best, and a saturated unit counts as active",
    "leaky_relu": "a leaky unit is never off: dead units are none, and a dormant one still passes gradients",
    "smooth_leaky": "a leaky unit is never off: dead units are none, and a dormant one still passes gradients",
    "silu": "a smooth unit is never exactly off: dead units are none, and a dormant one still passes gradients",
    "gelu": "a smooth unit is never exactly off: dead units are none, and a dormant one still passes gradients",
    "deep_fourier": "a sine is as sensitive where it is zero: neither dormant nor dead units tell what has stopped",
    "other": "its nonlinearity is not known, or layers differ: dormant, dead and active units are those of a ReLU",
}


def caveats(activation: str, probes: Collection[str]) -> list[str]:
    """Sentences on measurements that do not suit an activation.

    >>> caveats("relu", ["features"]), len(caveats("tanh", ["features"])), caveats("tanh", ["hessian"])
    ([], 1, [])

    Args:
      activation: see the module.
      probes: names of those that measure.
    """
    if "features" not in probes or activation not in _CAVEATS:
        return []
    return [f"The dormancy of this network says little: {_CAVEATS[activation]}. See gradient/dormant instead."]


def _positive(features: Array, activation: str) -> Array:
    """Whether the pre-activation is positive, ``[n, units]``."""
    if not has_signs(activation):
        raise ValueError(f"features of {activation!r} do not tell the sign of the pre-activation")
    h = rows(features)
    return h[:, : h.shape[1] // 2] > 0 if activation == "crelu" else h > 0


def linearised_units(features: Array, activation: str = "relu", counted: Array | None = None) -> Array:
    """Share of units that are a linear function of their inputs on the whole batch, without being dead.

    For ``relu`` those with a positive pre-activation on every example; for ``leaky_relu`` and ``crelu``, whose other
    side is linear too, those with one sign on every example. Like `dead_units` it can only fall as the batch grows.
    Layer normalisation keeps it near zero.

    Raises:
      ValueError: for an activation without an exactly linear side.

    References:
      Klein et al., "Plasticity loss in deep reinforcement learning: a survey", arXiv 2411.04832 (linearised units, for
      ReLU).
    """
    if not linearises(activation):
        raise ValueError(f"units of {activation!r} are never exactly linear")
    p = jnp.mean(_positive(features, activation), axis=0, dtype=jnp.float32, where=counting(counted))
    one = p == 1 if activation == "relu" else (p == 1) | (p == 0)
    return jnp.where(jnp.any(jnp.isnan(features)), jnp.nan, jnp.mean(one, dtype=jnp.float32))


def sign_entropy(features: Array, activation: str = "relu", counted: Array | None = None) -> Array:
    """Mean over units of the entropy, in bits, of the pre-activation's sign over examples: from 0 to 1.

    ``mean_i Hb(P(z_i > 0))``. A unit with 0 is dead *or* linearised, which this number does not tell apart; a zero
    counts as not positive.

    Raises:
      ValueError: for ``deep_fourier``, whose pre-activations have no sign that matters.

    References:
      Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", arXiv 2410.20634 (unit sign
      entropy).
    """
    p = jnp.mean(_positive(features, activation), axis=0, dtype=jnp.float32, where=counting(counted))
    both = jnp.stack([p, 1 - p])
    bits = -jnp.sum(both * jnp.log2(jnp.where(both > 0, both, 1.0)), axis=0)
    return jnp.where(jnp.any(jnp.isnan(features)), jnp.nan, jnp.mean(bits))


def feature_norm(features: Array, counted: Array | None = None) -> Array:
    """Mean over examples (and places) of the Euclidean norm of the features.

    References:
      Plasticine, ``compute_feature_norm``.
    """
    return jnp.mean(jnp.linalg.norm(rows(features), axis=-1, keepdims=True), where=counting(counted))
