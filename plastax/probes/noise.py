"""Noise of the gradient and volatility of the curvature, layer by layer: what bounds the step size of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import ranges, roles, tree
from plastax.probes.base import Need, ProbeConfig, check_network, thinned
from plastax.probes.gradient import parted
from plastax.probes.weights import kernel_names
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


def noise_scale(grads: Array, size: int) -> Array:
    """``size * tr(V) / |g|^2`` for the mean g of the gradients and their unbiased covariance V; 0 without a gradient.

    It estimates the trace of the covariance of single examples over ``|g|^2``: the batch size at which noise and signal
    are equal. With few minibatches much of ``|g|^2`` is noise itself, and the scale is then too small.

    Args:
      grads: ``[m, ...]``, of minibatches of one size.
      size: examples in each.

    References:
      McCandlish et al., "An empirical model of large-batch training", arXiv 1812.06162, eq. 2.9 (simple noise scale).
    """
    squared = jnp.sum(jnp.square(jnp.mean(grads, axis=0)))
    variance = jnp.sum(jnp.var(grads, axis=0, ddof=1))
    return size * variance / jnp.where(squared == 0, 1.0, squared)


@dataclass(frozen=True)
class NoiseProbe(ProbeConfig):
    """Gradient noise scale, sharpness and its volatility over minibatches, layer by layer."""

    name: ClassVar[str] = "noise"
    needs: ClassVar[tuple[Need, ...]] = ("kernels",)

    minibatches: int = 8
    """Parts of the batch that are compared, each a copy of the gradient in memory."""
    iterations: int = 8
    """Power iterations for the sharpness of each layer on each minibatch; 0: the curvature along the gradient."""
    examples: int = 128
    """Examples of the probe batch (at most)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "minibatches", least=2)
        ranges.check(self, self.name, "iterations", least=0)
        ranges.check(self, self.name, "examples", least=2)

    def build(self, model: Model) -> Probe:
        """The probe, of kernels; all values are ``[layer]``.

        ``noise_scale``, see `noise_scale`: the source's bound on the step size from noise is the batch size over it.
        ``sharpness``: the mean over minibatches of ``s_b = |H_b v|`` for the layer's diagonal block ``H_b`` of the
        minibatch's Hessian. The unit vector v starts at the layer's gradient on the minibatch and takes ``iterations``
        power iterations; s_b then approaches the block's largest absolute eigenvalue from below. ``volatility``: the
        standard deviation of s_b over its mean. The source takes it over the steps of a window; here it is that over
        minibatches at one moment. Both are 0 for a layer without a gradient.

        References:
          After Baveja, Lewandowski and Schmidt, "A unified noise-curvature view of loss of trainability", arXiv
          2509.19698.
        """
        check_network(self, model)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)
            parts = parted(seen.batch, min(self.minibatches, jax.tree.leaves(seen.batch)[0].shape[0]))
            names = kernel_names(seen.params, roles.of_model(model), self.name)
            places = {names[layer]: i for i, layer in enumerate(model.layers)}
            grads, sharpness = jax.lax.map(lambda part: self._one(seen, part, places), parts)
            named = tree.named_leaves(tree.wide(grads))
            size = jax.tree.leaves(parts)[0].shape[1]
            mean = jnp.mean(sharpness, axis=0)
            return {
                "noise_scale": jnp.stack([noise_scale(named[name], size) for name in places]),
                "sharpness": mean,
                "volatility": jnp.std(sharpness, axis=0) / jnp.where(mean == 0, 1.0, mean),
            }

        dims = dict.fromkeys(("noise_scale", "sharpness", "volatility"), ("layer",))
        return Probe(self.name, measure, dims, {"layer": model.layers}, every=self.every)

    @jax.default_matmul_precision("highest")
    def _one(self, seen: ProbeInput, batch: Tree, places: dict[str, int]) -> tuple[Params, Array]:
        """The gradient on one minibatch, and the sharpness of each layer ``[layer]``."""
        grads, product = jax.linearize(lambda p: jax.grad(seen.loss_fn)(p, batch), seen.params)

        def layer(place: Array) -> Array:
            def only(x: Tree) -> tuple[Tree, Array]:
                """The layer's part as a unit vector, and its norm."""
                part = tree.map_named(lambda name, leaf: jnp.where(places.get(name, -1) == place, leaf, 0), x)
                norm = tree.norm(part)
                scale = jnp.where(norm == 0, 1.0, norm)
                return jax.tree.map(lambda leaf: (leaf / scale).astype(leaf.dtype), part), norm

            def step(_: Array, carry: tuple[Tree, Array]) -> tuple[Tree, Array]:
                return only(product(carry[0]))

            # One loop, so that the product is compiled once.
            return jax.lax.fori_loop(0, self.iterations + 1, step, only(grads))[1]

        return grads, jax.lax.map(layer, jnp.arange(len(places)))
