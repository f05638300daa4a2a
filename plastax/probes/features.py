"""What the hidden units do on a batch: effective rank, dormancy, dead units, norm."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from plastax import linalg, tree
from plastax.types import Array, ConfigError, Features, Model, Params, Probe, ProbeInput


def rows(features: Array) -> Array:
    """``[B, d]`` as it is; convolutional ``[B, h, w, c]`` as ``[B h w, c]``: a channel is one unit."""
    return features.reshape(-1, features.shape[-1])


def dormant_fraction(features: Array, tau: float = 0.025) -> Array:
    """Share of units whose mean absolute activation is at most ``tau`` times the layer's mean, a scalar.

    ``s_i = E|h_i| / mean_k E|h_k| <= tau``. A layer that is silent altogether is wholly dormant; NaN where a unit is.

    References:
      Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", arXiv 2302.12902, definition 3.1.
    """
    score = jnp.mean(jnp.abs(rows(features)), axis=0)
    mean = jnp.mean(score)
    # Comparisons with NaN are false, which would be a network without a dormant unit.
    return jnp.where(jnp.isnan(mean), jnp.nan, jnp.mean(score <= tau * mean))


def dead_units(features: Array) -> Array:
    """Number of units that are exactly zero on every example, float32 scalar; it falls with the size of the batch."""
    return jnp.sum(jnp.all(rows(features) == 0, axis=0)).astype(jnp.float32)


def feature_norm(features: Array) -> Array:
    """Mean over examples (and places) of the Euclidean norm of the features, a scalar."""
    return jnp.mean(jnp.linalg.norm(rows(features), axis=-1))


@dataclass(frozen=True)
class FeatureProbe:
    """Effective rank, dormant fraction, dead units and norm of every hidden layer's features."""

    tau: float = 0.025
    """A unit is dormant at or below this share of its layer's mean activation (ReDo: 0, 0.01, 0.025 or 0.1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            message = f"features.tau: {self.tau} is not allowed; give a number from 0 to below 1"
            raise ConfigError(message)

    def build(self, model: Model) -> Probe:
        """The probe; each of its values is ``[feature_layer]``."""

        def measure(seen: ProbeInput) -> dict[str, Array]:
            layers = seen.features_fn(seen.params, seen.batch)
            hidden = [layers[name] for name in model.hidden]
            return {
                "effective_rank": jnp.stack([linalg.effective_rank(rows(h)) for h in hidden]),
                "dormant_fraction": jnp.stack([dormant_fraction(h, self.tau) for h in hidden]),
                "dead_units": jnp.stack([dead_units(h) for h in hidden]),
                "norm": jnp.stack([feature_norm(h) for h in hidden]),
            }

        names = ("effective_rank", "dormant_fraction", "dead_units", "norm")
        return Probe("features", measure, dict.fromkeys(names, ("feature_layer",)), {"feature_layer": model.hidden})


def monitor(params: Params, features: Features) -> dict[str, Array]:
    """Cheap scalars for every update's record, means over hidden layers, of each network (actor, critic) on its own.

    The effective rank here is the one of power 2, of the features' second moments, in its Renyi-2 form
    ``(tr C)^2 / ||C||_F^2`` (the participation ratio): it needs no decomposition. Not comparable in size with the
    entropy form of `FeatureProbe`.
    """
    values: dict[str, Array] = {"weight_norm": tree.norm(params)}
    for network in dict.fromkeys(name.split("/")[0] for name in features):
        hidden = [rows(h) for name, h in features.items() if name.split("/")[0] == network]
        for name, fn in (
            ("participation_ratio", participation_ratio),
            ("dormant_fraction", dormant_fraction),
            ("feature_norm", feature_norm),
        ):
            values[f"{name}/{network}"] = jnp.stack([fn(h) for h in hidden]).mean()
    return values


def participation_ratio(features: Array) -> Array:
    """``(sum s_i^2)^2 / sum s_i^4`` of the uncentred features' singular values, a scalar from 1 to the rank.

    It does not depend on the features' scale; 0 where all are zero.

    References:
      Roy and Vetterli, EUSIPCO 2007, with Renyi's entropy of order 2 in place of Shannon's and power 2.
    """
    h = rows(features)
    # Fourth powers over- and underflow early: 1e10 and 1e-10 in float32.
    largest = jnp.max(jnp.abs(h))
    h = h / jnp.where(largest == 0, 1.0, largest)
    small = h.T @ h if h.shape[0] >= h.shape[1] else h @ h.T
    fourth = jnp.sum(jnp.square(small))
    return jnp.square(jnp.trace(small)) / jnp.where(fourth == 0, 1.0, fourth)
