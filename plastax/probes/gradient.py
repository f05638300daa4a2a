"""The gradient of the loss on a batch: its size, which units get none, and whether its parts agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import ranges, tree
from plastax.errors import ConfigError
from plastax.probes import activity
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.probes.weights import kernels
from plastax.types import Array, Model, Probe, ProbeInput, Tree


def l1_norm(grads: Tree) -> Array:
    """Sum of absolute values, a scalar; unlike the L2 norm, few large entries do not dominate it."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda g: jnp.sum(jnp.abs(g)), grads), jnp.zeros(()))


def zero_fraction(grads: Tree) -> Array:
    """Share of entries that are exactly zero, a scalar; NaN where one is NaN.

    It falls with the batch: a ReLU unit's weights have a zero gradient only if it is off on every example.

    References:
      Kumar et al.'s L2 Init code takes it parameter by parameter.
    """
    zeros = jax.tree.reduce(jnp.add, jax.tree.map(lambda g: jnp.sum(g == 0, dtype=jnp.float32), grads), jnp.zeros(()))
    unknown = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda g: jnp.any(jnp.isnan(g)), grads), jnp.bool_(False))
    return jnp.where(unknown, jnp.nan, zeros / tree.size(grads))


@jax.default_matmul_precision("highest")
def gradient_covariance(grads: Tree) -> Array:
    """Cosines of gradients with one another, ``[m, m]``: ``C_ij = <g_i, g_j> / (|g_i| |g_j|)``.

    The source calls it covariance, but it is neither centred nor in the gradients' units. Blocks of large entries of
    either sign mean that examples help or hinder one another; all entries at +-1 mean that all gradients lie on one
    line. Cosines of mini-batches are larger than those of examples: noise is averaged away, the more so the larger they
    are. A gradient of zero has the cosine 0 with all, itself included.

    Args:
      grads: a tree of gradients, leading axis m: of one example or mini-batch each.

    References:
      Lyle et al., "Understanding plasticity in neural networks", ICML 2023, arXiv 2303.01486, on examples.
    """
    leaves = [g.reshape(g.shape[0], -1) for g in jax.tree.leaves(tree.wide(grads))]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g), axis=1) for g in leaves]), axis=0)
    scale = jnp.where(largest == 0, 1.0, largest)[:, None]
    products = sum((g / scale) @ (g / scale).T for g in leaves)
    norms = jnp.sqrt(jnp.diagonal(products))
    norms = jnp.where(norms == 0, 1.0, norms)
    return products / (norms[:, None] * norms[None, :])


def off_diagonal_mean(matrix: Array) -> Array:
    """Mean of the entries off the diagonal of ``[m, m]``, a scalar; NaN for one entry."""
    m = matrix.shape[0]
    return jnp.sum(jnp.where(jnp.eye(m, dtype=bool), 0.0, matrix)) / (m * (m - 1)) if m > 1 else jnp.float32(jnp.nan)


def parted(batch: Tree, parts: int) -> Tree:
    """The batch as ``parts`` mini-batches of one size, ``[parts, n, ...]``, each spread over it; drops a rest."""

    def cut(x: Array) -> Array:
        size = x.shape[0] // parts
        return jnp.swapaxes(x[: size * parts].reshape(size, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


@dataclass(frozen=True)
class GradientProbe(ProbeConfig):
    """Norms of the loss gradient, its zeros, units without gradient (GraMa), and agreement between minibatches."""

    name: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[Need, ...]] = ("kernels",)

    minibatches: int = 8
    """Parts of the probe batch whose gradients are compared, each a copy of the gradient in memory. As many as
    examples: gradients of single examples, as in the source. 0: none."""
    taus: tuple[float, ...] = activity.TAUS
    """A unit is gradient-dormant at or below these shares of its layer's mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatches < 0 or self.minibatches == 1:
            raise ConfigError(f"gradient.minibatches: {self.minibatches} is not allowed; give 2 or more, or 0 for none")
        ranges.check(self, self.name, "taus", least=0, below=1)

    def build(self, model: Model) -> Probe:
        """The probe.

        ``norm`` (L2), ``l1`` and ``zero_fraction``, over all parameters, are scalars; ``layer_norm``, ``layer_l1``,
        ``layer_zero_fraction``, of kernels, ``[layer]``. ``dormant`` ``[gradient_layer, gradient_tau]``, and over all
        units or the mean over layers ``dormant_pooled`` and ``dormant_mean`` ``[gradient_tau]``: see
        `activity.gradient_dormant_fraction`, of hidden layers whose pre-activations are tapped (in front of their
        normalisation, if any). ``covariance`` ``[minibatch, other_minibatch]``, see `gradient_covariance`, the mean
        ``cosine`` of two minibatches' gradients and its mean absolute value ``cosine_magnitude``.
        """
        check_network(self, model)
        tapped = tuple(layer for layer in model.hidden if layer in model.layers)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            taus = jnp.asarray(self.taus, jnp.float32)
            taps = seen.taps_fn(seen.batch)
            grads, tap_grads = jax.grad(lambda p, t: seen.tapped_loss_fn(p, t, seen.batch)[0], argnums=(0, 1))(
                seen.params, taps
            )
            grads = tree.wide(grads)
            layers = kernels(grads, model)
            values = {
                "norm": tree.norm(grads),
                "l1": l1_norm(grads),
                "zero_fraction": zero_fraction(grads),
                "layer_norm": jnp.stack([tree.norm(g) for g in layers]),
                "layer_l1": jnp.stack([l1_norm(g) for g in layers]),
                "layer_zero_fraction": jnp.stack([zero_fraction(g) for g in layers]),
            }
            if tapped and taps:  # `probes.measure` may have none
                dormant = jnp.stack([activity.gradient_dormant_fraction(tap_grads[name], taus) for name in tapped])
                widths = jnp.asarray([taps[name].shape[-1] for name in tapped], jnp.float32)
                values |= {
                    "dormant": dormant,
                    "dormant_pooled": activity.pooled(dormant, widths),
                    "dormant_mean": jnp.mean(dormant, axis=0),
                }
            return values | (agreement(seen) if self.minibatches else {})

        def agreement(seen: ProbeInput) -> dict[str, Array]:
            parts = min(self.minibatches, jax.tree.leaves(seen.batch)[0].shape[0])
            grads = jax.lax.map(lambda batch: jax.grad(seen.loss_fn)(seen.params, batch), parted(seen.batch, parts))
            cosines = gradient_covariance(grads)
            return {
                "covariance": cosines,
                "cosine": off_diagonal_mean(cosines),
                "cosine_magnitude": off_diagonal_mean(jnp.abs(cosines)),
            }

        dims: dict[str, tuple[str, ...]] = dict.fromkeys(("layer_norm", "layer_l1", "layer_zero_fraction"), ("layer",))
        coords: dict[str, tuple[object, ...]] = {"layer": model.layers}
        if tapped:
            dims |= {
                "dormant": ("gradient_layer", "gradient_tau"),
                "dormant_pooled": ("gradient_tau",),
                "dormant_mean": ("gradient_tau",),
            }
            coords |= {"gradient_layer": tapped, "gradient_tau": self.taus}
        if self.minibatches:
            dims["covariance"] = ("minibatch", "other_minibatch")
        return Probe(self.name, measure, dims, coords, every=self.every)
