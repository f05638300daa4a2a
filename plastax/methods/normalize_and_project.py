"""Normalize-and-project: layer normalisation, and weights of constant norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.methods.base import Periodic
from plastax.types import Array, Method, Model, Params, Tree


class ProjectionState(NamedTuple):
    """Name of a group of arrays -> the Euclidean norm of all its entries at the start."""

    norms: dict[str, Array]


def _groups(params: Params, norms: bool, output: bool) -> dict[str, str]:
    """Parameter -> group that is scaled together: a layer's kernel and bias, or the scale and bias of a normalisation.

    Parameters that are not projected are left out.
    """
    named = tree.named_leaves(params)
    found = {}
    for name in named:
        layer, _, _ = name.rpartition("/")
        path, _, last = layer.rpartition("/")
        norm = "/".join(part for part in (path, f"norm_{last}") if part)
        normalized = f"{norm}/scale" in named
        is_layer = f"{layer}/kernel" in named and (normalized or output)
        is_norm = norms and f"{layer}/scale" in named
        if is_layer or is_norm:
            found[name] = layer
    return found


def _norms(params: Params, groups: dict[str, str]) -> dict[str, Array]:
    squares: dict[str, Array] = {}
    for name, x in tree.named_leaves(params).items():
        if name in groups:
            squares[groups[name]] = squares.get(groups[name], 0.0) + jnp.sum(jnp.square(x))
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def project(period: int = 1, *, norms: bool = True, output: bool = True) -> Method:
    """Every ``period`` steps scales each layer back to its initial norm: ``w <- w ||w_0|| / ||w||``.

    A layer's kernel and bias are one vector, because with a normalisation behind it the network does not change if both
    are scaled by one number. To be chained behind the optimiser, whose state it leaves alone.

    Args:
      period: gradient steps from one projection to the next.
      norms: scale and bias of every normalisation, one vector too, are projected as well; otherwise they are free.
      output: layers without a normalisation behind them are projected too.
    """

    def init(params: Params) -> ProjectionState:
        return ProjectionState(_norms(params, _groups(params, norms, output)))

    def update(
        updates: Tree, state: ProjectionState, params: Params, *, clock: Array, **_: object
    ) -> tuple[Tree, ProjectionState]:
        groups = _groups(params, norms, output)

        def projected() -> Tree:
            new = optax.apply_updates(params, updates)
            now = _norms(new, groups)
            # A layer of zeros stays one.
            factor = {group: state.norms[group] / jnp.where(norm > 0, norm, 1.0) for group, norm in now.items()}
            return tree.map_named(
                lambda name, x, w, u: factor[groups[name]] * x - w if name in groups else u, new, params, updates
            )

        return jax.lax.cond(clock % period == period - 1, projected, lambda: updates), state

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class NormalizeAndProject(Periodic):
    """Normalize-and-Project (NaP): LayerNorm before every nonlinearity, and layers of constant norm.

    Behind a normalisation only a layer's direction counts, so growing weights are falling step sizes; here they cannot
    grow. The step size then has to fall by a schedule, if it should (``training.drops``). Scale and bias of a
    normalisation are projected jointly, one of the paper's two ways; the other, to decay them, is ``norms=False`` with
    a decay of your choice. It is an approximation where a layer has no normalisation behind it, as the output layer.

    References:
      Lyle et al., "Normalization and effective learning rates in reinforcement learning", NeurIPS 2024, arXiv
      2407.01800, algorithm 1. Plasticine's method of that name projects every tenth rollout and adds no normalisation.
    """

    model_options: ClassVar[Mapping[str, Any]] = {"layer_norm": True}
    off: ClassVar[Mapping[str, Any] | None] = {"period": 2**31 - 1}

    period: int = 1
    """Gradient steps from one projection to the next."""
    norms: bool = True
    """Project scales and biases of the normalisations, too."""
    output: bool = True
    """Project layers without a normalisation behind them (the output layer), too."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, project)``."""
        return optax.chain(inner, project(self.period, norms=self.norms, output=self.output))
