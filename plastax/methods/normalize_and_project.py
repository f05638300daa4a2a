"""Normalize-and-project: layer normalisation, and weights of constant norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import roles, tree
from plastax.errors import ConfigError
from plastax.methods.base import Periodic, due, never, transformation
from plastax.roles import STRUCTURE, RolesOf, of_model
from plastax.types import Array, Method, Model, Params, Tree


@dataclass(frozen=True)
class NormalizeAndProject(Periodic):
    """Normalize-and-Project (NaP): LayerNorm before every nonlinearity, and layers of constant norm.

    If a normalisation follows a layer, only the layer's direction counts, so growing weights act as a falling step
    size. Here they cannot grow: let the step size fall by a schedule if it should (``training.drops``). The scale and
    bias of a normalisation are projected jointly, one of the paper's two ways; the other is to decay them, by
    ``norms=False`` and a decay of your choice. For layers that no normalisation follows, such as the output layer, the
    method is an approximation.

    References:
      Lyle et al., "Normalization and effective learning rates in reinforcement learning", NeurIPS 2024, arXiv
      2407.01800, algorithm 1. Plasticine's method of that name projects every tenth rollout and adds no normalisation.
    """

    model_options: ClassVar = {"layer_norm": True}

    period: int = 1
    """Gradient steps from one projection to the next."""
    norms: bool = True
    """Also project scales and biases of the normalisations."""
    output: bool = True
    """Also project layers that no normalisation follows (the output layer)."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """``chain(inner, project)``."""
        return optax.chain(inner, project(**vars(self), roles=of_model(model)))


class ProjectionState(NamedTuple):
    """Name of a group of arrays -> the norm of all its entries at the start, for each layer of a stack.

    ``last`` is the clock of the last call that was applied.
    """

    norms: dict[str, Array]
    last: Array


class _Member(NamedTuple):
    """The group that a parameter is scaled with, and its axes except those that stack layers."""

    group: str
    axes: tuple[int, ...]


def _groups(params: Params, roles_of: RolesOf, norms: bool, output: bool) -> dict[str, _Member]:
    """Parameter -> the group that it is scaled with; parameters that are not projected are left out.

    A group is a layer's kernel and bias, or the scale and bias of a normalisation.
    """
    found = roles_of.of(params)
    kernels = roles.kernels(found, "project")
    if not output and any(role.normalized is None for role in kernels.values()):
        raise ConfigError(
            "project: nothing says which layers a normalisation follows; give roles=Roles(normalized=(...)), or "
            "output=True to project all"
        )
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
        every = sorted({role.layer for role in kernels.values()})
        raise ConfigError(f"project: no normalisation follows any of the layers {', '.join(map(repr, every))}")
    return members


def _norms(params: Params, members: dict[str, _Member]) -> dict[str, Array]:
    squares: dict[str, Array] = {}
    for name, x in tree.named_leaves(tree.wide(params)).items():
        if name in members:
            group, axes = members[name]
            squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(x), axes)
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def project(
    period: int = NormalizeAndProject.period,
    *,
    norms: bool = NormalizeAndProject.norms,
    output: bool = NormalizeAndProject.output,
    roles: RolesOf = STRUCTURE,
) -> Method:
    """Every ``period`` steps scales each layer back to its initial norm: ``w <- w ||w_0|| / ||w||``.

    A layer's kernel and bias are one vector, because scaling both by one number does not change a network that
    normalises after the layer. Chain this after the optimiser, whose state it leaves alone. A layer that starts at zero
    is free.

    Args:
      period: gradient steps from one projection to the next.
      norms: whether to project the scale and bias of every normalisation as well, as one vector.
      output: whether to project layers that no normalisation follows.
      roles: which layers there are; without ``output``, also which of them a normalisation follows.

    References:
      Lyle et al., arXiv 2407.01800, algorithm 1; see `NormalizeAndProject`.

    Examples:
      >>> from plastax import methods
      >>> tx = optax.chain(optax.sgd(1.0), methods.project())
      >>> params = {"dense": {"kernel": jnp.array([[3.0], [4.0]])}}
      >>> grads = {"dense": {"kernel": -jnp.array([[3.0], [4.0]])}}
      >>> updates, _ = tx.update(grads, tx.init(params), params, clock=0)
      >>> print(updates["dense"]["kernel"].ravel())  # the step would only have doubled the norm
      [0. 0.]
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
