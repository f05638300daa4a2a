"""Parameters of one network on several devices: which axis of a leaf is cut, and what each device holds.

Only `jax.sharding` is used: parameters are arrays with a `jax.sharding.NamedSharding`, and XLA adds the communication.
The mesh may be of several processes (`jax.distributed`). Its axes are automatic, as `mesh` makes them: with explicit
ones, the default of `jax.make_mesh`, JAX asks for the sharding of each product's output, which no Flax layer gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

from plastax import tree
from plastax.errors import ConfigError
from plastax.types import Params, Tree

Mesh: TypeAlias = jax.sharding.Mesh | jax.sharding.AbstractMesh
AXIS = "params"
"""Name of the mesh's axis that cuts parameters."""


def mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh of one automatic axis, `AXIS`, over these devices; all by default."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), (jax.sharding.AxisType.Auto,), devices=devices)


def shardings(params: Params, mesh: Mesh, axis: str = AXIS) -> Tree:
    """How each leaf is cut: along its largest axis that the devices divide, the first of several.

    Leaves without such an axis, and vectors (biases, scales), stay whole on every device.

    Args:
      params: a tree of arrays or shape structs. States of optimisers, which repeat its shapes, are cut alike.
      mesh: has ``axis``.
      axis: the mesh's axis that cuts.

    Returns:
      A tree of `jax.sharding.NamedSharding`, for `jax.device_put`, `jax.jit` or `jax.ShapeDtypeStruct`.

    Raises:
      ConfigError: the mesh has no such axis.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import sharding
      >>> mesh = jax.sharding.AbstractMesh((8,), ("params",))
      >>> found = sharding.shardings({"kernel": jnp.ones((12, 16)), "bias": jnp.ones(16)}, mesh)
      >>> found["kernel"].spec, found["bias"].spec
      (P(None, 'params'), P())
    """
    if axis not in mesh.shape:
        raise ConfigError(f"axis: the mesh has no {axis!r}; give one of {', '.join(mesh.shape)}")
    parts = mesh.shape[axis]

    def cut(x: Any) -> jax.NamedSharding:
        allowed = [d for d, length in enumerate(x.shape) if length and length % parts == 0]
        if len(x.shape) < 2 or not allowed:
            return jax.NamedSharding(mesh, jax.P())
        largest = max(allowed, key=lambda d: x.shape[d])
        return jax.NamedSharding(mesh, jax.P(*[None] * largest, axis))

    return jax.tree.map(cut, params)


def shard_params(params: Params, mesh: Mesh, axis: str = AXIS) -> Params:
    """The arrays, cut over the devices of the mesh as `shardings` says; raises ConfigError as it does."""
    return jax.device_put(params, shardings(params, mesh, axis))


def shapes(params: Params, mesh: Mesh, axis: str = AXIS) -> Tree:
    """Shape structs of the arrays of `shard_params`, for `curvature.memory` and, in `jit`, for ``like`` of an operator.

    Args:
      params: arrays or shape structs.
      mesh: of devices, or a `jax.sharding.AbstractMesh` of such as are not here.
      axis: the mesh's axis that cuts.

    Raises:
      ConfigError: the mesh has no such axis.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings(params, mesh, axis)
    )


def cuts(like: Tree) -> list[jax.NamedSharding] | None:
    """Where the leaves of a tree lie, if any of them is cut; None if each device has all of them.

    Args:
      like: arrays or shape structs. Of a traced array under automatic axes JAX does not know where it lies, so it
        counts as whole: inside `jit` give shape structs that have the ``sharding``.

    Raises:
      ValueError: leaves are cut along explicit axes, by different meshes, unevenly, or by no
        `jax.sharding.NamedSharding`.
    """
    named = tree.named_leaves(like)
    found = {name: _of(leaf) for name, leaf in named.items()}
    cut: dict[str, jax.NamedSharding] = {}
    for name, s in found.items():
        if s is None or s.is_fully_replicated:
            continue
        if not isinstance(s, jax.NamedSharding):
            raise ValueError(f"{name} lies on devices by a {type(s).__name__}; give it a jax.sharding.NamedSharding")
        if s.mesh.explicit_axes:
            raise ValueError(
                f"{name} is cut along the explicit mesh axes {s.mesh.explicit_axes}; make the mesh with automatic "
                "ones: plastax.sharding.mesh(), or jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto, ...))"
            )
        mesh = next(iter(cut.values()), s).mesh
        if s.mesh != mesh:
            raise ValueError(f"{name} lies on the mesh {s.mesh}, and other leaves on {mesh}; put all on one mesh")
        _check_even(name, named[name].shape, s)
        cut[name] = s
    return [cut.get(name, jax.NamedSharding(mesh, jax.P())) for name in named] if cut else None


def size_on_each(like: Tree) -> int:
    """Number of scalars of a tree that one device holds; raises ValueError as `cuts` does."""
    placed, leaves = cuts(like), jax.tree.leaves(like)
    if placed is None:
        return tree.size(like)
    return sum(math.prod(s.shard_shape(leaf.shape)) for s, leaf in zip(placed, leaves))


def _of(leaf: Any) -> jax.sharding.Sharding | None:
    return jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)


def _check_even(name: str, shape: tuple[int, ...], s: jax.NamedSharding) -> None:
    for axis, (length, names) in enumerate(zip(shape, s.spec)):
        parts = math.prod(s.mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ()))
        if length % parts:
            raise ValueError(
                f"{name} {shape} cannot be cut into {parts} equal parts along axis {axis}, as {s.spec} says; "
                "leave that axis whole"
            )
