"""What the probes share: the base of their settings, and the part of the batch that expensive probes use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from plastax import ranges, tree
from plastax.errors import ConfigError
from plastax.types import Array, Model, Probe, ProbeInput, Tree

Need = Literal["features", "kernels", "taps", "origins", "init"]
EPS = (1e-3, 1e-2, 1e-1, 1.0)
"""Thresholds of epsilon-ranks."""


@dataclass(frozen=True)
class ProbeConfig:
    """Base of the probes' settings. A probe is a frozen dataclass with a ``name`` and a ``build``."""

    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    """What `probes.measure` must be given for this probe; experiments have it all."""

    every: int = dataclasses.field(default=1, kw_only=True)
    """Tasks from one measurement to the next, among those that probe_every leaves: tasks 0, every, 2 every, ..."""

    def __post_init__(self) -> None:
        ranges.check(self, self.name, "every", least=1)

    def build(self, model: Model) -> Probe:
        """The probe of this model."""
        raise NotImplementedError


def check_network(config: ProbeConfig, model: Model) -> None:
    """Raises `ConfigError` if a network, of one's own, has no features or layers that a probe looks at."""
    has = {"features": model.hidden, "kernels": model.layers, "taps": model.factored or model.layers}
    what = {"features": "features", "kernels": "layers with a kernel", "taps": "layers that can be tapped"}
    for need in config.needs:
        if not has.get(need, True):
            raise ConfigError(f"probes: {config.name} needs {what[need]}, which this model has not; leave it out")


def check_thresholds(config: ProbeConfig, eps: tuple[float, ...]) -> None:
    """Raises `ConfigError` unless the setting ``eps`` has numbers, none negative."""
    if not eps or not min(eps) >= 0:
        raise ConfigError(f"{config.name}.eps: {eps} is not allowed; give one or more numbers, none negative")


def thinned(seen: ProbeInput, examples: int) -> ProbeInput:
    """The input with at most ``examples`` examples, spread over the batch, since its order may be time."""
    batch = jax.tree.map(lambda x: x[:: max(1, -(-x.shape[0] // examples))], seen.batch)
    return seen._replace(batch=batch)


def order_within(order: int, seen: ProbeInput) -> int:
    """The order, clamped to the number of parameters."""
    return min(order, tree.size(seen.params))


def flat_outputs(outputs: Tree) -> Array:
    """All outputs of every example in a row: ``[B, C]``."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(outputs)], axis=1)


def flat_counted(counted: Array, outputs: int) -> Array:
    """``counted`` ``[B, T]`` for each of `flat_outputs`: bool ``[B, outputs]``."""
    return jnp.repeat(counted, outputs // counted.shape[1], axis=1)


def choices(outputs: Tree, batch: Tree) -> Array | None:
    """The likeliest class or action of every example, ``[B, ...]``; None if outputs are neither.

    Outputs are logits if they have an entry ``policy`` and no ``log_std``, or if the batch has integer labels ``y``.
    """
    if isinstance(outputs, dict):
        return jnp.argmax(outputs["policy"], axis=-1) if "policy" in outputs and "log_std" not in outputs else None
    labels = getattr(batch, "y", None)
    classes = isinstance(outputs, jax.Array) and labels is not None and jnp.issubdtype(labels.dtype, jnp.integer)
    return jnp.argmax(outputs, axis=-1) if classes else None
