"""What the hidden layers do on a batch: ranks of their features, and the activity of their units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, get_args

import jax
import jax.numpy as jnp

from plastax import ranges
from plastax.errors import ConfigError
from plastax.probes import activity, ranks
from plastax.probes.activity import dormant_fraction, feature_norm
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.probes.ranks import SrankVariant, rows
from plastax.types import Array, Model, Probe, ProbeInput


@dataclass(frozen=True)
class FeatureProbe(ProbeConfig):
    """Ranks of every hidden layer's features; dormant, dead, linear and active units; feature norm."""

    name: ClassVar[str] = "features"
    needs: ClassVar[tuple[Need, ...]] = ("features",)

    tau: float = 0.025
    """A unit is dormant at or below this share of its layer's mean activation."""
    taus: tuple[float, ...] = activity.TAUS
    """Thresholds of the dormant fractions recorded in addition."""
    srank: SrankVariant = "kumar"
    """Which code's srank: kumar (the paper's) | l2_init (one less) | plasticine (there called stable rank)."""
    centred: bool = False
    """Subtract the features' mean before taking singular values; public codes do not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "tau", "taus", least=0, below=1)
        if self.srank not in get_args(SrankVariant):
            raise ConfigError.unknown("features.srank", self.srank, get_args(SrankVariant))

    def build(self, model: Model) -> Probe:
        """The probe; see `plastax.probes.ranks` and `plastax.probes.activity` for what its values are.

        ``[feature_layer]``: ``effective_rank`` (power 1), ``effective_rank_2`` (power 2), ``srank``, ``pca_rank``,
        ``stable_rank``, ``numerical_rank``, ``pyoi_rank``; ``dormant_fraction`` (at ``tau``), ``dead_units``,
        ``active_fraction``, ``sign_entropy`` (not for deep_fourier) and ``linearised`` (for activations with a linear
        side); ``norm``; ``rows``, the number of feature rows, which caps the ranks and affects dead and linearised
        units. ``[feature_layer, tau]``: ``dormant``, the dormant fraction at ``taus``. ``[tau]``: ``dormant_pooled``
        over all units, and ``dormant_mean`` over layers.
        """
        check_network(self, model)
        per_layer = self._measures(model.activation)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            taus = jnp.asarray(self.taus, jnp.float32)
            layers, counted = seen.features_fn(seen.params, seen.batch), seen.counted_fn(seen.batch)
            hidden = [layers[name] for name in model.hidden]
            found = [{name: fn(h, counted) for name, fn in per_layer.items()} | self._ranks(h, counted) for h in hidden]
            values: dict[str, Array] = jax.tree.map(lambda *x: jnp.stack(x), *found)
            dormant = jnp.stack([dormant_fraction(h, taus) for h in hidden])
            widths = jnp.asarray([h.shape[-1] for h in hidden], jnp.float32)
            return values | {
                "dormant": dormant,
                "dormant_pooled": activity.pooled(dormant, widths),
                "dormant_mean": jnp.mean(dormant, axis=0),
            }

        dims: dict[str, tuple[str, ...]] = dict.fromkeys((*per_layer, *_RANKS), ("feature_layer",))
        dims |= {"dormant": ("feature_layer", "tau"), "dormant_pooled": ("tau",), "dormant_mean": ("tau",)}
        return Probe(self.name, measure, dims, {"feature_layer": model.hidden, "tau": self.taus}, every=self.every)

    def _measures(self, activation: str) -> dict[str, Callable[[Array, Array | None], Array]]:
        """What is measured of single units, by name."""
        measures: dict[str, Callable[[Array, Array | None], Array]] = {
            "dormant_fraction": lambda h, _: dormant_fraction(h, self.tau),
            "dead_units": lambda h, _: activity.dead_units(h),
            "active_fraction": lambda h, counted: activity.active_fraction(h, activation, counted),
            "norm": feature_norm,
            "rows": lambda h, counted: jnp.asarray(_number(h, counted), jnp.float32),
        }
        if activity.has_signs(activation):
            measures["sign_entropy"] = lambda h, counted: activity.sign_entropy(h, activation, counted)
        if activity.linearises(activation):
            measures["linearised"] = lambda h, counted: activity.linearised_units(h, activation, counted)
        return measures

    def _ranks(self, features: Array, counted: Array | None) -> dict[str, Array]:
        number = _number(features, counted)
        values = ranks.singular_values(features, self.centred, counted)
        longest = jnp.maximum(number, features.shape[-1])
        found = (
            ranks.effective_rank(values), ranks.effective_rank(values, 2), ranks.srank(values, variant=self.srank),
            ranks.pca_rank(values), ranks.stable_rank(values),
            ranks.numerical_rank(values, longest, eps=float(jnp.finfo(features.dtype).eps)),
            ranks.pyoi_rank(values, number),
        )  # fmt: skip
        return dict(zip(_RANKS, found, strict=True))


def _number(features: Array, counted: Array | None) -> int | Array:
    """How many feature rows count."""
    return rows(features).shape[0] if counted is None else jnp.sum(counted)


_RANKS = ("effective_rank", "effective_rank_2", "srank", "pca_rank", "stable_rank", "numerical_rank", "pyoi_rank")
