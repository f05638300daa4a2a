"""Normalize-and-project: layer normalisation, and weights of constant norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import roles, tree
from plastax.errors import ConfigError
from plastax.methods.base import Periodic, due, never, transformation
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model, Params, Tree


class ProjectionState(NamedTuple):
    """Name of a group of arrays -> the Euclidean norm of all its entries at the start, for every layer of a stack.

    ``last`` is the clock of the last call that was applied.
    """

    norms: dict[str, Array]
    last: Array


class _Member(NamedTuple):
    """The group that a parameter is scaled with, and its axes but those that stack layers."""

    group: str
    axes: tuple[int, ...]


def _groups(params: Params, roles_of: RolesOf, norms: bool, output: bool) -> dict[str, _Member]:
    """Parameter -> group that is scaled together: a layer's kernel and bias, or the scale and bias of a normalisation.

    Parameters that are not projected are left out.
    """
    found = roles_of.of(params)
    kernels = roles.kernels(found, "project")
    if not output and any(role.normalized is None for role in kernels.values()):
        raise ConfigError(
            "project: nothing says which layers a normalisation follows; give roles=Roles(normalized=(...)), or "
            "output=True to project all"
        )
    there = sorted({role.layer for role in kernels.values()})
    layers = {role.layer for role in kernels.values() if output or role.normalized}
    members = {}
    for name, role in found.items():
        if role.kind == "kernel" and role.layer in layers:
            _, rows, units = roles.shape_of(role, roles.axes(name, role, "project"))
            members[name] = _Member(role.layer, rows + units)
        elif (role.kind == "bias" and role.layer in layers) or (norms and role.kind in ("scale", "offset")):
            stack = roles.stack_of(name, role, "project")
            members[name] = _Member(role.layer, tuple(range(stack, len(role.shape))))
    if not members:
        raise ConfigError(f"project: no normalisation follows any of the layers {', '.join(map(repr, there))}")
    return members


def _norms(params: Params, members: dict[str, _Member]) -> dict[str, Array]:
    squares: dict[str, Array] = {}
    for name, x in tree.named_leaves(tree.wide(params)).items():
        if name in members:
            group, axes = members[name]
            squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(x), axes)
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def project(period: int = 1, *, norms: bool = True, output: bool = True, roles: RolesOf = STRUCTURE) -> Method:
    """Every ``period`` steps scales each layer back to its initial norm: ``w <- w ||w_0|| / ||w||``.

    A layer's kernel and bias are one vector, because with a normalisation behind it the network does not change if both
    are scaled by one number. To be chained behind the optimiser, whose state it leaves alone. A layer that starts at
    zero is free.

    Args:
      period: gradient steps from one projection to the next.
      norms: scale and bias of every normalisation, one vector too, are projected as well; otherwise they are free.
      output: layers without a normalisation behind them are projected too.
      roles: which layers there are, and, without ``output``, behind which there is a normalisation.
    """

    def init(params: Params) -> ProjectionState:
        return ProjectionState(_norms(params, _groups(params, roles, norms, output)), never())

    def update(
        updates: Tree,
        state: ProjectionState,
        params: Params,
        *,
        clock: Array,
        rate: float | Array = 1.0,
        every_step: bool = False,
        **_: object,
    ) -> tuple[Tree, ProjectionState]:
        members = _groups(params, roles, norms, output)

        def projected() -> Tree:
            new = jax.tree.map(lambda w, u: w + rate * u, tree.wide(params), updates)
            now = _norms(new, members)
            factor = {
                group: jnp.where((norm > 0) & (state.norms[group] > 0), state.norms[group], norm)
                / jnp.where(norm > 0, norm, 1.0)
                for group, norm in now.items()
            }

            def entry(name: str, x: Array, w: Array, u: Array) -> Array:
                if name not in members:
                    return u
                group, axes = members[name]
                return ((jnp.expand_dims(factor[group], axes) * x - w) / rate).astype(u.dtype)

            return tree.map_named(entry, new, params, updates)

        now = due(period, clock, state.last, every_step, ends=True)
        state = ProjectionState(state.norms, jnp.asarray(clock, jnp.int32))
        return jax.lax.cond(now, projected, lambda: updates), state

    return transformation("project", init, update)


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
        return optax.chain(inner, project(self.period, norms=self.norms, output=self.output, roles=of_model(model)))
