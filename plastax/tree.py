"""Path-named maps over parameter trees: names, norms, random trees, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from plastax.types import Array, Key, Tree


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a key path of `jax.tree_util` with slashes: ``actor/dense_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def layer_of(name: str) -> str:
    """A parameter's layer; a normalisation belongs to the layer before it: ``norm_dense_0/bias`` to dense_0."""
    return name.rpartition("/")[0].replace("norm_", "")


def map_named(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`jax.tree.map` whose function gets the leaf's path name first: ``fn(name, leaf, *rest_leaves)``."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Path name -> leaf, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def wide(tree: Tree) -> Tree:
    """The arrays in single precision at least, the type for sums, means and running values."""
    return jax.tree.map(lambda x: x.astype(wide_type(x)), tree)


def widened(tree: Tree) -> Tree:
    """Floating-point arrays in single precision at least; all else as it is."""

    def leaf(x: Any) -> Any:
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, wide_type(x)) if floating and x.dtype != wide_type(x) else x

    return jax.tree.map(leaf, tree)


def wide_type(x: Array) -> Any:
    """The type of an array, single precision at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def cast(tree: Tree, like: Tree) -> Tree:
    """The arrays in the types of another tree."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def gathered(tree: Tree) -> Tree:
    """The arrays, whole on every device if explicit mesh axes (the default of `jax.make_mesh`) spread them.

    For functions that need all entries at once: JAX refuses most products and loops along such an axis.
    """

    def whole(x: Array) -> Array:
        sharding = jax.typeof(x).sharding
        return jax.reshard(x, jax.NamedSharding(sharding.mesh, jax.P())) if any(sharding.spec) else x

    return jax.tree.map(whole, tree)


def size(tree: Tree) -> int:
    """Number of scalars in the tree (leaves may be shape structs)."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes of the tree's arrays (leaves may be shape structs)."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def dot(a: Tree, b: Tree) -> Array:
    """Inner product of two trees of one structure, a scalar."""
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST), wide(a), wide(b))
    return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def norm(tree: Tree) -> Array:
    """Euclidean norm of all entries, a scalar."""
    return jnp.sqrt(jax.tree.reduce(jnp.add, jax.tree.map(lambda x: jnp.sum(jnp.square(x)), wide(tree)), jnp.zeros(())))


def finite(tree: Tree) -> Array:
    """Whether all entries are finite, a bool scalar."""
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), tree), jnp.bool_(True))


def key_like() -> Key:
    """The shape and type of a key, for `jax.eval_shape`: making a key takes three small compilations."""
    like: Key = jax.eval_shape(jax.random.key, 0)
    return like


def normal_like(key: Key, like: Tree) -> Tree:
    """Independent standard normal entries of the shapes and dtypes of ``like``; each leaf has its own folded key."""
    leaves, structure = jax.tree.flatten(like)
    draws = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, draws)


def zeros(like: Tree) -> Tree:
    """Zeros of the shapes and dtypes of ``like``, arrays or shape structs."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
