"""Refusals of bad arguments by name, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.types import Array, Operator, Tree


def operator(op: object) -> None:
    """Raises ValueError for anything but an `Operator`, such as a function or a tree of parameters."""
    if not isinstance(op, Operator):
        raise ValueError(f"op must be an Operator, such as curvature.hessian(loss_fn, params), got {type(op).__name__}")


def key(key: Any) -> None:
    """Raises ValueError unless this is one PRNG key, typed or as raw words."""
    array = isinstance(key, jax.Array | np.ndarray)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not array or key.shape != (() if typed else (2,)) or not (typed or key.dtype == jnp.uint32):
        meant = f"; for the seed {key} give jax.random.key({key})" if isinstance(key, int) else ""
        raise ValueError(f"key must be a PRNG key, such as jax.random.key(0), got {key!r}{meant}")


def scalar(loss_fn: Callable[..., Any], *args: Tree) -> None:
    """Raises ValueError unless the function returns one number for these arguments; computes nothing."""
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(loss_fn, *args))
    if shapes != ():
        raise ValueError(f"the loss must be a scalar, got shape {shapes}")


def examples(data: Tree, what: str = "data") -> int:
    """The length of the leading axis that all leaves share; raises ValueError if they do not."""
    shapes = {name: jnp.shape(leaf) for name, leaf in tree.named_leaves(data).items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"the leaves of {what} must share a leading axis of one or more examples, got shapes {shapes}")
    return int(lengths.pop()[0])


def concrete(values: Tree) -> bool:
    """Whether all leaves are known now, not traced by `jit`, `vmap` or `grad`."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def nan_unless_finite(values: Tree) -> Array:
    """A scalar to add to a result: zero if all these values are finite, NaN otherwise."""
    every = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(values)])
    return jnp.where(jnp.all(every), 0.0, jnp.nan)


def finite(values: Tree) -> None:
    """Raises ValueError naming the leaves with NaN or infinite entries; does nothing for traced values."""
    if not concrete(values):
        return
    named = tree.named_leaves(values).items()
    bad = [name for name, leaf in named if not _finite(leaf)]
    if bad:
        raise ValueError(f"not finite: {', '.join(bad)}")


def _finite(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return bool(jnp.isfinite(leaf).all())  # No device, nor this process, need have all of it.
    return bool(np.isfinite(np.asarray(leaf, np.float64)).all())
