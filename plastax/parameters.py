"""What people have as parameters, and the floating-point trees that curvature and probes differentiate by.

Taken are trees of arrays, with None, integers, booleans or functions among them; variables of `flax.linen`
(``{"params": ..., "batch_stats": ...}``), frozen or not; a `TrainState`; a `State` or a module of `flax.nnx`; a module
of Equinox or what `equinox.partition` makes of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.types import Params


def split(given: Any) -> tuple[Params, Callable[[Params], Any]]:
    """The parameters of what somebody has, and the way back.

    Parameters are real floating-point arrays. Where there is more than parameters, they are those under ``params`` (of
    linen variables and of a `TrainState`), or the `nnx.Param`. Everything else is held fixed.

    Returns:
      The tree with None for everything else, and ``parameters -> what was given, with these``.

    Raises:
      ValueError: it has no parameters, or complex ones.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import parameters
      >>> variables = {"params": {"w": jnp.ones(2), "steps": 3}, "batch_stats": {"mean": jnp.zeros(2)}}
      >>> own, whole = parameters.split(variables)
      >>> own
      {'batch_stats': {'mean': None}, 'params': {'steps': None, 'w': Array([1., 1.], dtype=float32)}}
      >>> whole(own)["params"]["steps"]
      3
    """
    leaves, structure = jax.tree.flatten(given)
    owned = _owned(given)
    names = list(tree.named_leaves(given))
    wrong = [
        name for name, leaf, own in zip(names, leaves, owned, strict=True) if own and _is(leaf, np.complexfloating)
    ]
    if wrong:
        raise ValueError(f"params must be real floating point, but these are complex: {', '.join(map(repr, wrong))}")
    floats = [own and _is(leaf, np.floating) for leaf, own in zip(leaves, owned, strict=True)]
    if not any(np.size(leaf) for leaf, own in zip(leaves, floats, strict=True) if own):
        listed = ", ".join(f"{name!r} ({_kind(leaf)})" for name, leaf in zip(names[:12], leaves, strict=False))
        raise ValueError(
            f"params has no parameters, which are floating-point arrays with entries; it has {listed or 'no leaf'}"
        )
    if all(floats):
        return jax.tree.map(jnp.asarray, given), lambda own: own

    def whole(own: Params) -> Any:
        new = iter(jax.tree.leaves(own))
        return jax.tree.unflatten(structure, [next(new) if is_own else leaf for is_own, leaf in zip(floats, leaves)])

    kept = [jnp.asarray(leaf) if own else None for own, leaf in zip(floats, leaves, strict=True)]
    return jax.tree.unflatten(structure, kept), whole


def of(fn: Callable[..., Any], given: Any) -> tuple[Callable[..., Any], Params]:
    """A function of what somebody has as a function of its parameters, and the parameters; see `split`."""
    own, whole = split(given)
    return lambda params, *rest: fn(whole(params), *rest), own


class Named(NamedTuple):
    """The floating-point leaves of a tree as nested dicts by their paths, ``pack``, and the way back, ``unpack``.

    Attributes:
      names: of all leaves, with slashes.
      structure: of the tree.
      rest: name -> leaf that is not floating point.
    """

    names: tuple[str, ...]
    structure: Any
    rest: Mapping[str, Any]

    def pack(self, given: Any) -> Params:
        """``{"dense": {"kernel": ...}}``, of the tree."""
        packed: dict[str, Any] = {}
        for name, leaf in zip(self.names, jax.tree.leaves(given), strict=True):
            if name not in self.rest:
                *path, last = name.split("/")
                inner = packed
                for part in path:
                    inner = inner.setdefault(part, {})
                inner[last] = leaf
        return packed

    def unpack(self, params: Params) -> Any:
        """The tree, of nested dicts."""
        given = {**self.rest, **tree.named_leaves(params)}
        return jax.tree.unflatten(self.structure, [given[name] for name in self.names])


def _kind(leaf: Any) -> str:
    return str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__


def _is(leaf: Any, kind: Any) -> bool:
    if isinstance(leaf, bool | int | float | complex):
        return np.issubdtype(type(leaf), kind)
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, kind)


def _owned(given: Any) -> list[bool]:
    """Of each leaf, whether its place is one of parameters."""
    inner = None
    if isinstance(given, Mapping) and isinstance(given.get("params"), Mapping):
        inner = given["params"]
    elif hasattr(given, "params") and hasattr(given, "opt_state"):
        inner = given.params
    if inner is not None:
        places = [tree.path_name(path[:1]) == "params" for path, _ in jax.tree_util.tree_leaves_with_path(given)]
        own = iter(_owned(inner))
        return [place and next(own) for place in places]
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is None:
        return [True] * len(jax.tree.leaves(given))
    found: list[bool] = []
    for one in jax.tree.leaves(given, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        own_here = not isinstance(one, nnx.Variable) or isinstance(one, nnx.Param)
        found += [own_here] * len(jax.tree.leaves(one))
    return found
